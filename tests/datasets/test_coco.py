"""COCO three ways: 21 classes drawn from instances, 171 from pixel maps, 133 from panoptic annotations."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_trees import colors, image, mask, real, rows

from classyseg.config import ConfigError, DataError
from classyseg.datasets import Coco, CocoPanoptic, CocoStuff
from classyseg.datasets.coco import CATEGORY_IDS, CLASS_OF_CATEGORY
from classyseg.datasets.coco_masks import annotation_mask, decoded_counts
from classyseg.datasets.coco_panoptic import segment_ids
from classyseg.datasets.label_map import label_table

LEFT = [0, 0, 4, 0, 4, 6, 0, 6]
"""The polygon of the left half of an image of 6 x 8."""


def instances(root: Path, *annotations: dict[str, Any], split: str = "val") -> Path:
    """A COCO of the images 1 and 2, which both have 6 x 8 pixels."""
    for number in (1, 2):
        image(root / f"{split}2017" / f"{number:012d}.jpg")
    described = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 6, "width": 8} for n in (1, 2)]
    path = root / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": described, "annotations": annotations}), encoding="utf-8")
    return path


def annotation(category: int, segmentation: Any = None, *, image_id: int = 1, **more: Any) -> dict[str, Any]:
    shown = [LEFT] if segmentation is None else segmentation
    return {"id": 7, "image_id": image_id, "category_id": category, "segmentation": shown, "iscrowd": 0, **more}


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
    with pytest.raises(ConfigError, match=r"min_pixels: found 25; no image of .*instances_val2017.json has so many"):
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
        with pytest.raises(
            ConfigError, match=r"^cache: .*val2017_crowd_label was drawn from another instances_val2017"
        ):
            coco(tmp_path)
    os.utime(instances(tmp_path, annotation(1)), ns=(1, 1))  # a copy
    assert len(coco(tmp_path)) == 2


def test_those_who_start_together_draw_one_cache(tmp_path: Path) -> None:
    instances(tmp_path, annotation(1))
    with ThreadPoolExecutor(4) as pool:  # a lock of a file is held against other threads, too
        assert list(pool.map(lambda _: len(coco(tmp_path)), range(4))) == [2] * 4
    assert len(list((tmp_path / "cache" / "val2017_crowd_label").iterdir())) == 3


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"counts": [1, 2], "size": [6, 8]}, r"annotation 7: its run lengths are of 3 pixels, not of 6 x 8"),
        ({"counts": [48], "size": [8, 6]}, r"annotation 7: its segmentation is neither polygons nor run lengths"),
        ("x", r"its segmentation is neither"),
        ([[1, 2, 3, 4]], r"a polygon of 4 numbers"),
        ([[1, 2, 3, 4, 1e9, 6]], r"a point far outside the image of 6 x 8"),
        ([[1, 2, 3, 4, float("nan"), 6]], r"a point far outside"),
    ],
    ids=["lengths", "size", "text", "polygon", "far", "nan"],
)
def test_a_wrong_annotation_is_named_and_leaves_nothing_behind(tmp_path: Path, segmentation: Any, message: str) -> None:
    instances(tmp_path, annotation(1, segmentation))
    with pytest.raises(DataError, match=rf"^/.*instances_val2017.json: 000000000001.jpg: .*{message}"):
        coco(tmp_path)
    assert [*(tmp_path / "cache").iterdir()] == []


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


def test_an_entry_without_a_key_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    for wrong, problem in [
        ({"category_id": 1}, "KeyError: 'image_id'"),
        (annotation(1, [["a", "b", "c", "d", "e", "f"]]), "ValueError: could not convert string to float"),
        (annotation(1, {"counts": [10.5, 37.5], "size": [6, 8]}), "ValueError: "),
    ]:
        instances(tmp_path, wrong)
        with pytest.raises(
            DataError, match=rf"instances_val2017.json: an entry is not as COCO's are \({re.escape(problem)}"
        ):
            coco(tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    instances(tmp_path, annotation(1))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^cache: .*cannot be written \(Not a directory\); set cache to a folder"):
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
    drawn = annotation_mask([polygon], 9, 11)
    assert drawn.sum() == area
    assert np.array_equal(drawn, annotation_mask({"counts": text, "size": [9, 11]}, 9, 11))


def test_the_polygons_of_an_annotation_are_joined() -> None:
    (first, *_), (second, *_) = POLYGONS[0], POLYGONS[2]
    joined = annotation_mask([first, second], 9, 11)
    assert np.array_equal(joined, annotation_mask([first], 9, 11) | annotation_mask([second], 9, 11))


def test_a_polygon_without_extent_is_empty() -> None:
    assert not annotation_mask([[3.0, 3.0, 3.0, 3.0, 3.0, 3.0]], 9, 11).any()


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
    with pytest.raises(DataError, match=r"train2017/a.png: .*the values 11 .*known: 0 to 10, 12 to 24, 26 to 27"):
        stuff(tmp_path, 0, 11)[0]


def panoptic(root: Path, *segments: tuple[int, int]) -> CocoPanoptic:
    """An image of the segments 0, 7 and 66051 = 3 + 256 * 2 + 65536 * 1."""
    image(root / "val2017" / "a.jpg")
    colors(root / "annotations" / "panoptic_val2017" / "a.png", (0, 0, 0), (7, 0, 0), (3, 2, 1))
    described = [{"id": number, "category_id": category, "iscrowd": 0} for number, category in segments]
    contents = {"annotations": [{"file_name": "a.png", "image_id": 1, "segments_info": described}]}
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(contents), encoding="utf-8")
    return CocoPanoptic(split="val", root=str(root))


def test_segments_become_their_categories(tmp_path: Path) -> None:
    data = panoptic(tmp_path, (7, 1), (66051, 200))
    assert rows(data[0].target)[:3] == [255, 0, 132]
    assert data.classes[132] == "rug-merged"
    assert data.submission(torch.tensor([0, 132])).tolist() == [1, 200]


def test_a_segment_without_a_category_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"panoptic_val2017/a.png: .*the values 66051 \(16 pixels\).*known: 0, 7$"):
        panoptic(tmp_path, (7, 1))[0]


def test_a_category_that_is_not_cocos_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"panoptic_val2017.json: holds the category 12, which is none of COCO's 133"):
        panoptic(tmp_path, (7, 12))


def test_real_segments_have_their_stated_areas_and_classes() -> None:
    root = real("coco_panoptic_sample")
    data = CocoPanoptic(split="val", root=str(root))
    described = json.loads((root / "annotations" / "panoptic_val2017.json").read_text("utf-8"))["annotations"]
    described.sort(key=lambda item: item["file_name"])
    assert [len(item["segments_info"]) for item in described] == [18, 32]
    for i, item in enumerate(described):
        ids = segment_ids(data.pairs[i][1])
        target = data[i].target
        areas: dict[int, int] = {}
        for segment in item["segments_info"]:
            assert (ids == segment["id"]).sum() == segment["area"]
            areas[segment["category_id"]] = areas.get(segment["category_id"], 0) + segment["area"]
        found = {
            data.submission_values[label]: int((target == label).sum()) for label in target.unique() if label < 133
        }
        assert found == areas


def test_the_panoptic_classes_are_cocos_own() -> None:
    path = real("coco_panoptic_sample") / "annotations" / "panoptic_coco_categories.json"
    own = json.loads(path.read_text("utf-8"))
    assert CocoPanoptic.submission_values == tuple(item["id"] for item in own)
    assert CocoPanoptic.classes == tuple(item["name"] for item in own)
    assert CocoPanoptic.palette == tuple(tuple(item["color"]) for item in own)
