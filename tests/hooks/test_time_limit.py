"""A run that leaves in time is saved, and goes on later as if it had never stopped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from classyseg.cli.train import main as classy_train
from classyseg.config import ConfigError
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.trainer import Stopped, Trainer
from runs import in_two_processes, read_records, tiny_task, write_config

SMALL: dict[str, Any] = {"num_epochs": 2, "dataset.train.num_samples": 16, "dataset.val.num_samples": 3}
AT_ONCE = {"name": "time_limit", "minutes": 1e-9}
LATER = {"name": "time_limit", "minutes": 1e6}


def last_weights(folder: Path) -> bytes:
    return (folder / "checkpoints/step-4/model.safetensors").read_bytes()


def test_starts_of_one_batch_each_make_the_same_run(tmp_path: Path) -> None:
    Trainer(tmp_path / "whole").train(tiny_task({**SMALL, "hooks": [LATER, "checkpoint"]}))
    for _ in range(2):
        with pytest.raises(Stopped, match="minutes are over") as stopped:
            Trainer(tmp_path / "parts", resume=True).train(tiny_task({**SMALL, "hooks": [AT_ONCE, "checkpoint"]}))
        assert (stopped.value.exit_code, stopped.value.saved) == (143, True)
    assert (tmp_path / "parts/checkpoints/LATEST").read_text().strip() == "step-2"
    Trainer(tmp_path / "parts", resume=True).train(tiny_task({**SMALL, "hooks": [LATER, "checkpoint"]}))

    assert last_weights(tmp_path / "parts") == last_weights(tmp_path / "whole")
    assert read_records(tmp_path / "parts/metrics.jsonl") == read_records(tmp_path / "whole/metrics.jsonl")


def test_the_command_says_why_and_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, {**SMALL, "hooks": [AT_ONCE, "checkpoint"]})

    assert classy_train(["--config", str(config), "--output", str(tmp_path / "run")]) == 143
    told = capsys.readouterr().err
    assert "time_limit: 1e-09 minutes are over; a checkpoint is saved, --resume continues" in told


@pytest.mark.parametrize("minutes", [0, -1, "soon", float("inf"), float("nan")])
def test_minutes_are_a_positive_number(minutes: Any) -> None:
    with pytest.raises(ConfigError, match=r"hooks\[0\]\.minutes"):
        tiny_task({"hooks": [{"name": "time_limit", "minutes": minutes}]})


class PauseIn(ClassyHook):
    """Asks to pause at one training step, in one process."""

    def __init__(self, *, step: int, process: int) -> None:
        self.step, self.process = step, process

    def on_step(self, task: WatchedTask) -> None:
        if task.progress.step == self.step and torch.distributed.get_rank() == self.process:
            task.request_pause("minutes are over in one process")


def two_processes(folder: Path) -> None:
    logging.disable(logging.WARNING)
    with pytest.raises(Stopped, match="in one process") as stopped:
        Trainer(folder / "run").train(tiny_task({**SMALL, "hooks": ["checkpoint"]}, PauseIn(step=3, process=1)))
    assert stopped.value.exit_code == 143


def test_one_process_whose_time_is_over_pauses_all_at_the_same_step(tmp_path: Path) -> None:
    in_two_processes(two_processes, tmp_path)

    assert (tmp_path / "run/checkpoints/LATEST").read_text().strip() == "step-3"
