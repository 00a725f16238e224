"""ADE20K: label 0 is ignored, 1 to 150 are the classes, and predictions go back to 1 to 150."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from label_trees import image, mask, real, rows

from classyseg.config import ConfigError, DataError
from classyseg.datasets import ADE20K
from classyseg.meters import build_meter


def tree(root: Path, *values: int, folder: str = "training") -> Path:
    image(root / "images" / folder / "ADE_1.jpg")
    mask(root / "annotations" / folder / "ADE_1.png", *values)
    return root


@pytest.mark.parametrize(("split", "folder"), [("train", "training"), ("val", "validation")])
def test_labels_are_one_less_and_0_is_ignored(tmp_path: Path, split: str, folder: str) -> None:
    data = ADE20K(split=split, root=str(tree(tmp_path, 0, 1, 2, 150, folder=folder)))  # type: ignore[arg-type]
    assert rows(data[0].target)[:4] == [255, 0, 1, 149]
    assert (data.num_classes, len(data.palette), data.ignore_index) == (150, 150, 255)


def test_a_prediction_is_submitted_as_the_value_in_the_files(tmp_path: Path) -> None:
    values = np.arange(150)
    submitted = ADE20K(split="train", root=str(tree(tmp_path, 1))).submission(torch.from_numpy(values))
    assert submitted.dtype == np.uint8
    assert submitted.tolist() == list(range(1, 151))


def test_a_value_above_150_is_named_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"training/ADE_1.png.*values 151, 255 .*0 to 150"):
        ADE20K(split="train", root=str(tree(tmp_path, 1, 151, 255)))[0]


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^root.*images/validation.*no such"):
        ADE20K(split="val", root=str(tree(tmp_path, 1)))


def test_the_real_labels_against_themselves_give_15_of_150_classes() -> None:
    data = ADE20K(split="val", root=str(real("ade20k_sample") / "ADEChallengeData2016"))
    assert len(data) == 3
    meter = build_meter({"name": "mean_iou", "absent": "zero"}, data.classes, data.ignore_index)
    for i in range(3):
        target = data[i].target[::4, ::4].long()
        logits = torch.nn.functional.one_hot(target.clamp(max=149), 150).permute(2, 0, 1)[None].float()
        meter.update(logits, target[None])
    computed = meter.compute()
    assert computed["mean_iou"] == pytest.approx(15 / 150)
    assert computed["pixel_accuracy"] == 1


def test_names_are_the_first_ones_of_the_benchmarks_own_list() -> None:
    lines = (real("ade20k_sample") / "ADEChallengeData2016" / "objectInfo150.txt").read_text("utf-8").splitlines()[1:]
    assert ADE20K.classes == tuple(line.split("\t")[4].split(",")[0].strip() for line in lines)
