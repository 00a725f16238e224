"""Cityscapes: labelIds to 19 classes and back, in folders of cities, fine and coarse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_trees import image, mask, rows

from classyseg.config import ConfigError, DataError
from classyseg.datasets import Cityscapes

TRAIN_IDS = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, *range(6, 16), 255, 255, 16, 17, 18]
"""Of the labelIds 0 to 33, as PyTorch-Encoding's key has them (which begins at -1)."""


def frame(root: Path, split: str, name: str, *values: int, kind: str = "gtFine") -> None:
    city = name.partition("_")[0]
    image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
    mask(root / kind / split / city / f"{name}_{kind}_labelIds.png", *values)
    mask(root / kind / split / city / f"{name}_{kind}_instanceIds.png", 26001, dtype=np.uint16)
    (root / kind / split / city / f"{name}_{kind}_polygons.json").write_text("{}", encoding="utf-8")


def cityscapes(root: Path, **options: Any) -> Cityscapes:
    return Cityscapes(root=str(root), **{"split": "train", **options})


def test_every_label_id_has_the_class_of_the_benchmark(tmp_path: Path) -> None:
    found = []
    for first in range(0, 34, 6):
        frame(tmp_path, "train", f"bonn_{first:02d}", *range(first, min(first + 6, 34)))
    data = cityscapes(tmp_path)
    for i in range(len(data)):
        found += rows(data[i].target)
    assert found[:34] == TRAIN_IDS
    assert (data.num_classes, data.classes[13], data.palette[13]) == (19, "car", (0, 0, 142))


def test_a_prediction_goes_back_to_label_ids(tmp_path: Path) -> None:
    frame(tmp_path, "train", "bonn_1", 7)
    submitted = cityscapes(tmp_path).submission(torch.arange(19))
    assert [TRAIN_IDS[label_id] for label_id in submitted] == list(range(19))


def test_cities_are_searched_in_order_and_other_files_passed_over(tmp_path: Path) -> None:
    for name in ("ulm_1", "bonn_2", "bonn_1"):
        frame(tmp_path, "train", name, 7)
    frame(tmp_path, "val", "munster_1", 8)
    assert [pair[0].name[:6] for pair in cityscapes(tmp_path, split="trainval").pairs] == [
        "bonn_1",
        "bonn_2",
        "ulm_1_",
        "munste",
    ]
    assert len(cityscapes(tmp_path, split="val")) == 1


def test_coarse_annotations_have_a_folder_of_their_own(tmp_path: Path) -> None:
    frame(tmp_path, "train_extra", "ulm_1", 0, 26, kind="gtCoarse")
    data = cityscapes(tmp_path, split="train_extra", annotations="coarse")
    assert set(data[0].target.unique().tolist()) == {13, 255}
    with pytest.raises(ConfigError, match=r"annotations.*'fine'.*'train_extra'"):
        cityscapes(tmp_path, split="train_extra")


def test_a_value_that_is_no_label_id_is_named(tmp_path: Path) -> None:
    frame(tmp_path, "train", "bonn_1", 7, 34)
    with pytest.raises(DataError, match=r"bonn_1_gtFine_labelIds.png.*values 34 .*0 to 33"):
        cityscapes(tmp_path)[0]


def test_an_image_without_its_mask_is_named(tmp_path: Path) -> None:
    frame(tmp_path, "train", "bonn_1", 7)
    image(tmp_path / "leftImg8bit" / "train" / "ulm" / "ulm_9_leftImg8bit.png")
    with pytest.raises(DataError, match=r"gtFine/train.*1 of 2.*ulm_9_leftImg8bit.png"):
        cityscapes(tmp_path)


def test_coarse_annotations_of_images_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"annotations.*'coarse'.*'test'"):
        cityscapes(tmp_path, split="test", annotations="coarse")
