"""COCO two ways: 21 classes drawn from instances, 171 from pixel maps."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_trees import image, mask, rows

from classyseg.config import ConfigError, DataError
from classyseg.datasets import Coco, CocoStuff
from classyseg.datasets.files.outlines import annotation_mask, decoded_counts
from classyseg.datasets.label_map import label_table
from classyseg.datasets.named.coco import CATEGORY_IDS, CLASS_OF_CATEGORY

CATEGORIES = [{"id": number, "name": name} for number, name in zip(*label_table("coco_panoptic")[:2], strict=True)][:80]
"""As in COCO's own files."""
LEFT = [0, 0, 4, 0, 4, 6, 0, 6]
"""The polygon of the left half of an image of 6 x 8."""


def instances(root: Path, *annotations: dict[str, Any], split: str = "val") -> Path:
    """A COCO of the images 1 and 2, which both have 6 x 8 pixels."""
    for number in (1, 2):
        image(root / f"{split}2017" / f"{number:012d}.jpg")
    described = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 6, "width": 8} for n in (1, 2)]
    path = root / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=7)]
    contents = {"images": described, "annotations": numbered, "categories": CATEGORIES}
    path.write_text(json.dumps(contents), encoding="utf-8")
    return path


def annotation(category: int, segmentation: Any = None, *, image_id: int = 1, **more: Any) -> dict[str, Any]:
    shown = [LEFT] if segmentation is None else segmentation
    return {"image_id": image_id, "category_id": category, "segmentation": shown, "iscrowd": 0, **more}


def coco(root: Path, **options: Any) -> Coco:
    return Coco(**{"split": "val", "root": str(root), "cache": str(root / "cache"), "min_pixels": 0, **options})


def test_categories_become_the_classes_of_the_same_name() -> None:
    names = dict(zip(*label_table("coco_panoptic")[:2], strict=True))
    same = {"airplane": "aeroplane", "dining table": "diningtable", "motorcycle": "motorbike", "tv": "tvmonitor"}
    same |= {"potted plant": "pottedplant", "couch": "sofa"}
    for category, label in CLASS_OF_CATEGORY.items():
        assert Coco.classes[label] == same.get(names[category], names[category])
    assert CATEGORY_IDS == (0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)


def test_the_first_instance_has_the_pixel_and_other_categories_are_background(tmp_path: Path) -> None:
    whole = {"counts": [0, 48], "size": [6, 8]}
    instances(tmp_path, annotation(1), annotation(18, whole), annotation(10, whole, image_id=2))
    data = coco(tmp_path)
    assert data[0].target[0].tolist() == [15] * 4 + [12] * 4
    assert data[1].target.unique().tolist() == [0]


def test_a_crowd_is_labelled_or_ignored(tmp_path: Path) -> None:
    instances(tmp_path, annotation(1, {"counts": [0, 24, 24], "size": [6, 8]}, iscrowd=1))
    assert coco(tmp_path)[0].target[0].tolist() == [15] * 4 + [0] * 4
    assert coco(tmp_path, crowd="ignore")[0].target[0].tolist() == [255] * 4 + [0] * 4


def test_images_with_few_pixels_are_left_out(tmp_path: Path) -> None:
    instances(tmp_path, annotation(1), annotation(1, {"counts": [0, 23, 25], "size": [6, 8]}, image_id=2))
    assert [len(coco(tmp_path, min_pixels=n)) for n in (23, 24)] == [2, 1]
    with pytest.raises(ConfigError, match=r"min_pixels.*25.*instances_val2017.json"):
        coco(tmp_path, min_pixels=25)


def test_masks_are_drawn_once(tmp_path: Path) -> None:
    instances(tmp_path, annotation(1))
    coco(tmp_path)
    drawn = tmp_path / "cache" / "val2017_crowd_label" / "000000000001.png"
    time = drawn.stat().st_mtime_ns
    assert coco(tmp_path)[0].target.max() == 15
    assert drawn.stat().st_mtime_ns == time
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["val2017_crowd_label"]


