"""YOLO's polygons as tools export them: parts that are not there, CVAT's names, boxes among outlines, key points."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_trees import picture, yolo_tree

from classyseg.config import ConfigError, DataError
from classyseg.datasets import build_dataset
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.annotations.yolo_polygons import found_in

TRIANGLE = "0 0.1 0.1 0.9 0.1 0.5 0.9\n"
BOX = "1 0.5 0.5 0.5 0.25\n"


def tree(root: Path, yaml: str, parts: tuple[str, ...] = ("train", "val"), lines: str = TRIANGLE) -> dict[str, Any]:
    """An image with its label file in each part, and `data.yaml`."""
    for part in parts:
        picture(root / "images" / part / f"{part}.png", 16, 20)
        (root / "labels" / part).mkdir(parents=True)
        (root / "labels" / part / f"{part}.txt").write_text(lines, encoding="utf-8")
    (root / "data.yaml").write_text(f"names: [car, road]\n{yaml}", encoding="utf-8")
    return {"name": "yolo_polygons", "root": str(root)}


def found(root: Path) -> Found:
    answer = found_in(root)
    assert answer is not None
    return answer


# -- parts -------------------------------------------------------------------------------------------------------------

ROBOFLOW = "train: ../images/train\nval: ../images/val\ntest: ../images/test\n"


def test_a_test_part_that_is_not_there_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tree(tmp_path, ROBOFLOW)
    answer = found(tmp_path)
    assert (answer.sure, answer.num_images, [*answer.parts]) == (0.95, 2, ["train", "val"])
    assert "its 'test' is '../images/test', which is not in" in answer.notes[0]
    with caplog.at_level(logging.WARNING):
        assert len(build_dataset(config)) == 2
    assert "its 'test' is '../images/test'" in caplog.text
    with pytest.raises(DataError, match=r"data\.yaml: its 'test' is '\.\./images/test', which is not in"):
        build_dataset({**config, "split": "test"})


def test_a_test_part_that_is_there_is_taken(tmp_path: Path) -> None:
    config = tree(tmp_path, ROBOFLOW, ("train", "val", "test"))
    answer = found(tmp_path)
    assert ([*answer.parts], answer.notes) == (["train", "val", "test"], ())
    assert len(build_dataset(config)) == 3


@pytest.mark.parametrize("there", ["train", "val"])
def test_train_or_val_that_is_not_there_is_an_error_that_the_recognition_tells(tmp_path: Path, there: str) -> None:
    config = tree(tmp_path, ROBOFLOW, (there, "test"))
    with pytest.raises(DataError, match=r"data\.yaml: its '(train|val)' is .* which is not in"):
        build_dataset(config)
    answer = found(tmp_path)
    assert answer.sure == 0.5
    assert "but: its '" in answer.why
    assert "which is not in" in answer.why


def cvat(root: Path, prefix: str) -> dict[str, Any]:
    """The recorded tree as CVAT ("Ultralytics YOLO Segmentation 1.0") writes it: the subset's name is the key."""
    yolo_tree(root)
    for folder in ("images", "labels"):
        (root / folder / "train").rename(root / folder / "Train")
    for subset, images in (("Train", "ab"), ("Validation", "c")):
        names = "".join(f"{prefix}images/Train/{name}.png\n" for name in images)
        (root / f"{subset}.txt").write_text(names, encoding="utf-8")
    yaml = "Train: Train.txt\nValidation: Validation.txt\nnames:\n  0: car\n  1: road\n  2: tree\npath: .\n"
    (root / "data.yaml").write_text(yaml, encoding="utf-8")
    return {"name": "yolo_polygons", "root": str(root)}


@pytest.mark.parametrize("prefix", ["data/", "", "./"])
def test_the_names_of_cvats_subsets_are_parts_and_its_data_folder_may_be_missing(tmp_path: Path, prefix: str) -> None:
    plain = build_dataset(yolo_tree(tmp_path / "plain"))
    config = cvat(tmp_path / "cvat", prefix)
    answer = found(tmp_path / "cvat")
    assert (answer.sure, answer.parts) == (0.95, {"train": {"split": "train"}, "val": {"split": "val"}})
    parts = [build_dataset({**config, "split": part}) for part in ("train", "val")]
    assert [len(part) for part in parts] == [2, 1]
    targets = [part[i].target for part in parts for i in range(len(part))]
    assert all(target.equal(plain[i].target) for i, target in enumerate(targets))


