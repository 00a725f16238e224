"""Trees as each tool writes them read to the masks that the tool itself draws, pixel for pixel.

`goldens/annotations.json` has trees by labelme's own writer, pycocotools and Ultralytics' format, masks by their own
drawing, and what OpenCV and pycocotools draw of polygons and ellipses.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from PIL import Image

from classyseg.datasets import build_dataset
from goldens import FOLDER

RECORDED = json.loads((FOLDER / "annotations.json").read_text("utf-8"))
CLASSES = ("background", *RECORDED["labels"])
YAML = "path: .\ntrain: images/train\nval: images/train  # the same\nnames:\n  0: car\n  1: road\n  2: tree\n"


def unpacked(text: str) -> Any:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def bits(text: str, height: int, width: int) -> Any:
    return np.unpackbits(unpacked(text))[: height * width].reshape(height, width)


def picture(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 9, np.uint8)).save(path)


def recorded_tree(root: Path, name: str, images: str) -> None:
    """The files of a recorded tree, and its images in a folder."""
    for image, (height, width) in RECORDED["sizes"].items():
        picture(root / images / image, height, width)
    for file, text in RECORDED[name]["files"].items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text, encoding="utf-8")


def coco_tree(root: Path) -> dict[str, Any]:
    recorded_tree(root, "coco_json", "images")
    return {"name": "coco_json", "root": str(root), "annotations": "all.json"}


def yolo_tree(root: Path) -> dict[str, Any]:
    recorded_tree(root, "yolo_polygons", "images/train")
    (root / "data.yaml").write_text(YAML, encoding="utf-8")
    return {"name": "yolo_polygons", "root": str(root), "split": "train"}


def labelme_tree(root: Path) -> dict[str, Any]:
    recorded_tree(root, "labelme", ".")
    return {"name": "labelme", "root": str(root)}


RECORDED_TREES = {"coco_json": coco_tree, "yolo_polygons": yolo_tree, "labelme": labelme_tree}


@pytest.mark.parametrize("name", RECORDED_TREES)
def test_a_tree_of_the_tool_reads_to_the_masks_that_the_tool_draws(tmp_path: Path, name: str) -> None:
    data = build_dataset(RECORDED_TREES[name](tmp_path))
    assert data.classes == CLASSES
    found = {data.files(i)[0].name: data.load(i).target.numpy() for i in range(len(data))}
    assert found.keys() == RECORDED["sizes"].keys()
    for image, mask in found.items():
        expected = unpacked(RECORDED[name]["masks"][image]).reshape(mask.shape)
        np.testing.assert_array_equal(mask, expected, err_msg=image)


# -- Supervisely ---------------------------------------------------------------------------------------------------------


def bitmap(mask: Any) -> str:
    """As Supervisely's `Bitmap.data_2_base64` writes it."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    content = io.BytesIO()
    image.save(content, format="PNG", transparency=0, optimize=0)
    return base64.b64encode(zlib.compress(content.getvalue())).decode()


def sly_object(title: str, kind: str, exterior: Any = (), interior: Any = (), **more: Any) -> dict[str, Any]:
    points = {"exterior": [list(p) for p in exterior], "interior": [[list(p) for p in hole] for hole in interior]}
    return {"classTitle": title, "geometryType": kind, "points": points, "tags": [], "description": "", **more}