def test_masks_of_other_annotations_are_not_used(tmp_path: Path) -> None:
    instances(tmp_path, annotation(1))
    coco(tmp_path)
    for changed in ([annotation(1), annotation(18, image_id=2)], [annotation(2)]):  # the second is of the same size
        path = instances(tmp_path, *changed)
        os.utime(path, ns=(1, 1))
        with pytest.raises(ConfigError, match=r"^cache.*val2017_crowd_label.*another instances_val2017"):
            coco(tmp_path)
    os.utime(instances(tmp_path, annotation(1)), ns=(1, 1))  # a copy
    assert len(coco(tmp_path)) == 2


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_images_are_found_by_names_in_the_other_form_of_unicode(tmp_path: Path, forms: tuple[Any, Any]) -> None:
    written, stored = (unicodedata.normalize(form, "Straße_Münster") for form in forms)
    path = instances(tmp_path, annotation(1))
    contents = json.loads(path.read_text("utf-8"))
    contents["images"][0]["file_name"] = f"{written}.jpg"
    path.write_text(json.dumps(contents), encoding="utf-8")
    (tmp_path / "val2017" / f"{1:012d}.jpg").rename(tmp_path / "val2017" / f"{stored}.jpg")
    data = coco(tmp_path)
    assert [int(data[i].target.max()) for i, (path, _) in enumerate(data.pairs) if path.stem == stored] == [15]


def test_those_who_start_together_draw_one_cache(tmp_path: Path) -> None:
    instances(tmp_path, annotation(1))
    with ThreadPoolExecutor(4) as pool:  # a lock of a file is held against other threads, too
        assert list(pool.map(lambda _: len(coco(tmp_path)), range(4))) == [2] * 4
    assert len(list((tmp_path / "cache" / "val2017_crowd_label").iterdir())) == 3


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"counts": [1, 2], "size": [6, 8]}, r"its run lengths are of 3 pixels, not of 6 x 8"),
        (
            {"counts": [48], "size": [8, 6]},
            r"run lengths are of the size \[8, 6\]; the image's is \[6, 8\], rows first",
        ),
        ({"counts": [48], "size": ["6", "8"]}, r"run lengths are of the size"),
        ({"counts": [48]}, r"run lengths are of the size null"),
        ({"counts": [10.5, 37.5], "size": [6, 8]}, r"neither a list of whole numbers nor COCO's text"),
        ({"counts": [-1, 49], "size": [6, 8]}, r"run lengths are of 48 pixels"),
        ({"counts": [48], "size": [6, 8]}, r"run lengths cover no pixel"),
        ({"counts": "63j", "size": [6, 8]}, r"a text that was cut off"),
        ({"counts": "o" * 100_000, "size": [6, 8]}, r"a text with a number that no image has pixels for"),
        ({"counts": [10**400], "size": [6, 8]}, r"neither a list of whole numbers nor COCO's text"),
        ({"counts": "6 j2", "size": [6, 8]}, r"a text with ' ' in it"),
        ({"counts": "\u00e9", "size": [6, 8]}, r"a text with '\\xe9' in it"),
        ({}, r"run lengths are of the size null"),
        ("x", r"its segmentation is the text 'x'; expected polygons"),
        (7, r"its segmentation is 7; expected polygons"),
        ([], r"its segmentation is empty"),
        ([[]], r"a polygon of 0 numbers"),
        (LEFT, r"a list with 0 in it, not a list of polygons"),
        ([LEFT, {"counts": [48]}], r"a list with a mapping in it"),
        ([[1, 2, 3, 4]], r"a polygon of 4 numbers"),
        ([[0, 0, 4, 0, 4, 6, 0]], r"a polygon of 7 numbers"),
        ([LEFT, [1, 2]], r"a polygon of 2 numbers \(polygon 1\)"),
        ([[[0, 0], [4, 0], [4, 6]]], r"polygon 0 has a list among its numbers"),
        ([["0", "0", "4", "0", "4", "6"]], r"polygon 0 has the text '0' among its numbers"),
        ([[0, 0, 4, None, 4, 6]], r"polygon 0 has null among its numbers"),
        ([[0, 0, 4, True, 4, 6]], r"polygon 0 has true among its numbers"),
        ([[1, 2, 3, 4, 1e9, 6]], r"a point far outside the image of 8 x 6"),
        ([[1, 2, 3, 4, 10**30, 6]], r"polygon 0 has 1000.* among its numbers"),
        ([[0, 0, 4, 0, 2, 0]], r"polygon 0 is flat: its points lie on one line"),
        ([[0, 0, 4, 3, 8, 6]], r"polygon 0 is flat"),
        ([[3, 3, 3, 3, 3, 3]], r"polygon 0 is flat"),
        ([LEFT, [1, 1, 5, 1, 3, 1]], r"polygon 1 is flat"),
        ([[0, 0.1, 8, 0.1, 8, 0.12, 0, 0.12]], r"polygon 0 covers no pixel"),  # too thin
        ([[8, 0, 30, 0, 30, 6, 8, 6]], r"polygon 0 covers no pixel"),  # begins where the image ends
        ([LEFT, [-20, 0, 0.2, 0, 0.2, 6, -20, 6]], r"polygon 1 covers no pixel"),
        ([[-9, -9, -1, -9, -1, 9, 12, 9, 12, 12, -9, 12]], r"polygon 0 covers no pixel"),  # around the image
        ([[10, 0, 14, 0, 14, 6, 10, 6]], r"polygon 0 lies outside the image of 8 x 6 pixels"),
        ([LEFT, [0, -9, 4, -9, 4, -3]], r"polygon 1 lies outside the image"),
    ],
)
def test_a_wrong_annotation_is_named_and_leaves_nothing_behind(tmp_path: Path, segmentation: Any, message: str) -> None:
    instances(tmp_path, annotation(1, segmentation, area=24, bbox=[0, 0, 4, 6]))
    with pytest.raises(DataError, match=rf"^/.*instances_val2017.json: image 1, '0*1': annotation 7.*{message}"):
        coco(tmp_path)
    assert [*(tmp_path / "cache").iterdir()] == []


