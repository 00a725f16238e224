"""What a task makes of parts that are not its own: a plugin's head and layer, and parts that Python code built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.heads import FCNHead
from classyseg.registry import HEADS, TASKS
from classyseg.tasks import SegmentationTask, build_task
from classyseg.trainer import Trainer
from runs import read_records, tiny_config, tiny_task


def check(changes: Mapping[str, Any]) -> None:
    """What `--check` does."""
    SegmentationTask.check(TASKS.validate(tiny_config(changes)))


@HEADS.register("test_without_logits")
class HeadWithoutLogits(FCNHead):
    """A head that calls its logits otherwise."""

    def forward(self, features: Sequence[Tensor]) -> Any:
        return {"scores": super().forward(features)}


@pytest.mark.parametrize("find", [check, tiny_task])
def test_a_head_without_logits_is_found_before_the_run(find: Callable[[Any], object]) -> None:
    head = {"name": "test_without_logits", "blocks": ["stage4"]}
    with pytest.raises(ConfigError, match=r"model\.heads\.main: .* HeadWithoutLogits gives a mapping of 'scores'"):
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
        (0, ["train", "test"], r"^dataset: found neither train nor test"),
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
