"""CamVid as the SegNet tutorial lays it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_trees import real
from PIL import Image

from classyseg.config import ConfigError
from classyseg.datasets import CamVid


def test_a_split_is_a_folder_and_its_annotations(tmp_path: Path) -> None:
    for folder, array in (("val", np.zeros((6, 8, 3), np.uint8)), ("valannot", np.full((6, 8), 11, np.uint8))):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "0001.png")
    dataset = CamVid(split="val", root=str(tmp_path))
    assert (len(dataset), dataset.num_classes, dataset.ignore_index, len(dataset.palette)) == (1, 11, 11, 11)
    assert dataset[0].target.unique().tolist() == [11]


@pytest.mark.parametrize("present", [["train"], ["trainannot"], []])
def test_a_missing_folder_of_a_split_is_named(present: list[str], tmp_path: Path) -> None:
    for name in present:
        (tmp_path / name).mkdir()
    missing = "train" if "train" not in present else "trainannot"
    with pytest.raises(ConfigError, match=rf"^root.*{tmp_path}/{missing}.*no such"):
        CamVid(split="train", root=str(tmp_path))


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101), ("test", 233)])
def test_the_real_camvid_is_whole(split: Any, count: int) -> None:
    dataset = CamVid(split=split, root=str(real("camvid")))
    assert len(dataset) == count
    for index in range(0, count, 25):
        assert tuple(dataset[index].image.shape) == (3, 360, 480)