COCOS_FLAT = [
    ([296.65, 388.33, 296.65, 388.33, 297.68, 388.33, 297.68, 388.33], [296.65, 388.33, 1.03, 0.0]),
    ([9.98, 188.56, 15.52, 188.56, 15.52, 188.56, 11.09, 188.56], [9.98, 188.56, 5.54, 0.0]),
]
"""The annotations 918 and 2206849 of COCO's instances_train2017.json, whose area is 0."""


@pytest.mark.parametrize(("polygon", "box"), COCOS_FLAT)
def test_what_covers_no_pixel_and_says_so_is_taken_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, polygon: list[float], box: list[float]
) -> None:
    path = instances(tmp_path)
    flat = annotation(1, [polygon], id=918, area=0.0, bbox=box)
    contents = json.loads(path.read_text("utf-8")) | {"annotations": [flat, annotation(18, id=5)]}
    contents["images"][0] |= {"height": 480, "width": 640}
    contents["annotations"][1]["segmentation"] = [[0, 0, 640, 0, 640, 480, 0, 480]]
    path.write_text(json.dumps(contents), encoding="utf-8")
    image(tmp_path / "val2017" / f"{1:012d}.jpg", size=(640, 480))
    assert coco(tmp_path)[0].target.unique().tolist() == [12]
    assert "cover no pixel, as their own area says: the annotations 918" in caplog.text
    contents["annotations"][0]["area"] = 400
    path.write_text(json.dumps(contents), encoding="utf-8")
    with pytest.raises(DataError, match=r"annotation 918: its polygon 0 is flat"):
        coco(tmp_path, cache=str(tmp_path / "again"))


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Coco:
    """The file of two images, each with an object, after `change`."""
    path = instances(tmp_path, annotation(1), annotation(17, image_id=2))
    contents = json.loads(path.read_text("utf-8"))
    change(contents)
    path.write_text(json.dumps(contents), encoding="utf-8")
    return coco(tmp_path)