def test_a_path_with_data_before_it_that_is_there_is_taken_as_it_stands(tmp_path: Path) -> None:
    config = tree(tmp_path, "train: train.txt\n", ("train",))
    picture(tmp_path / "data/images/train/train.png", 4, 4)
    (tmp_path / "train.txt").write_text("data/images/train/train.png\nimages/train/train.png\n", encoding="utf-8")
    assert [build_dataset(config).files(i)[0].relative_to(tmp_path).parts[0] for i in range(2)] == ["data", "images"]
    (tmp_path / "train.txt").write_text("data/images/train/gone.png\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"has no file for 1 of its 1 images: data/images/train/gone\.png"):
        build_dataset(config)


@pytest.mark.parametrize("more", ["val_split: 0.2", "val_split: random", "train: images/train\nTraining: gone"])
def test_other_keys_with_the_word_of_a_part_name_no_images(tmp_path: Path, more: str) -> None:
    config = tree(tmp_path, more if "train:" in more else f"train: images/train\n{more}", ("train",))
    assert len(build_dataset(config)) == 1
    assert [*found(tmp_path).parts] == ["train"]


# -- lines that are no outlines ----------------------------------------------------------------------------------------


def test_boxes_among_outlines_are_counted_and_an_error_unless_they_are_to_be_drawn(tmp_path: Path) -> None:
    config = tree(tmp_path, "train: images/train\n", ("train",), TRIANGLE + BOX)
    answer = found(tmp_path)
    assert 0.5 < answer.sure < 0.95
    assert "1 of the 2 lines looked at are boxes" in answer.why
    assert "boxes: draw" in answer.why
    with pytest.raises(DataError, match=r"train\.txt: line 2: is a box of 4 numbers.*boxes: draw"):
        build_dataset(config)[0]
    (tmp_path / "labels/train/train.txt").write_text(BOX, encoding="utf-8")
    target = build_dataset({**config, "boxes": "draw"})[0].target.numpy()
    expected = np.zeros((16, 20), int)
    expected[6:11, 5:16] = 2  # x 5 to 15, y 6 to 10: `cv2.fillPoly` paints its border, too
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize(
    ("lines", "told"),
    [(BOX, "boxes, not outlines"), (f"{TRIANGLE}0 0.5 0.5 0.5 0.5 3\n", r"train\.txt: line 2: has 5 numbers after")],
)
def test_label_files_without_outlines_are_told_where_a_yaml_says_that_they_are_of_yolo(
    tmp_path: Path, lines: str, told: str
) -> None:
    tree(tmp_path, "train: images/train\n", ("train",), lines)
    answer = found(tmp_path)
    assert answer.sure <= 0.5
    assert answer.why.count("data.yaml") == 1
    assert re.search(told, answer.why)


def test_key_points_are_refused_with_a_sentence(tmp_path: Path) -> None:
    pose = "0 0.5 0.5 0.2 0.2 0.4 0.4 0.6 0.6\n"  # a box and two points: as many words as a polygon has
    config = tree(tmp_path, "train: images/train\nkpt_shape: [2, 2]\n", ("train",), pose)
    with pytest.raises(DataError, match=r"data\.yaml: it has kpt_shape.* key points \(pose\), not outlines"):
        build_dataset(config)
    answer = found(tmp_path)
    assert answer.sure < 0.5
    assert "key points (pose), not outlines" in answer.why


@pytest.mark.parametrize(
    ("yaml", "told"),
    [
        ("train: images/train\nnames: {0: car, 2: road}\n", "its 'names' has the numbers"),
        ("train: 7\nnames: [car]\n", "its 'train' is 7"),
    ],
)
def test_a_yaml_that_cannot_be_read_is_told_where_it_is_clearly_of_yolo(tmp_path: Path, yaml: str, told: str) -> None:
    config = tree(tmp_path, "", ("train",))
    (tmp_path / "data.yaml").write_text(yaml, encoding="utf-8")
    with pytest.raises(ConfigError, match=told):
        build_dataset(config)
    answer = found(tmp_path)
    assert (answer.sure, told in answer.why) == (0.5, True)


@pytest.mark.parametrize("yaml", ["train: images/train\n", "names: [car]\n", "a: [", "task: {name: x}\n"])
def test_another_yaml_is_none_of_yolo(tmp_path: Path, yaml: str) -> None:
    (tmp_path / "data.yaml").write_text(yaml, encoding="utf-8")
    assert found_in(tmp_path) is None


def test_a_file_that_can_be_read_goes_before_one_that_cannot(tmp_path: Path) -> None:
    tree(tmp_path, "train: images/train\n", ("train",))
    (tmp_path / "a.yaml").write_text("names: [car]\ntrain: gone\n", encoding="utf-8")
    assert (found(tmp_path).sure, found(tmp_path).config["data"]) == (0.95, "data.yaml")
