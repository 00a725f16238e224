"""Each reader recognises the folders of its own tool, and no other's; what it suggests builds the data set."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from annotation_trees import RECORDED_TREES, cvat_polygon, cvat_tree, sly_object, sly_tree

from classyseg.datasets import build_dataset
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.recognition.roles import part_named

SQUARE = [(1, 1), (6, 1), (6, 5), (1, 5)]


def sly(root: Path) -> dict[str, Any]:
    one = (8, 9, [sly_object("car", "polygon", SQUARE)])
    return sly_tree(root, dict.fromkeys(("train/a.png", "train/b.png", "val/c.png"), one))


def cvat(root: Path) -> dict[str, Any]:
    return cvat_tree(root, {"a.png": (8, 9, [cvat_polygon("car", SQUARE)])})


TREES: dict[str, Callable[[Path], dict[str, Any]]] = {**RECORDED_TREES, "supervisely": sly, "cvat_xml": cvat}


def found_in(name: str, folder: Path) -> Found | None:
    module = importlib.import_module(f"classyseg.datasets.annotations.{name}")
    found: Found | None = module.found_in(folder)
    return found


@pytest.mark.parametrize("name", TREES)
def test_a_folder_is_recognised_by_its_own_reader_alone_and_builds(tmp_path: Path, name: str) -> None:
    read = build_dataset(TREES[name](tmp_path))
    found = {other: found_in(other, tmp_path) for other in TREES}
    assert [other for other, each in found.items() if each is not None] == [name]
    own = found[name]
    assert own is not None
    assert (own.format, own.sure) == (name, 0.95)
    data = build_dataset({"name": name, **own.config})
    assert len(data) == own.num_images == len(read)
    assert data.classes == read.classes
    assert all(data[i].target.equal(read[i].target) for i in range(len(data)))


@pytest.mark.parametrize("name", TREES)
def test_an_empty_folder_and_one_of_images_are_not_recognised(tmp_path: Path, name: str) -> None:
    assert found_in(name, tmp_path) is None
    TREES[name](tmp_path / "tree")
    for path in list((tmp_path / "tree").rglob("*")):
        if path.suffix == ".png":
            shutil.move(path, tmp_path / path.name)
    shutil.rmtree(tmp_path / "tree")
    assert found_in(name, tmp_path) is None


def test_parts_that_the_files_name_are_told_apart(tmp_path: Path) -> None:
    sly(tmp_path / "sly")
    RECORDED_TREES["yolo_polygons"](tmp_path / "yolo")
    one, other = found_in("supervisely", tmp_path / "sly"), found_in("yolo_polygons", tmp_path / "yolo")
    assert one is not None
    assert other is not None
    assert one.parts == {"train": {"folders": ["train"]}, "val": {"folders": ["val"]}}
    assert other.parts == {"train": {"split": "train"}, "val": {"split": "val"}}
    assert [len(build_dataset({"name": "supervisely", **one.config, **keys})) for keys in one.parts.values()] == [2, 1]


def test_boxes_alone_are_not_taken_for_outlines(tmp_path: Path) -> None:
    RECORDED_TREES["yolo_polygons"](tmp_path)
    for path in (tmp_path / "labels/train").iterdir():
        path.write_text("0 0.5 0.5 0.2 0.2\n", encoding="utf-8")
    found = found_in("yolo_polygons", tmp_path)
    assert found is not None
    assert found.sure < 0.5
    assert "boxes, not outlines" in found.why


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("instances_train2017", "train"),
        ("valid", "val"),
        ("my-test", "test"),
        ("train_val", None),
        ("trainer", None),
        ("dev-set", "val"),
    ],
)
def test_the_name_of_a_part_is_found_in_words(text: str, part: str | None) -> None:
    assert part_named(text) == part