def in_image(**keys: Any) -> Callable[[dict[str, Any]], object]:
    return lambda contents: contents["images"][1].update(keys)


def in_annotation(**keys: Any) -> Callable[[dict[str, Any]], object]:
    return lambda contents: contents["annotations"][1].update(keys)


def in_category(**keys: Any) -> Callable[[dict[str, Any]], object]:
    return lambda contents: contents["categories"][1].update(keys)


def without(key: str, inner: str) -> Callable[[dict[str, Any]], object]:
    return lambda contents: contents[key][1].pop(inner)


NUMBER = "a whole number of up to 18 digits is expected"
NAME_1 = "000000000001"
WRONG_ENTRIES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (in_image(id=1), r"the id 1 comes twice among its images"),
    (in_image(id="2"), rf"images\[1\]: its id is the text '2'; {NUMBER}"),
    (in_image(id=2.0), rf"images\[1\]: its id is 2.0; {NUMBER}"),
    (in_image(id=True), rf"images\[1\]: its id is true; {NUMBER}"),
    (in_image(id=None), rf"images\[1\]: its id is null; {NUMBER}"),
    (in_image(id=[2]), rf"images\[1\]: its id is a list; {NUMBER}"),
    (in_image(id=10**20), NUMBER),
    (without("images", "id"), r"images\[1\] has no id"),
    (in_image(file_name=f"{NAME_1}.jpg"), rf"the images 1 and 2 have one file, '{NAME_1}.jpg'"),
    (in_image(file_name=f"{NAME_1}.png"), rf"the images 1 and 2 have one file, '{NAME_1}.png'"),
    (in_image(file_name=f"val2017/{NAME_1}.jpg"), r"the images 1 and 2 have one file"),
    (
        in_image(file_name="other/2.jpg"),
        r"image 2: its file_name is 'other/2.jpg'; expected a name with its suffix, of a file right in",
    ),
    (in_image(file_name="2"), r"image 2: its file_name is '2'; expected a name with its suffix"),
    (in_image(file_name="../2.jpg"), r"image 2: its file_name is '../2.jpg'"),
    (in_image(file_name="val2017\\2.jpg"), r"image 2: its file_name is"),
    (in_image(file_name=2), r"image 2: its file_name is 2; a text is expected"),
    (in_image(file_name=""), r"image 2: its file_name is the text ''; a text"),
    (in_image(file_name="2\0.jpg"), r"image 2: its file_name is '2\\x00.jpg', which no file can be called"),
    (in_image(file_name="\ud800.jpg"), r"image 2: its file_name is '\\ud800.jpg', which no file can be called"),
    (in_image(file_name="x" * 300 + ".jpg"), r"image 2: its file_name is .* which no file can be called"),
    (without("images", "file_name"), r"image 2 has no file_name"),
    (in_image(height="6"), rf"image 2: its height is the text '6'; {NUMBER}"),
    (in_image(height=6.0), rf"image 2: its height is 6.0; {NUMBER}"),
    (in_image(height=-6), r"image 2: its height is -6; an image has one pixel or more"),
    (in_image(width=0), r"image 2: its width is 0"),
    (in_image(width=10**9), r"image 2: its size is 1000000000 x 6; up to 178,956,970 pixels"),
    (without("images", "width"), r"image 2 has no width"),
    (in_annotation(id=7), r"the id 7 comes twice among its annotations"),
    (in_annotation(id="8"), rf"annotations\[1\]: its id is the text '8'; {NUMBER}"),
    (without("annotations", "id"), r"annotations\[1\] has no id"),
    (in_annotation(image_id="2"), rf"annotation 8: its image_id is the text '2'; {NUMBER}"),
    (in_annotation(image_id=3), r"annotation 8: its image_id is 3, which is none of the ids of 'images'"),
    (in_annotation(image_id=False), rf"annotation 8: its image_id is false; {NUMBER}"),
    (without("annotations", "image_id"), r"annotation 8 has no image_id"),
    (in_annotation(category_id="17"), rf"annotation 8: its category_id is the text '17'; {NUMBER}"),
    (in_annotation(category_id=12), r"annotation 8: its category_id is 12, which is none of the ids of 'categories'"),
    (in_annotation(category_id=None), rf"annotation 8: its category_id is null; {NUMBER}"),
    (without("annotations", "category_id"), r"annotation 8 has no category_id"),
    (without("annotations", "segmentation"), r"annotation 8: it has no segmentation"),
    (in_annotation(iscrowd=2), r"annotation 8: its iscrowd is 2; accepted: 0 and 1"),
    (in_annotation(iscrowd="0"), r"annotation 8: its iscrowd is the text '0'"),
    (in_category(name="crack"), r"category 2 is 'crack' in the file, but 'bicycle' in COCO"),
    (in_category(name="person"), r"category 2 is 'person' in the file, but 'bicycle' in COCO"),
    (in_category(id=1), r"the id 1 comes twice among its categories"),
    (in_category(id=12), r"category 12 is 'bicycle' in the file, but none in COCO"),
    (in_category(id="2"), rf"categories\[1\]: its id is the text '2'; {NUMBER}"),
    (in_category(name=None), r"category 2: its name is null; a text is expected"),
    (without("categories", "name"), r"category 2 has no name"),
    (lambda contents: contents.update(categories=[{"id": 1, "name": "crack"}]), r"category 1 is 'crack' in the file"),
    (lambda contents: contents.update(categories=[]), r"annotation 7: its category_id is 1, which is none of the ids"),
    (lambda contents: contents.pop("categories"), r"it has no list 'categories'"),
    (lambda contents: contents.pop("annotations"), r"it has no list 'annotations'"),
    (lambda contents: contents.update(images={"1": {}}), r"its 'images' is a mapping, not a list"),
    (lambda contents: contents.update(annotations=None), r"its 'annotations' is null, not a list"),
    (lambda contents: contents.update(images=[], annotations=[]), r"its list 'images' is empty"),
    (lambda contents: contents["annotations"].append([1]), r"annotations\[2\] is a list; expected a mapping"),
    (lambda contents: contents["images"].append("a.jpg"), r"images\[2\] is the text 'a.jpg'; expected a mapping"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_ENTRIES)
