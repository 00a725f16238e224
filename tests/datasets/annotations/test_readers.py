"""What every reader of annotated objects does alike: facts, caches, parts, and shapes without an area."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from annotation_trees import RECORDED_TREES, cvat_polygon, cvat_tree, labelme_tree, sly_object, sly_tree

from classyseg.datasets import build_dataset
from classyseg.datasets.build import facts_of
from classyseg.errors import ConfigError
from classyseg.registry import DATASETS

NAMES = ["coco_json", "cvat_xml", "labelme", "supervisely", "yolo_polygons"]
LINE = [(0, 2), (8, 2)]


@pytest.mark.parametrize("name", NAMES)
def test_a_config_tells_its_classes_without_a_file_and_leaves_them_open_where_files_tell_them(name: str) -> None:
    config = {"name": name, "root": "nowhere"} | ({"annotations": "a.json"} if name == "coco_json" else {})
    assert facts_of(DATASETS.validate(config, placed=True)).classes is None
    named = {**config, "classes": {"vehicle": ["car", "truck"], "road": ["road"]}, "ignore_index": 9}
    facts = facts_of(DATASETS.validate(named, placed=True))
    assert (facts.classes, facts.ignore_index) == (("background", "vehicle", "road"), 9)
    facts = facts_of(DATASETS.validate({**named, "background": None}, placed=True))
    assert facts.classes == ("vehicle", "road")


@pytest.mark.parametrize("name", RECORDED_TREES)
def test_drawn_masks_are_cached_until_the_annotations_change(tmp_path: Path, name: str) -> None:
    config = RECORDED_TREES[name](tmp_path) | {"cache_samples": str(tmp_path / "cache")}
    first = build_dataset(config)[0].target
    stored = list((tmp_path / "cache").rglob("*"))
    assert build_dataset(config)[0].target.equal(first)
    assert list((tmp_path / "cache").rglob("*")) == stored
    data = build_dataset(config)
    file = data.files(0)[1]
    file.write_bytes(file.read_bytes() + b"\n")
    data[0]
    assert len(list((tmp_path / "cache").rglob("*"))) > len(stored)


def part_of(config: dict[str, Any], part: str, seed: int) -> set[Path]:
    """The images of a part of 2 folds; none where chance puts none there."""
    try:
        data = build_dataset(config | {"split": {"part": part, "folds": 2, "fold": 0, "seed": seed, "by": "file"}})
    except ConfigError as error:
        if "chance put none there" not in str(error):
            raise
        return set()
    return {data.files(i)[0] for i in range(len(data))}


@pytest.mark.parametrize("name", RECORDED_TREES)
def test_parts_of_the_images_are_complements(tmp_path: Path, name: str) -> None:
    config = RECORDED_TREES[name](tmp_path)
    whole = build_dataset({**config, "split": None})
    every = {whole.files(i)[0] for i in range(len(whole))}
    drawn = [(part_of(config, "train", seed), part_of(config, "val", seed)) for seed in range(4)]
    assert all(train | val == every and not train & val for train, val in drawn)
    assert any(train and val for train, val in drawn)
    with pytest.raises(ConfigError, match=r"^split: found '?nothing"):
        build_dataset(config | {"split": "nothing"})


def lined(name: str, root: Path) -> dict[str, Any]:
    """A tree with a line of the label `car` in an image of 6 x 9."""
    if name == "supervisely":
        return sly_tree(root, {"ds/a.png": (6, 9, [sly_object("car", "line", LINE)])})
    if name == "cvat_xml":
        return cvat_tree(root, {"a.png": (6, 9, [cvat_polygon("car", LINE, kind="polyline")])})
    config = labelme_tree(root)
    for file in (root / "b.json", root / "c.json"):
        file.unlink()
    contents = json.loads((root / "a.json").read_text("utf-8"))
    contents["shapes"] = [{"label": "car", "points": [*map(list, LINE)], "shape_type": "linestrip"}]
    (root / "a.json").write_text(json.dumps(contents), encoding="utf-8")
    return config


@pytest.mark.parametrize("name", ["labelme", "supervisely", "cvat_xml"])
def test_lines_are_drawn_as_wide_as_the_config_says_or_left_out(tmp_path: Path, name: str) -> None:
    config = lined(name, tmp_path)
    drawn = build_dataset(config | {"line_width": 3})[0].target
    assert drawn[1:4, :8].eq(1).all()
    assert not drawn[4:].any()
    assert not build_dataset(config | {"line_width": 0})[0].target.any()


def test_an_image_that_lies_in_the_file_of_labelme_is_read_from_there(tmp_path: Path) -> None:
    config = labelme_tree(tmp_path)
    expected = {Path(str(s.name)).stem: s for s in (build_dataset(config)[i] for i in range(3))}
    contents = json.loads((tmp_path / "a.json").read_text("utf-8"))
    contents["imageData"] = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    (tmp_path / "a.json").write_text(json.dumps(contents), encoding="utf-8")
    (tmp_path / "a.png").unlink()
    data = build_dataset(config)
    (index,) = [i for i in range(3) if data.files(i) == (tmp_path / "a.json",)]
    assert data[index].image.equal(expected["a"].image)
    assert data[index].target.equal(expected["a"].target)
