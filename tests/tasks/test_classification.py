"""The tasks of whole images and of clips from end to end: mixing, measuring, resuming, several processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from classyseg.config import ConfigError
from classyseg.registry import TASKS
from classyseg.tasks import ClassyTask, build_task
from classyseg.trainer import Stopped, Trainer
from runs import SignalAt, in_two_processes, read_records, tiny_config, tiny_config_of

SOFT = {"name": "soft_target_cross_entropy", "label_smoothing": 0.1}
MIXING = {"mix_up": 0.4, "cut_mix": 1.0, "mode": "element", "probability": 0.9}
NAMES = ("classification", "video_classification")


def config(name: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Images with group norm, so that the number of images at once changes nothing; of a size that gives it values."""
    sizes = {"dataset.train.size": [64, 64], "dataset.val.size": [64, 64]}
    norm = {"model.norm": {"name": "group"}, **sizes} if name == "classification" else {}
    return tiny_config_of(name, {"num_epochs": 2, "loss": SOFT, "hooks": ["checkpoint"], **norm, **(changes or {})})


def trained(
    folder: Path, name: str, changes: Mapping[str, Any] | None = None, *hooks: Any, resume: bool = False
) -> ClassyTask:
    task = build_task(config(name, {"mixing": MIXING, **(changes or {})}))
    task.hooks = [*task.hooks, *hooks]
    Trainer(folder, resume=resume).train(task)
    return task


def train_here(folder: Path) -> None:
    for name in NAMES:
        trained(folder / name / "two", name)


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_records(folder / "metrics.jsonl")]


def test_mixed_batches_are_the_same_in_parts_and_on_two_processes(tmp_path: Path) -> None:
    in_two_processes(train_here, tmp_path)
    for name in NAMES:
        trained(tmp_path / name / "one", name)
        assert losses(tmp_path / name / "one") == pytest.approx(losses(tmp_path / name / "two"), rel=1e-4)
    trained(tmp_path / "parts", "classification", {"runtime.accumulate_steps": 2})
    Trainer(tmp_path / "plain").train(build_task(config("classification")))
    one = losses(tmp_path / "classification/one")
    parts = losses(tmp_path / "parts")
    assert one[0] == pytest.approx(parts[0], rel=1e-6)
    assert one == pytest.approx(parts, rel=1e-4)  # rounding grows with the steps: 1.3e-5 on AVX2
    assert one != pytest.approx(losses(tmp_path / "plain"), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_mixing_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", name)
    with pytest.raises(Stopped):
        trained(tmp_path / "stopped", name, None, SignalAt("train", 0, 1))
    resumed = trained(tmp_path / "stopped", name, resume=True)
    assert read_records(tmp_path / "stopped/metrics.jsonl") == read_records(tmp_path / "whole/metrics.jsonl")
    after = resumed.model.state_dict()
    assert [key for key, value in whole.model.state_dict().items() if not torch.equal(value, after[key])] == []


def check(changes: Mapping[str, Any]) -> None:
    checked = TASKS.validate(config("classification", changes))
    checked.component.check(checked)  # type: ignore[attr-defined]


@pytest.mark.parametrize("build", [check, lambda changes: build_task(config("classification", changes))])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"name": "cross_entropy"}}, r"mixing: gives shares .* 'soft_target_cross_entropy'"),
        ({"batch_size": 7}, r"batch_size: found 7; .* a multiple of 2"),
        ({"runtime.cache_features": "cache", "model.frozen": True}, r"mixing: found together with .*cache_features"),
        ({"mixing": {}}, r"mixing: found .*; give mix_up or cut_mix above 0"),
        ({"mixing": {"mixup": 1.0}}, r"mixing\.mixup: .*mix_up"),
    ],
)
def test_what_mixing_cannot_work_with_is_refused_by_name(build: Any, changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"mixing": MIXING, **changes})


SEVERAL = {"name": "synthetic_shape_images", "split": "train", "num_samples": 16, "size": [16, 16], "multi_label": True}
ONE = {**SEVERAL, "multi_label": False}


@pytest.mark.parametrize("build", [check, lambda changes: build_task(config("classification", changes))])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"name": "cross_entropy"}}, r"loss: takes one class .* use 'binary_cross_entropy'"),
        ({"meters": ["mean_iou"]}, r"meters\[0\]: MeanIoUMeter counts one class of each image"),
        ({"dataset.val": ONE}, r"dataset\.val: has one class of each image; dataset\.train has several"),
        ({"dataset.train.max_shapes": 0}, r"dataset\.train\.max_shapes"),
        ({"loss.positive_weights": [1.0]}, r"loss\.positive_weights: found 1 weights for 3 classes"),
    ],
)
def test_several_classes_need_parts_that_take_them(build: Any, changes: Mapping[str, Any], message: str) -> None:
    given = {"dataset": {"train": SEVERAL, "val": SEVERAL}, "loss": {"name": "binary_cross_entropy"}}
    with pytest.raises(ConfigError, match=message):
        build({**given, "meters": ["average_precision"], **changes})


def test_a_meter_of_whole_images_is_refused_for_masks() -> None:
    checked = TASKS.validate(tiny_config({"meters": ["average_precision"]}))
    with pytest.raises(ConfigError, match=r"meters\[0\]: AveragePrecisionMeter counts whole images"):
        checked.component.check(checked)  # type: ignore[attr-defined]
