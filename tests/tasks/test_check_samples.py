"""The look at a few samples before the first step: it refuses faults, logs what holds for all, and changes nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from classyseg.cli.train import main
from classyseg.config import DataError
from classyseg.datasets import SyntheticShapes, build_dataset
from classyseg.structures import Sample
from classyseg.tasks import classy_task
from classyseg.tasks.sample_checks import NUM_SAMPLES, check_samples
from classyseg.trainer import Trainer
from data_faults import FAULTS
from data_trees import COUNTS, data_sets, drawn_tree, pairs
from runs import tiny_task, write_config


def built(root: Path) -> dict[str, Any]:
    return {place.removeprefix("dataset."): build_dataset(config) for place, config in data_sets(root).items()}


def test_training_is_refused_before_its_first_step_with_the_line_that_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = drawn_tree(tmp_path / "data")
    FAULTS["masks_that_count_from_1"].plant(tree)
    config = write_config(tmp_path, dict(data_sets(tree)))

    assert main(["--config", str(config), "--output", str(tmp_path / "run")]) == 2

    error = capsys.readouterr().err
    assert "  dataset.train: label_map: {1: 0, 2: 1}\n" in error
    assert "  dataset.val: label_map: {1: 0, 2: 1}\n" in error
    assert "`classyseg data check CONFIG`" in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_one_sample_shows_is_refused_and_named(tmp_path: Path) -> None:
    tree = drawn_tree(tmp_path)
    file = FAULTS["a_mask_on_its_side"].plant(tree)
    with pytest.raises(DataError, match=rf"(?s)fault.*dataset\.train.*width .*{file}"):
        check_samples(built(tree))


def test_a_warning_that_holds_for_all_samples_is_logged_and_others_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = drawn_tree(tmp_path)
    FAULTS["a_black_image"].plant(tree)
    with caplog.at_level(logging.WARNING):
        check_samples(built(tree))
        assert caplog.text == ""
        for _, mask in pairs(tree, "val"):
            Image.fromarray(np.asarray(Image.open(mask)) * 0).save(mask)
        check_samples(built(tree))
    assert "warning: dataset.val: masks of one class alone: 4" in caplog.text
    assert "dataset.train" not in caplog.text


# -- masks of 0 and 255 where 255 is ignored -------------------------------------------------------------------------


def set_masks(root: Path, values: dict[int, list[int]], default: list[int]) -> None:
    """Stripes of `default` in every training mask, of `values` in those with these numbers."""
    for i, (_, mask) in enumerate(pairs(root)):
        shape = np.asarray(Image.open(mask)).shape
        found = np.array(values.get(i, default), np.uint8)
        Image.fromarray(found[np.zeros(shape, int) + np.arange(shape[1]) % len(found)]).save(mask)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_masks_of_0_and_255_end_a_training_whatever_is_done_with_bad_samples(policy: str, tmp_path: Path) -> None:
    tree = drawn_tree(tmp_path)
    set_masks(tree, {}, [0, 255])
    sets = built(tree)
    for dataset in sets.values():
        dataset.on_bad_sample = policy
    with pytest.raises(DataError, match=r"(?s)0 and 255 only.*00\.png.*dataset\.train.*label_map: {255: 1}"):
        check_samples(sets)


@pytest.mark.parametrize("shown", [[0, 1, 255], [1]], ids=["beside", "instead"])
def test_masks_whose_255_is_no_label_train_however_rare_the_second_class_is(
    shown: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = drawn_tree(tmp_path)
    looked_at = [i * COUNTS["train"] // NUM_SAMPLES for i in range(NUM_SAMPLES)]
    last = next(i for i in reversed(range(COUNTS["train"])) if i not in looked_at)
    set_masks(tree, {last: shown}, [0, 255])
    with caplog.at_level(logging.WARNING):
        check_samples(built(tree))
    mixed = "8 of 8 masks that were looked at hold 0 and 255, which is ignored, where the others hold 0 and 1"
    assert (mixed in caplog.text) == (255 not in shown)


def test_a_part_of_a_data_set_with_masks_of_0_and_255_ends_a_training(tmp_path: Path) -> None:
    sets = [data_sets(drawn_tree(tmp_path / name))["dataset.train"] for name in "ab"]
    set_masks(tmp_path / "b", {}, [0, 255])
    whole = build_dataset({"name": "concat", "datasets": sets})
    with pytest.raises(DataError, match=r"dataset\.train\.datasets\[1\]: label_map: {255: 1}"):
        check_samples({"train": whole})
    sets[1]["label_map"] = {255: 255}
    check_samples({"train": build_dataset({"name": "concat", "datasets": sets})})


def test_a_map_that_leaves_one_class_ends_a_training_unless_a_mask_or_a_part_has_another(tmp_path: Path) -> None:
    sets = {name: data_sets(drawn_tree(tmp_path / name))["dataset.train"] | {"label_map": {255: 0}} for name in "ab"}
    set_masks(tmp_path / "a", {}, [0, 255])
    train = build_dataset(sets["a"])
    with pytest.raises(DataError, match=r"dataset\.train.*label_map.*class 0, 'background'"):
        check_samples({"train": train})
    check_samples({"train": build_dataset({"name": "concat", "datasets": [*sets.values()]}), "val": train})
    set_masks(tmp_path / "a", {1: [1]}, [0, 255])  # which is none of the masks that are looked at first
    check_samples({"train": train})


def test_a_few_samples_are_read_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    load = SyntheticShapes.load

    def counted(self: SyntheticShapes, index: int) -> Sample:
        read.append(index)
        return load(self, index)

    monkeypatch.setattr(SyntheticShapes, "load", counted)
    check_samples({"train": SyntheticShapes(split="train", num_samples=1_000_000, size=(16, 16))})
    assert read == [i * 1_000_000 // NUM_SAMPLES for i in range(NUM_SAMPLES)]


def test_a_run_is_the_same_with_and_without_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> dict[str, Tensor]:
        task = tiny_task({"num_epochs": 1, "dataset.train.num_samples": 16, "dataset.val": None})
        Trainer().train(task)
        return task.model.state_dict()

    with_look = trained()
    monkeypatch.setattr(classy_task, "check_samples", lambda *_: None)
    without = trained()
    assert with_look
    assert all(torch.equal(with_look[key], without[key]) for key in without)


def test_a_data_set_that_lets_bad_samples_pass_is_not_refused_for_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = drawn_tree(tmp_path)
    FAULTS["masks_that_count_from_1"].plant(tree)
    sets = built(tree)
    for dataset in sets.values():
        dataset.on_bad_sample = "skip"
    check_samples(sets)
    assert "fault: dataset.train: the masks hold 1 to 2" in caplog.text  # for it holds for all