def test_an_entry_that_is_wrong_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(DataError, match=rf"^/.*instances_val2017.json: .*{message}"):
        changed(tmp_path, change)


@pytest.mark.parametrize(
    ("change", "labels"),
    [
        (in_annotation(iscrowd=True), [15, 8]),
        (without("annotations", "iscrowd"), [15, 8]),
        (in_image(file_name="val2017/000000000002.jpg"), [15, 8]),
        (in_image(file_name="./000000000002.jpg"), [15, 8]),
        (in_category(name="Bicycle "), [15, 8]),
        (lambda contents: contents["categories"][4].update(name="aeroplane"), [15, 8]),  # Pascal's word
        (lambda contents: contents.update(categories=contents["categories"][:17]), [15, 8]),
        (in_annotation(category_id=13), [15, 0]),  # a stop sign, none of Pascal's
    ],
)
def test_what_means_the_same_is_read(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], labels: list[int]
) -> None:
    data = changed(tmp_path, change)
    assert [int(data[i].target[0, 0]) for i in (0, 1)] == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [{"id": 1, "id": 2}]}', r"an entry has the key 'id' twice; its id is 2"),
        ('{"images": [], "images": []}', r"the key 'images' twice"),
        ('{"images": [NaN]}', r"found NaN, which is no number of JSON"),
        ("[" * 100_000, r"cannot be read as JSON \(nested too deeply\)"),
        ("[]", r"it has no list 'images'"),
        ('{"images": [' + "9" * 5000 + "]}", r"cannot be read as JSON"),
    ],
    ids=["key", "list", "nan", "deep", "top", "digits"],
)
def test_json_that_says_two_things_or_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    instances(tmp_path).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"^/.*instances_val2017.json: .*{message}"):
        coco(tmp_path)