def sly_tree(root: Path, images: dict[str, tuple[int, int, list[dict[str, Any]]]]) -> dict[str, Any]:
    """A project of Supervisely: for each image of `DATASET/NAME` its height, width and objects."""
    titles = [("car", "#FF0000", "any"), ("road", "#00FF00", "polygon"), ("tree", "#0000FF", "bitmap")]
    meta = {
        "classes": [{"title": t, "color": c, "shape": s} for t, c, s in titles],
        "tags": [],
        "projectType": "images",
    }
    root.mkdir(exist_ok=True)
    (root / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    for name, (height, width, objects) in images.items():
        folder, _, image = name.rpartition("/")
        picture(root / folder / "img" / image, height, width)
        (root / folder / "ann").mkdir(exist_ok=True)
        contents = {"description": "", "tags": [], "size": {"height": height, "width": width}, "objects": objects}
        (root / folder / "ann" / f"{image}.json").write_text(json.dumps(contents), encoding="utf-8")
    return {"name": "supervisely", "root": str(root)}


def test_supervisely_fills_polygons_as_opencv_does(tmp_path: Path) -> None:
    cases = {
        f"ds0/{i:03d}.png": (height, width, [sly_object("car", "polygon", points)])
        for i, (height, width, points, _, _) in enumerate(RECORDED["polygons"])
        if np.ptp(np.clip(np.array(points)[:, 0], 0, width)) and np.ptp(np.clip(np.array(points)[:, 1], 0, height))
    }
    data = build_dataset(sly_tree(tmp_path, cases))
    assert data.palette[:2] == ((0, 0, 0), (255, 0, 0))
    for i in range(len(data)):
        height, width, _, expected, _ = RECORDED["polygons"][int(data.files(i)[0].stem)]
        np.testing.assert_array_equal(data.load(i).target.numpy(), bits(expected, height, width))


def test_supervisely_cuts_holes_with_their_borders_and_takes_bitmaps_and_rectangles(tmp_path: Path) -> None:
    square = [(1, 1), (8, 1), (8, 8), (1, 8)]
    hole = [(3, 3), (5, 3), (5, 5), (3, 5)]
    shape = np.array([[1, 0, 1], [0, 1, 1]], bool)
    objects = [
        sly_object("road", "polygon", square, [hole]),
        sly_object("tree", "bitmap", bitmap={"data": bitmap(shape), "origin": [7, 0]}),
        sly_object("car", "rectangle", [(9, 9), (8, 7)]),
    ]
    data = build_dataset(sly_tree(tmp_path, {"train/a.jpg": (10, 10, objects)}))
    expected = np.zeros((10, 10), np.uint8)
    expected[1:9, 1:9] = 2
    expected[3:6, 3:6] = 0
    expected[0:2, 7:10][shape] = 3
    expected[7:10, 8:10] = 1
    np.testing.assert_array_equal(data.load(0).target.numpy(), expected)


def test_supervisely_takes_the_chosen_data_sets_with_those_within(tmp_path: Path) -> None:
    one = (4, 4, [sly_object("car", "rectangle", [(0, 0), (1, 1)])])
    config = sly_tree(tmp_path, dict.fromkeys(("train/a.png", "train/datasets/inner/b.png", "val/c.png"), one))
    assert [build_dataset(config | {"folders": f}).__len__() for f in (None, ["train"], ["val"])] == [3, 2, 1]


# -- CVAT ----------------------------------------------------------------------------------------------------------------


def element(name: str, /, **attributes: Any) -> str:
    return f"<{name} {' '.join(f'{key}={quoteattr(str(value))}' for key, value in attributes.items())}>\n</{name}>"


def cvat_polygon(label: str, points: Any, z_order: int = 0, kind: str = "polygon", **more: Any) -> str:
    text = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return element(kind, label=label, source="manual", occluded=0, points=text, z_order=z_order, **more)


def cvat_mask(label: str, mask: Any, left: int, top: int, z_order: int = 0) -> str:
    flat = mask.ravel().astype(np.int8)
    ends = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    counts = np.diff(np.concatenate([[0], ends])).tolist()
    return element(
        *("mask",), label=label, source="manual", occluded=0, rle=str(counts)[1:-1], left=left, top=top,
        width=mask.shape[1], height=mask.shape[0], z_order=z_order,
    )  # fmt: skip


META = """<version>1.1</version>
<meta><job><id>7</id><mode>{mode}</mode><labels>
<label><name>car</name><color>#ff0000</color><type>any</type><attributes></attributes></label>
<label><name>road</name><color>#00ff00</color><type>polygon</type><attributes>
<attribute><name>wet</name><input_type>checkbox</input_type></attribute></attributes></label>
<label><name>tree</name><color>#0000ff</color><type>mask</type><attributes></attributes></label>
</labels>{size}</job><dumped>2026-11-30 12:00:00.000000+00:00</dumped></meta>
"""


def cvat_tree(root: Path, images: dict[str, tuple[int, int, list[str]]], **attributes: str) -> dict[str, Any]:
    """An export "CVAT for images 1.1": for each image its height, width and shapes."""
    text = ""
    for i, (name, (height, width, shapes)) in enumerate(images.items()):
        picture(root / "images" / name, height, width)
        first = element("image", id=i, name=name, **attributes, width=width, height=height)
        text += first.replace("</image>", "\n".join(shapes) + "</image>\n")
    xml = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{META.format(mode="annotation", size="")}{text}</annotations>\n'
    (root / "annotations.xml").write_text(xml, encoding="utf-8")
    return {"name": "cvat_xml", "root": str(root)}


def test_cvat_draws_polygons_as_pycocotools_and_ellipses_as_opencv_do(tmp_path: Path) -> None:
    masks = {}
    trees: dict[str, tuple[int, int, list[str]]] = {}
    for i, (height, width, points, _, expected) in enumerate(RECORDED["polygons"]):
        trees[f"p{i:03d}.png"] = (height, width, [cvat_polygon("car", points)])
        masks[f"p{i:03d}.png"] = bits(expected, height, width)
    for i, (height, width, x, y, rx, ry, turn, expected) in enumerate(RECORDED["ellipses"]):
        numbers = {"cx": f"{x:.2f}", "cy": f"{y:.2f}", "rx": f"{rx:.2f}", "ry": f"{ry:.2f}", "rotation": f"{turn:.2f}"}
        trees[f"e{i:03d}.png"] = (height, width, [element("ellipse", label="car", **numbers, z_order=0)])
        masks[f"e{i:03d}.png"] = bits(expected, height, width)
    data = build_dataset(cvat_tree(tmp_path, trees))
    assert data.palette == ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
    assert len(data) == len(masks)
    for i in range(len(data)):
        name = data.files(i)[0].name
        np.testing.assert_array_equal(data.load(i).target.numpy(), masks[name], err_msg=name)


def test_cvat_takes_masks_row_by_row_boxes_and_the_order_of_z(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 1], [1, 0, 1]], bool)
    box = element("box", label="car", xtl="0.00", ytl="0.00", xbr="4.00", ybr="3.00", z_order=2)
    below = cvat_polygon("road", [(0, 0), (9, 0), (9, 2), (0, 2)], z_order=1)
    shapes = [cvat_mask("tree", mask, 3, 1, z_order=3), box, below, element("tag", label="car", source="manual")]
    data = build_dataset(cvat_tree(tmp_path, {"sub/a.png": (6, 9, shapes)}))
    expected = np.zeros((6, 9), np.uint8)
    expected[:2] = 2
    expected[:3, :4] = 1
    expected[1:3, 3:6][mask] = 3
    np.testing.assert_array_equal(data.load(0).target.numpy(), expected)


