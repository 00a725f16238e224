"""The record of training steps."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from classyseg.hooks import LogHook
from runs import FakeTask


def test_every_nth_training_step_is_recorded_and_no_test_batch(tmp_path: Path) -> None:
    hook, task = LogHook(every=4), FakeTask(tmp_path)

    task.steps(hook)
    task.end_phase(hook)
    task.steps(hook)
    task.end_phase(hook)
    task.steps(hook)

    records = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [(record["step"], record["epoch"]) for record in records] == [(4, 1), (8, 1), (12, 2), (16, 2), (20, 2)]
    assert records[0] == {
        "step": 4,
        "epoch": 1,
        "loss": 0.5,
        "lr": 0.1,
        "samples_per_second": 20.0,
        "data_wait": 0.25,
    }


def test_a_loss_that_is_no_number_is_recorded_as_null(tmp_path: Path) -> None:
    task = FakeTask(tmp_path)
    task.last_loss = torch.tensor(float("nan"))

    task.steps(LogHook(every=1), 1)

    assert json.loads((tmp_path / "steps.jsonl").read_text())["loss"] is None


def test_without_a_run_folder_nothing_is_written() -> None:
    FakeTask(None).steps(LogHook(every=1))