def test_an_image_of_another_size_than_the_file_says_is_named(tmp_path: Path) -> None:
    data = changed(tmp_path, in_image(height=7))
    with pytest.raises(DataError, match=r"000000000002.jpg.*8 x 6.*8 x 7.*instances_val"):
        data[1]


def test_masks_of_earlier_rules_are_drawn_again(tmp_path: Path) -> None:
    instances(tmp_path, annotation(1))
    coco(tmp_path)
    index = tmp_path / "cache" / "val2017_crowd_label" / "index.json"
    contents = json.loads(index.read_text("utf-8"))
    index.write_text(json.dumps({key: contents[key] for key in ("annotations", "pixels")}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^cache.*earlier version.*delete"):
        coco(tmp_path)
    index.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^cache.*index.json.*damaged .*delete"):
        coco(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such file"), ("{", "cannot be read as JSON"), ("{}", "it has no list 'images'")],
    ids=["missing", "broken", "other"],
)
def test_a_wrong_file_of_annotations_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = instances(tmp_path)
    path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"instances_val2017.json: .*{message}"):
        coco(tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    instances(tmp_path, annotation(1))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^cache.*Not a directory"):
        coco(tmp_path, cache=str(tmp_path / "file" / "cache"))


POLYGONS = [
    ([1.5, 1.25, 9.75, 2.5, 4.2, 7.9], "c0282M2NO1O1O1Oa0", 26),
    ([-3.5, 2.2, 6.1, -2.4, 14.0, 5.5, 5.3, 12.75], "0721Og10YN1NO", 92),
    ([2, 2, 2, 6, 8, 6, 8, 2], "d045000000000i0", 24),
    ([1.04, 0.5, 8.7, 8.3, 1.2, 8.31, 9.66, 0.9], "c0150M110O1O0140L0O002ON0g0", 28),
]
"""What pycocotools 2.0.11 makes of polygons in images of 9 x 11: run lengths as text, and the area."""


@pytest.mark.parametrize(("polygon", "text", "area"), POLYGONS)
def test_polygons_are_drawn_as_cocos_tools_draw_them(polygon: list[float], text: str, area: int) -> None:
    drawn = annotation_mask([polygon], 9, 11).mask
    assert drawn.sum() == area
    assert np.array_equal(drawn, annotation_mask({"counts": text, "size": [9, 11]}, 9, 11).mask)


def test_the_polygons_of_an_annotation_are_joined() -> None:
    (first, *_), (second, *_) = POLYGONS[0], POLYGONS[2]
    joined = annotation_mask([first, second], 9, 11).mask
    assert np.array_equal(joined, annotation_mask([first], 9, 11).mask | annotation_mask([second], 9, 11).mask)


def test_run_lengths_are_read_from_text() -> None:
    assert decoded_counts("63j22WMW9") == [6, 3, 90, 5, 1, 300]


def stuff(root: Path, *values: int) -> CocoStuff:
    image(root / "train2017" / "a.jpg")
    mask(root / "stuffthingmaps" / "train2017" / "a.png", *values)
    return CocoStuff(split="train", root=str(root))


def test_pixel_maps_are_label_numbers_less_one(tmp_path: Path) -> None:
    data = stuff(tmp_path, 0, 10, 12, 181, 255)
    assert rows(data[0].target)[:5] == [0, 10, 11, 170, 255]
    assert [data.classes[i] for i in (0, 10, 11, 170)] == ["person", "fire hydrant", "stop sign", "wood"]
    assert data.submission(torch.tensor([0, 170])).tolist() == [0, 181]


def test_a_label_that_coco_stuff_does_not_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train2017/a.png.*values 11 .*0 to 10, 12 to 24, 26 to 27"):
        stuff(tmp_path, 0, 11)[0]