def test_a_turned_box_of_cvat_is_the_polygon_of_its_turned_corners(tmp_path: Path) -> None:
    turned = element("box", label="car", xtl="2.00", ytl="4.00", xbr="12.00", ybr="8.00", rotation="30.00", z_order=0)
    corners = np.array([(2, 4), (12, 4), (12, 8), (2, 8)]) - (7, 6)
    angle = np.radians(30)
    x = corners[:, 0] * np.cos(angle) - corners[:, 1] * np.sin(angle) + 7
    y = corners[:, 0] * np.sin(angle) + corners[:, 1] * np.cos(angle) + 6
    polygon = cvat_polygon("car", zip(x, y, strict=True))
    data = build_dataset(cvat_tree(tmp_path, {"a.png": (14, 16, [turned]), "b.png": (14, 16, [polygon])}))
    found = data.load(0).target
    assert 30 < int(found.sum()) < 50
    assert found.equal(data.load(1).target)


def test_frames_of_a_video_are_samples_where_they_are_images(tmp_path: Path) -> None:
    square = [(0, 0), (2, 0), (2, 2), (0, 2)]
    for frame in range(4):
        picture(tmp_path / "images" / f"frame_{frame:06d}.PNG", 4, 6)
    shapes = "".join(
        cvat_polygon("", [(x + f, y) for x, y in square], frame=f, keyframe=int(f == 0), outside=int(f == 2))
        for f in range(3)
    )
    track = f'<track id="0" label="car" source="manual">{shapes}</track>'
    size = "<original_size><width>6</width><height>4</height></original_size>"
    xml = f"<annotations>{META.format(mode='interpolation', size=size)}{track}</annotations>"
    (tmp_path / "annotations.xml").write_text(xml, encoding="utf-8")
    data = build_dataset({"name": "cvat_xml", "root": str(tmp_path)})
    assert [data.files(i)[0].name for i in range(len(data))] == [f"frame_{f:06d}.PNG" for f in range(4)]
    assert [data.load(i).target[0].tolist() for i in range(4)] == [
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0] * 6,
        [0] * 6,
    ]
