"""What every registered task holds, plugins' included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from teachers import save_teacher

from classyseg.registry import TASKS
from classyseg.tasks import ClassyTask, build_task
from classyseg.trainer import Stopped, Trainer
from config_contract import assert_keeps_the_config_contract
from runs import Sees, SignalAt, kind_of_task, read_records, tiny_config, tiny_config_of

SMALL = {"num_epochs": 1, "hooks": ["checkpoint"]}
TWO_STEPS = {
    "masks": {"dataset.train.num_samples": 16, "dataset.val.num_samples": 1},
    "whole images": {"dataset.train.num_samples": 16, "dataset.val.num_samples": 1},
    "clips": {"dataset.train.num_videos": 16, "dataset.val.num_videos": 1},
}


def config_of(name: str, folder: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A tiny config of a task, with what only that one needs."""
    own: dict[str, Any] = {}
    if "unlabelled" in TASKS.config_model(name).model_fields:
        own["unlabelled"] = {"strong": ["color_jitter"], "threshold": 0.3}
        changes = {**(changes or {}), "dataset.unlabelled": tiny_config()["dataset"]["train"]}
    if "teacher" in TASKS.config_model(name).model_fields:
        own["teacher"] = {"weights": str(save_teacher(folder / "teacher"))}
    if "start" in TASKS.config_model(name).model_fields:
        model = tiny_config_of(name)["model"]
        source = save_teacher(folder / "start", heads=model["heads"], backbone={**model, "heads": {}})
        own["start"] = {"weights": str(source), "reset_heads": ["*"]}
    return {**tiny_config_of(name, changes), **own}


@pytest.mark.parametrize("name", TASKS.names())
def test_every_task_keeps_the_config_contract(name: str, tmp_path: Path) -> None:
    assert_keeps_the_config_contract("tasks", **config_of(name, tmp_path))


@pytest.mark.parametrize("name", TASKS.names())
def test_a_task_trains_measures_and_goes_on_as_if_it_had_not_been_stopped(name: str, tmp_path: Path) -> None:
    def task(*hooks: Any) -> ClassyTask:
        built: ClassyTask = build_task(config_of(name, tmp_path, {**SMALL, **TWO_STEPS[kind_of_task(name)]}))
        built.hooks = [*built.hooks, *hooks]
        return built

    sees = Sees()
    whole, stopped, resumed = task(sees), task(SignalAt("train", 0, 1)), task()
    before = {key: value.clone() for key, value in whole.model.state_dict().items()}
    Trainer(tmp_path / "whole").train(whole)
    with pytest.raises(Stopped):
        Trainer(tmp_path / "stopped").train(stopped)
    Trainer(tmp_path / "stopped", resume=True).train(resumed)

    train, val = records = read_records(tmp_path / "whole/metrics.jsonl")
    assert (train["phase"], val["phase"], train["step"]) == ("train", "val", 2)
    assert read_records(tmp_path / "stopped/metrics.jsonl") == records
    after = whole.model.state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in after.items())
    assert [key for key, value in resumed.model.state_dict().items() if not torch.equal(value, after[key])] == []
    assert (tmp_path / "whole/model/config.json").is_file()
    ((phase, batch, prediction),) = sees.shown
    size = batch.target.shape[1:] if kind_of_task(name) == "masks" else (len(whole.labels.classes),)
    assert (phase, prediction.shape, batch.image.dtype) == ("val", (1, *size), torch.uint8)
