"""Samples with rare classes come several times in an epoch: LVIS's factors, exact counts, one length of all epochs."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from classyseg import TASKS, ConfigError, Trainer, build_task
from classyseg.config import DataError
from classyseg.datasets import TrainOrder, build_dataset
from classyseg.datasets.class_counts import class_counts
from classyseg.datasets.repeat_factor import RepeatFactor, repeat_factors
from classyseg.io import read_json_lines
from classyseg.tasks import SegmentationTask
from runs import tiny_config

CLASSES = ["background", "common", "rare", "absent"]
NUM = 24
CHANGES = [{"name": "random_crop", "size": [16, 16]}, "color_jitter"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLASSYSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CLASSYSEG_DATA", str(tmp_path))


@pytest.fixture
def masks(tmp_path: Path) -> np.ndarray[Any, Any]:
    """The masks of a folder of images: `common` is in a half, `rare` in two, and 255 is ignored."""
    random = np.random.default_rng(0)
    found = np.zeros((NUM, 20, 20), dtype=np.uint8)
    found[::2, 2:5, 2 : 2 + 7] = 1
    found[[3, 4], 10:12, 10:15] = 2
    found[:, -1] = 255
    for folder in ("images", "masks"):
        (tmp_path / "shapes" / folder).mkdir(parents=True)
    for i, mask in enumerate(found):
        image = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "shapes/images" / f"{i:02}.png")
        Image.fromarray(mask).save(tmp_path / "shapes/masks" / f"{i:02}.png")
    return found


def folder(**changes: Any) -> dict[str, Any]:
    places = {"images": "shapes/images", "masks": "shapes/masks", "classes": CLASSES}
    return {"name": "folder", **places, "transforms": CHANGES, **changes}


def repeated(threshold: float = 0.5, seed: int = 0, **options: Any) -> RepeatFactor:
    found = build_dataset({"name": "repeat_factor", "threshold": threshold, "dataset": folder(), **options})
    assert isinstance(found, RepeatFactor)
    found.seed = seed
    return found


def detectron2(classes_of_images: list[set[int]], threshold: float) -> list[float]:
    """`RepeatFactorTrainingSampler.repeat_factors_from_category_frequency` of detectron2, in its own steps."""
    frequency: Counter[int] = Counter()
    for classes in classes_of_images:
        frequency.update(classes)
    share = {label: count / len(classes_of_images) for label, count in frequency.items()}
    category = {label: max(1.0, (threshold / f) ** 0.5) for label, f in share.items()}
    return [max({category[label] for label in classes}, default=1.0) for classes in classes_of_images]


def in_epoch(data: RepeatFactor, epoch: int) -> list[str]:
    """The names of all samples of an epoch."""
    return [Path(data.sample(i, epoch).name).name for i in range(len(data))]


def test_factors_are_those_of_lvis(masks: np.ndarray[Any, Any]) -> None:
    of_images = [set(np.unique(mask).tolist()) - {255} for mask in masks]
    for threshold in (0.05, 0.5, 1.0):
        assert repeated(threshold).factors.tolist() == pytest.approx(detectron2(of_images, threshold))
    without_background = [classes - {0} for classes in of_images]  # an image may have no class
    counts = np.array([[int((mask == label).sum()) for label in range(4)] for mask in masks])
    counts[:, 0] = 0
    assert repeat_factors(counts, 0.5)[0].tolist() == pytest.approx(detectron2(without_background, 0.5))


def test_factors_by_pixels_and_the_options_that_bound_them(masks: np.ndarray[Any, Any]) -> None:
    labelled = sum((mask != 255).sum() for mask in masks)
    of_rare = (0.5 / ((masks == 2).sum() / labelled)) ** 0.5
    of_common = (0.5 / ((masks == 1).sum() / labelled)) ** 0.5
    factors = repeated(by="pixels").factors
    assert factors[[3, 4]].tolist() == pytest.approx([of_rare] * 2)
    assert factors[[0, 1]].tolist() == pytest.approx([of_common, 1])
    assert repeated(by="pixels", max_factor=1.5).factors.max() == 1.5
    assert repeated(1.0, min_pixels=11).factors[3] == 1  # `rare` has ten pixels in an image


def test_each_epoch_has_every_sample_as_often_as_its_factor_rounded_down_or_up(masks: np.ndarray[Any, Any]) -> None:
    data = repeated(by="pixels")  # a half of the samples has a factor of 2.7, two have one of 14.7
    factors, total = data.factors, np.zeros(NUM)
    for epoch in range(20):
        counts = np.bincount([data.located(i, epoch)[1] for i in range(len(data))], minlength=NUM)
        beyond = counts - np.ceil(factors)
        assert (counts >= np.floor(factors)).all()
        assert beyond.max() <= 1
        assert (beyond > 0).sum() <= 1  # the place that is left over where the sum of factors is no whole number
        total += counts
    assert len(data) == np.ceil(factors.sum())
    assert np.abs(total / 20 - factors).max() < 0.4


def test_samples_drawn_for_an_epoch_are_drawn_with_their_shares(masks: np.ndarray[Any, Any]) -> None:
    data = repeated(by="pixels")
    shares, counts = data.factors % 1, np.zeros(NUM)
    for epoch in range(1000):
        for i in range(int(np.floor(data.factors).sum()), len(data)):
            repetition, sample = data.located(i, epoch)
            counts[sample] += repetition == int(data.factors[sample])
    deviation = np.sqrt(1000 * shares * (1 - shares))
    assert (np.abs(counts - 1000 * shares) <= 3.5 * deviation).all()
    assert counts.sum() == pytest.approx(1000 * shares.sum(), abs=60)


def test_repetitions_are_augmented_in_different_ways_and_all_is_a_function_of_seed_epoch_and_index(
    masks: np.ndarray[Any, Any],
) -> None:
    data, other, elsewhere = repeated(1.0, seed=3), repeated(1.0, seed=3), repeated(1.0, seed=4)
    names = in_epoch(data, 5)
    thrice = [i for i, name in enumerate(names) if name == "03.png"]
    assert len(thrice) >= 3
    images = [data.sample(i, 5).image for i in thrice]
    assert not any(torch.equal(images[i], images[j]) for i in range(len(images)) for j in range(i))
    for i in reversed(range(len(data))):  # in another order, from another object
        assert torch.equal(other.sample(i, 5).image, data.sample(i, 5).image)
    assert any(not torch.equal(elsewhere.sample(i, 5).image, data.sample(i, 5).image) for i in range(NUM))


def test_counts_are_read_once_and_again_when_a_file_changes(
    masks: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [[int((mask == label).sum()) for label in range(4)] for mask in masks]
    data, settings = build_dataset(folder()), {"images": "shapes/images"}
    assert class_counts(data, settings).tolist() == expected
    read: list[int] = []
    whole = type(data).load_target
    monkeypatch.setattr(type(data), "load_target", lambda self, i: read.append(i) or whole(self, i))
    assert class_counts(data, settings).tolist() == expected
    assert not read
    assert class_counts(data, {"images": "other"}).tolist() == expected
    assert len(read) == NUM
    path = tmp_path / "shapes/masks/01.png"
    Image.fromarray(np.full((20, 20), 3, dtype=np.uint8)).save(path)
    os.utime(path, (1, 1))
    assert class_counts(data, settings)[1].tolist() == [0, 0, 0, 400]
    for damaged in (tmp_path / "cache/class_counts").glob("*.safetensors"):
        damaged.write_bytes(b"no tensors")
    assert class_counts(data, settings)[1].tolist() == [0, 0, 0, 400]


def test_a_cache_that_cannot_be_written_stops_nothing(
    masks: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("CLASSYSEG_CACHE", str(tmp_path / "a file"))
    assert len(repeated()) > NUM
    assert "not kept" in caplog.text


def test_a_mask_that_cannot_be_read_is_told_and_is_an_error_at_its_turn(
    masks: np.ndarray[Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "shapes/masks/05.png").write_bytes(b"no image")
    data = repeated()
    assert "1 samples cannot be counted" in caplog.text
    assert "05.png" in caplog.text
    assert data.factors[5] == 1
    with pytest.raises(DataError, match=r"05\.png"):
        in_epoch(data, 0)


def test_whole_images_and_data_sets_of_data_sets_are_counted_too(masks: np.ndarray[Any, Any]) -> None:
    images = {"name": "synthetic_shape_images", "split": "train", "num_samples": 12}
    flat = build_dataset({"name": "repeat_factor", "threshold": 1.0, "dataset": images})
    labels = [int(build_dataset(images).load(i).target) for i in range(12)]
    assert isinstance(flat, RepeatFactor)
    assert flat.factors.tolist() == pytest.approx(detectron2([{label} for label in labels], 1.0))
    first = {"name": "subset", "first": 6, "dataset": folder()}
    twice = {"name": "concat", "datasets": [first, first]}
    both = build_dataset({"name": "repeat_factor", "threshold": 1.0, "dataset": twice})
    of_images = [set(np.unique(mask).tolist()) - {255} for mask in masks[:6]] * 2
    assert isinstance(both, RepeatFactor)
    assert both.factors.tolist() == pytest.approx(detectron2(of_images, 1.0))
    names = [Path(both.sample(i, 0).name).name for i in range(len(both))]
    assert set(names) == {f"{i:02}.png" for i in range(6)}


def test_clips_that_stay_together_cannot_be_repeated() -> None:
    clips = {"name": "synthetic_video", "split": "test", "clips": {"frames": 2, "per_video": 2}}
    with pytest.raises(ConfigError, match=r"dataset.*groups of 2"):
        build_dataset({"name": "repeat_factor", "threshold": 0.5, "dataset": clips})


def test_what_is_measured_cannot_be_repeated(masks: np.ndarray[Any, Any]) -> None:
    repeats = {"name": "repeat_factor", "threshold": 0.5, "dataset": folder()}
    for val in (repeats, {"name": "subset", "first": 2, "dataset": repeats}):
        config = tiny_config({"dataset": {"train": folder(), "val": val}})
        for check in (build_task, lambda found: SegmentationTask.check(TASKS.validate(found))):
            with pytest.raises(ConfigError, match=r"dataset\.val: repeats samples"):
                check(config)


def run_config(steps: int) -> dict[str, Any]:
    train = {"name": "repeat_factor", "threshold": 0.5, "dataset": folder()}
    config = tiny_config({"dataset": {"train": train}, "num_steps": steps, "batch_size": 4, "meters": []})
    return {key: value for key, value in config.items() if key not in ("num_epochs", "val_every_epochs")}


def test_a_run_knows_the_length_of_its_epochs_and_goes_on_where_it_was_stopped(
    masks: np.ndarray[Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    task = build_task(run_config(12))
    assert task.steps_per_epoch == int(np.ceil(repeated().factors.sum())) // 4
    Trainer(tmp_path / "whole").train(task)
    assert "rare 2.45" in caplog.text  # sqrt(0.5 / (2 / 24))
    Trainer(tmp_path / "parts").train(build_task(run_config(7)))
    Trainer(tmp_path / "parts", resume=True).train(build_task(run_config(12)))
    runs = [list(read_json_lines(tmp_path / name / "metrics.jsonl"))[-1] for name in ("whole", "parts")]
    assert runs[0]["step"] == runs[1]["step"] == 12
    assert runs[0]["loss"] == runs[1]["loss"]


def test_processes_share_the_batches_of_one(masks: np.ndarray[Any, Any]) -> None:
    data = repeated()
    whole = [key for batch in TrainOrder(len(data), 4, seed=1) for key in batch]
    orders = [TrainOrder(len(data), 4, seed=1, rank=rank, world_size=2) for rank in (0, 1)]
    shares = [[key for batch in order for key in batch] for order in orders]
    assert sorted(whole) == sorted(shares[0] + shares[1])
    names = [data.sample(index, epoch).name for epoch, index in whole]
    again = repeated()
    assert sorted(names) == sorted(again.sample(i, e).name for share in shares for e, i in share)
