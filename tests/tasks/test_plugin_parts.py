"""What a task makes of parts that are not its own: a plugin's head and layer, and parts that Python code built."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classyseg.config import ConfigError, load_config
from classyseg.datasets import build_dataset
from classyseg.heads import FCNHead
from classyseg.hooks import ClassyHook
from classyseg.meters import MeanIoUMeter
from classyseg.models import build_model
from classyseg.registry import HEADS, TASKS
from classyseg.tasks import ClassyTask, SegmentationTask, build_task
from classyseg.trainer import Trainer
from runs import read_records, tiny_config, tiny_task


def check(changes: Mapping[str, Any]) -> None:
    """What `--check` does."""
    SegmentationTask.check(TASKS.validate(tiny_config(changes)))


class HeadWithoutLogits(FCNHead):
    """A head that calls its logits otherwise."""

    def forward(self, features: Sequence[Tensor]) -> Any:
        return {"scores": super().forward(features)}


@pytest.fixture(autouse=True)
def own_head(own_registries: None) -> None:
    HEADS.register("test_without_logits")(HeadWithoutLogits)


@pytest.mark.parametrize("find", [check, tiny_task])
def test_a_head_without_logits_is_found_before_the_run(find: Callable[[Any], object]) -> None:
    head = {"name": "test_without_logits", "blocks": ["stage4"]}
    with pytest.raises(ConfigError, match=r"model\.heads\.main.*HeadWithoutLogits.*'scores'"):
        find({"model.heads.main": head})


# -- tasks that only measure -----------------------------------------------------------------------------------------


def only_measuring(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    config = tiny_config({"num_epochs": 0, **(changes or {})})
    del config["dataset"]["train"], config["optimizer"]
    return config


def test_without_epochs_there_is_no_need_of_a_training_set_nor_of_an_optimizer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with_all = tiny_task({"num_epochs": 0, "hooks": ["checkpoint"]})
    Trainer(tmp_path / "all").train(with_all)
    SegmentationTask.check(TASKS.validate(only_measuring()))
    task = build_task(only_measuring({"hooks": ["checkpoint"]}))
    Trainer(tmp_path / "bare").train(task)
    Trainer(tmp_path / "bare", resume=True).train(build_task(only_measuring({"hooks": ["checkpoint"]})))
    (expected,), (found,) = (read_records(tmp_path / name / "metrics.jsonl") for name in ("all", "bare"))
    assert found == {**expected, "lr": 0.0}
    assert 0 <= found["mean_iou"] <= 1


def test_a_training_set_smaller_than_a_batch_is_no_fault_of_a_task_that_only_measures() -> None:
    task = tiny_task({"num_epochs": 0, "dataset.train.num_samples": 3})
    Trainer().train(task)
    assert "mean_iou" in task.metrics


@pytest.mark.parametrize(
    ("num_epochs", "left_out", "message"),
    [
        (1, ["optimizer"], r"^optimizer: missing; a task that trains"),
        (1, ["optimizer", "train"], r"^dataset\.train: missing; .*\noptimizer: missing"),
        (0, ["train", "val"], r"^dataset: found neither train nor val"),
    ],
)
def test_what_a_task_cannot_do_without_is_named(num_epochs: int, left_out: Sequence[str], message: str) -> None:
    config = tiny_config({"num_epochs": num_epochs})
    for key in left_out:
        (config if key in config else config["dataset"]).pop(key)
    with pytest.raises(ConfigError, match=message):
        SegmentationTask.check(TASKS.validate(config))
    with pytest.raises(ConfigError, match=message):
        build_task(config)


# -- tasks that Python code made -------------------------------------------------------------------------------------


def arguments(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    config = tiny_config({"num_epochs": 1, "dataset.train.num_samples": 8, "hooks": ["checkpoint"], **(changes or {})})
    return {key: value for key, value in config.items() if key != "name"}


def test_a_task_made_in_python_writes_the_config_that_its_arguments_are(tmp_path: Path) -> None:
    """It is that of the same task from a mapping, and trains again from the file."""
    task = SegmentationTask(**arguments())
    assert task.config == build_task({"name": "segmentation", **arguments()}).config
    Trainer(tmp_path / "a").train(task)
    written = load_config(tmp_path / "a" / "config.yaml")
    assert written.values == task.config
    (state,) = (tmp_path / "a" / "checkpoints").glob("step-*/state.json")
    assert json.loads(state.read_text())["config"] == written.values
    Trainer(tmp_path / "b").train(build_task(written))
    records = [read_records(tmp_path / name / "metrics.jsonl") for name in ("a", "b")]
    assert records[0] == records[1]


class NamelessHook(ClassyHook):
    """A hook that nobody registered."""


@pytest.mark.parametrize("from_mapping", [False, True])
def test_what_a_config_cannot_describe_is_said_in_it_and_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, from_mapping: bool
) -> None:
    config = arguments({"hooks": ["checkpoint", NamelessHook()], "meters": [MeanIoUMeter(tuple("abcd"), 255)]})
    config["model"] = build_model(config["model"], 4)
    config["dataset"] = {"train": build_dataset(config["dataset"]["train"])}
    task: ClassyTask = (
        build_task({"name": "segmentation", **config}) if from_mapping else SegmentationTask(**config, seed=np.int64(3))
    )
    Trainer(tmp_path).train(task)
    written = load_config(tmp_path / "config.yaml").values
    assert written["model"] == "built in Python: AnyNet"
    assert written["dataset"]["train"] == "built in Python: SyntheticShapes"
    assert written["meters"] == ["built in Python: MeanIoUMeter"]
    assert written["hooks"][1] == "built in Python: NamelessHook"
    assert written["hooks"][0]["name"] == "checkpoint"
    assert written["optimizer"]["momentum"] == 0.9
    assert written["seed"] == (0 if from_mapping else 3)
    told = r"dataset\.train \(SyntheticShapes\), model \(AnyNet\), meters\[0\] \(MeanIoUMeter\), hooks\[1\] \(Name"
    assert re.search(told, caplog.text)
    Trainer(tmp_path, resume=True).train(task)
    with pytest.raises(ConfigError, match=r"model.*'built in Python: AnyNet'"):
        build_task(load_config(tmp_path / "config.yaml"))
