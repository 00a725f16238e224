"""Trees as each tool writes them read to the masks that the tool itself draws, pixel for pixel.

`goldens/annotations.json` has trees by labelme's own writer, pycocotools and Ultralytics' format, masks by their own
drawing, and what OpenCV and pycocotools draw of polygons and ellipses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from annotation_trees import (
    CLASSES,
    META,
    RECORDED,
    RECORDED_TREES,
    bitmap,
    bits,
    cvat_mask,
    cvat_polygon,
    cvat_tree,
    element,
    picture,
    sly_object,
    sly_tree,
    unpacked,
)

from classyseg.datasets import build_dataset


@pytest.mark.parametrize("name", RECORDED_TREES)
def test_a_tree_of_the_tool_reads_to_the_masks_that_the_tool_draws(tmp_path: Path, name: str) -> None:
    data = build_dataset(RECORDED_TREES[name](tmp_path))
    assert data.classes == CLASSES
    found = {data.files(i)[0].name: data.load(i).target.numpy() for i in range(len(data))}
    assert found.keys() == RECORDED["sizes"].keys()
    for image, mask in found.items():
        expected = unpacked(RECORDED[name]["masks"][image]).reshape(mask.shape)
        np.testing.assert_array_equal(mask, expected, err_msg=image)


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
