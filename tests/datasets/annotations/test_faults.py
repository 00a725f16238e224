"""What may be wrong with files of annotations is one error that names the file and the object, or is accepted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from annotation_trees import (
    RECORDED_TREES,
    cvat_polygon,
    cvat_tree,
    sly_object,
    sly_tree,
)

from classyseg.config import ConfigError, DataError
from classyseg.datasets import build_dataset
from classyseg.doctor import check_data

SQUARE = [(1, 1), (6, 1), (6, 5), (1, 5)]
Change = Callable[[Path], object]


def sly(root: Path) -> dict[str, Any]:
    objects = [sly_object("car", "polygon", SQUARE), sly_object("road", "rectangle", SQUARE[::2])]
    return sly_tree(root, {f"ds/{name}.png": (8, 9, objects) for name in "ab"})


def cvat(root: Path) -> dict[str, Any]:
    shapes = [cvat_polygon("car", SQUARE), cvat_polygon("road", SQUARE, z_order=1)]
    return cvat_tree(root, {f"{name}.png": (8, 9, shapes) for name in "ab"})


TREES: dict[str, Callable[[Path], dict[str, Any]]] = {**RECORDED_TREES, "supervisely": sly, "cvat_xml": cvat}
FILES = {
    "coco_json": "all.json",
    "yolo_polygons": "labels/train/a.txt",
    "labelme": "a.json",
    "supervisely": "ds/ann/a.png.json",
    "cvat_xml": "annotations.xml",
}


def read_all(config: dict[str, Any]) -> None:
    data = build_dataset(config)
    for i in range(len(data)):
        data[i]


def edit(root: Path, file: str, change: Callable[[Any], object]) -> None:
    """Changes the contents of a JSON file."""
    contents = json.loads((root / file).read_text("utf-8"))
    change(contents)
    (root / file).write_text(json.dumps(contents), encoding="utf-8")


def replaced(file: str, old: str, new: str) -> Change:
    def change(root: Path) -> None:
        text = (root / file).read_text("utf-8")
        assert old in text
        (root / file).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def coco(change: Callable[[dict[str, Any]], object], number: int = 0) -> Change:
    return lambda root: edit(root, "all.json", lambda contents: change(contents["annotations"][number]))


def shape(change: Callable[[dict[str, Any]], object], number: int = 0) -> Change:
    return lambda root: edit(root, "a.json", lambda contents: change(contents["shapes"][number]))


def sly_change(change: Callable[[dict[str, Any]], object], number: int = 0) -> Change:
    return lambda root: edit(root, "ds/ann/a.png.json", lambda contents: change(contents["objects"][number]))


def line(text: str) -> Change:
    return lambda root: (root / "labels/train/a.txt").write_text(
        f"0 0.1 0.1 0.5 0.1 0.5 0.5\n{text}\n", encoding="utf-8"
    )


def put(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda entry: entry.__setitem__(key, value)


FAR = [[500.0, 500.0], [510.0, 500.0], [510.0, 510.0]]
NAN = float("nan")

FAULTS: list[tuple[str, Change, str]] = [
    # images that are missing, and two annotations of one
    (
        "coco_json",
        lambda root: (root / "images/b.png").unlink(),
        r"all.json: .* no file for 1 of its 3 images: images/b",
    ),
    (
        "yolo_polygons",
        lambda root: (root / "images/train/b.png").unlink(),
        r"no image for 1 label files: .*train/b.txt",
    ),
    ("labelme", lambda root: (root / "b.png").unlink(), r"no file for 1 of its 3 images: .*b.json"),
    (
        "supervisely",
        lambda root: (root / "ds/img/b.png").unlink(),
        r"no image for 1 files of annotations: .*b.png.json",
    ),
    (
        "cvat_xml",
        lambda root: (root / "images/b.png").unlink(),
        r"annotations.xml: .* no file for 1 of its 2 images: b.png",
    ),
    (
        "supervisely",
        lambda root: (root / "ds/ann/b.png.json").unlink(),
        r"no file of annotations for 1 images: .*b.png",
    ),
    (
        "coco_json",
        lambda root: edit(root, "all.json", lambda c: c["images"][1].__setitem__("file_name", "images/a.png")),
        r"all.json: the images 0 and 1 are one file, 'images/a.png'",
    ),
    (
        "labelme",
        lambda root: (root / "d.json").write_text((root / "a.json").read_text("utf-8"), encoding="utf-8"),
        r"d.json: annotates .*a.png, and so does .*a.json",
    ),
    (
        "supervisely",
        lambda root: (root / "ds/ann/a.json").write_text((root / "ds/ann/a.png.json").read_text("utf-8")),
        r"a.png has two files of annotations",
    ),
    (
        "cvat_xml",
        replaced("annotations.xml", 'name="b.png"', 'name="a.png"'),
        r"annotations.xml: names the image 'a.png' tw",
    ),
    # labels
    ("coco_json", coco(put("category_id", 11)), r"all.json: annotation 1: its category_id is 11, which is none"),
    ("yolo_polygons", line("3 0 0 1 0 1 1"), r"a.txt: line 2: its label is 3, but .*data.yaml names 3: 0 to 2"),
    ("yolo_polygons", line("0.5 0 0 1 0 1 1"), r"a.txt: line 2: its label is 0.5"),
    ("labelme", shape(put("label", "")), r"a.json: shape 0: its label is the text ''"),
    ("supervisely", sly_change(put("classTitle", 7)), r"a.png.json: object 0: its classTitle is 7"),
    (
        "cvat_xml",
        replaced("annotations.xml", '<polygon label="car"', '<polygon label="cat"'),
        r"annotations.xml: image 'a.png': polygon 0: its label is 'cat', unknown.* did you mean 'car'",
    ),
    # outlines
    (
        "coco_json",
        coco(put("segmentation", [[500.0, 500.0, 510.0, 500.0, 510.0, 510.0]])),
        r"all.json: annotation 1 of a.png, '\w+': its polygon 0",
    ),
    (
        "labelme",
        shape(put("points", [[90.0, 1.0], [91.0, 1.0], [90.0, 2.0]])),
        r"a.json: shape 0, '\w+': it lies outside",
    ),
    ("labelme", shape(put("points", FAR * 9)), r"a.json: shape 0, '\w+': it lies outside the image|far outside"),
    (
        "supervisely",
        sly_change(lambda e: e["points"].__setitem__("exterior", [[20, 1], [21, 1], [21, 2]])),
        r"a.png.json: object 0, 'car': it lies outside the image of 9 x 8",
    ),
    (
        "cvat_xml",
        replaced("annotations.xml", "1.00,1.00;6.00,1.00;6.00,5.00;1.00,5.00", "20.0,1.0;21.0,1.0;21.0,2.0"),
        r"annotations.xml: a.png: polygon 0, 'car': it lies outside the image",
    ),
    ("yolo_polygons", line("0 1.2 0 1.3 0 1.3 1"), r"a.txt: line 2: has the coordinate 1.2, outside of the image"),
    ("coco_json", coco(put("segmentation", [[1, 1, 2, 2]])), r"annotation 1 of a.png.*a polygon of 4 numbers"),
    ("labelme", shape(put("points", [[1, 1], [2, 2]])), r"a.json: shape 0, '\w+': it has 2 points; expected 3 or more"),
    (
        "supervisely",
        sly_change(lambda e: e["points"].__setitem__("exterior", [[1, 1], [2, 2]])),
        r"object 0, 'car': it has 2 points",
    ),
    (
        "cvat_xml",
        replaced("annotations.xml", "1.00,1.00;6.00,1.00;6.00,5.00;1.00,5.00", "1.0,1.0;2.0,2.0"),
        r"polygon 0, 'car': it has 2 points",
    ),
    ("yolo_polygons", line("0 0.5 0.5 0.1 0.1"), r"a.txt: line 2: is a box of 4 numbers, not a polygon"),
    ("yolo_polygons", line("0 0.5 0.5 0.1 0.1 0.2"), r"a.txt: line 2: has 5 numbers after its label"),
    ("coco_json", coco(put("segmentation", [[NAN, 1, 2, 2, 3, 1]])), r"annotation 1 of a.png.*its polygon 0 has NaN"),
    ("labelme", shape(put("points", [[NAN, 1], [2, 2], [3, 3]])), r"a.json: shape 0, '\w+': its point 0 has NaN"),
    (
        "supervisely",
        sly_change(lambda e: e["points"].__setitem__("exterior", [[NAN, 1], [2, 2], [3, 3]])),
        r"its point 0 has NaN",
    ),
    (
        "cvat_xml",
        replaced("annotations.xml", "1.00,1.00;", "nan,1.00;"),
        r"polygon 0, 'car': has 'nan' among its numbers",
    ),
    ("yolo_polygons", line("0 nan 0 1 0 1 1"), r"a.txt: line 2: has 'nan' among its numbers"),
    ("coco_json", coco(put("segmentation", [])), r"annotation 1 of a.png.*its segmentation is empty"),
    ("supervisely", sly_change(put("geometryType", "cuboid")), r"a.png.json: object 0, 'car': it is the text 'cuboid'"),
    ("labelme", shape(put("shape_type", "points")), r"a.json: shape 0, '\w+': its shape_type is the text 'points'"),
    (
        "labelme",
        shape(put("shape_type", "linestrip")),
        r"shape 0, '\w+': it is a linestrip, which has no area; give line_wi",
    ),
    ("supervisely", sly_change(put("geometryType", "line")), r"object 0, 'car': it is a line, which has no area"),
    ("cvat_xml", replaced("annotations.xml", "<polygon label", "<cuboid label"), r"mismatched tag|cuboid 0"),
    # masks within
    ("labelme", shape(put("mask", "x"), 3), r"a.json: shape 3, '\w+': its mask "),
    (
        "labelme",
        shape(put("points", [[0, 0], [1, 1]]), 3),
        r"shape 3, '\w+': its mask has .* its points a box of 2 x 2",
    ),
    (
        "supervisely",
        sly_change(lambda e: e.update(geometryType="bitmap", bitmap={"data": "eJw=", "origin": [0, 0]})),
        r"object 0, 'car': its mask cannot be read",
    ),
    # sizes
    (
        "coco_json",
        lambda root: edit(root, "all.json", lambda c: c["images"][0].__setitem__("width", 30)),
        r"all.json: .*(run lengths are of the size|says that 'a.png' is 30 x 24 pixels)",
    ),
    (
        "labelme",
        lambda root: edit(root, "a.json", lambda c: c.__setitem__("imageHeight", 23)),
        r"a.json: (says that 'a.png' is 31 x 23 pixels, but .*a.png is 31 x 24|shape 3.*reaches out)",
    ),
    (
        "supervisely",
        lambda root: edit(root, "ds/ann/a.png.json", lambda c: c["size"].__setitem__("width", 10)),
        r"a.png.json: says that 'a.png' is 10 x 8 pixels",
    ),
    (
        "cvat_xml",
        replaced("annotations.xml", 'width="9"', 'width="12"'),
        r"annotations.xml: says that 'a.png' is 12 x 8",
    ),
    (
        "labelme",
        lambda root: edit(root, "a.json", lambda c: c.__setitem__("imageHeight", 10**9)),
        r"a.json: says .*accepted are",
    ),
    # paths
    (
        "coco_json",
        lambda root: edit(root, "all.json", lambda c: c["images"][0].__setitem__("file_name", "../../a.png")),
        r"all.json: image 0: its image is '../../a.png', which leads out of",
    ),
    (
        "cvat_xml",
        replaced("annotations.xml", 'name="a.png"', 'name="/etc/passwd"'),
        r"annotations.xml: image 0: its image is '/etc",
    ),
    (
        "labelme",
        lambda root: (
            (root / "a.png").unlink(),
            edit(root, "a.json", lambda c: c.__setitem__("imagePath", "../a.png")),
        ),
        r"a.json: its image is '../a.png', which leads out of",
    ),
    (
        "yolo_polygons",
        replaced("data.yaml", "train: images/train", "train: /etc"),
        r"data.yaml: its 'train' is '/etc', which",
    ),
    (
        "cvat_xml",
        replaced("annotations.xml", "<annotations>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>"),
        r"annotations.xml: has a document type",
    ),
]


@pytest.mark.parametrize(("name", "change", "message"), FAULTS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(FAULTS)])
def test_a_fault_is_one_error_that_names_the_file_and_the_object(
    tmp_path: Path, name: str, change: Change, message: str
) -> None:
    config = TREES[name](tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        read_all(config)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("name", TREES)
def test_a_torn_file_is_named(tmp_path: Path, name: str) -> None:
    config = TREES[name](tmp_path)
    file = tmp_path / FILES[name]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2 + 3].rstrip(b"0123456789."))
    with pytest.raises(DataError, match=file.name):
        read_all(config)


@pytest.mark.parametrize("name", TREES)
def test_labels_that_no_class_has_are_errors_and_may_be_ignored(tmp_path: Path, name: str) -> None:
    config = TREES[name](tmp_path) | {"classes": ["road"]}
    with pytest.raises(
        DataError, match=r"its label is '(car|tree)', unknown to the data set.*Known: .*background, road"
    ):
        read_all(config)
    data = build_dataset(config | {"ignore": ["car", "tree"]})
    assert data.classes == ("background", "road")
    assert {label for i in range(len(data)) for label in data[i].target.unique().tolist()} == {0, 1, 255} or name in (
        "supervisely",
        "cvat_xml",
    )


@pytest.mark.parametrize("name", TREES)
def test_the_doctor_lists_what_is_wrong_with_single_images(tmp_path: Path, name: str) -> None:
    config = TREES[name](tmp_path) | {"classes": ["road", "tree"]}
    findings = check_data({"train": config}).findings
    told = [f"{finding.message} {finding.files}" for finding in findings if finding.severity == "fault"]
    assert any("its label is 'car', unknown" in text for text in told)
    if name not in ("coco_json", "cvat_xml"):  # these are read when the data set is built
        assert any(finding.kind == "annotation_wrong" for finding in findings)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Content with some bytes changed, cut out, or written twice, or with another number or word in it."""
    text = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text))
        kind = rng.randrange(4)
        if kind == 0:
            text[at] = rng.choice(b'0129-.,;:"{}[]<>/ eNx\xff\x00')
        elif kind == 1:
            del text[at : at + rng.randint(1, 40)]
        elif kind == 2:
            text[at:at] = text[at : at + rng.randint(1, 40)]
        else:
            text[at:at] = rng.choice([b"1e999", b"-1", b"NaN", b"99999999999999999999", b"null", b"[]", b"{}", b'""'])
    return bytes(text) or b"x"


@pytest.mark.parametrize("name", TREES)
def test_a_mutated_file_is_read_or_is_an_error_that_names_a_file(tmp_path: Path, name: str) -> None:
    config = TREES[name](tmp_path)
    file = tmp_path / FILES[name]
    content = file.read_bytes()
    rng = random.Random(14)
    told = []
    for _ in range(80):
        file.write_bytes(mutated(content, rng))
        try:
            read_all(config)
        except ConfigError as error:
            told.append(str(error))
    assert len(told) > 10
    assert all(str(tmp_path) in text and len(text) < 3000 for text in told)
