"""Hooks that remember and ask to stop: a plugin's early stopping ends as a finished run does, and resumes exactly."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from registered import forgotten
from torch import Tensor

from classyseg import distributed
from classyseg.config import ConfigError
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.registry import HOOKS, TASKS
from classyseg.tasks import ClassyTask, SegmentationTask, build_task
from classyseg.trainer import Stopped, Trainer
from runs import SignalAt, in_two_processes, read_records, tiny_config, tiny_task

SMALL = {
    "num_epochs": 6,
    "dataset.train.num_samples": 16,
    "dataset.train.size": [16, 16],
    "dataset.val.num_samples": 1,
}
FIRST_IS_BEST = {"name": "stop_early", "number": "step"}
"""Steps grow, and the smallest is best: no phase is better than the first."""


class StopEarly(ClassyHook):
    """Ends a run when `number` of what is measured has not become smaller for `patience` phases."""

    def __init__(self, *, number: str = "loss", patience: int = 2) -> None:
        self.number, self.patience = number, patience
        self.lowest: float | None = None
        self.waited = 0

    def on_phase_end(self, task: WatchedTask) -> None:
        if task.metrics["phase"] == "train":
            return
        value = task.metrics[self.number]
        better = self.lowest is None or value < self.lowest
        self.lowest, self.waited = (value, 0) if better else (self.lowest, self.waited + 1)
        if self.waited >= self.patience:
            task.request_stop(f"{self.number} has not fallen for {self.patience} phases")

    def state(self) -> dict[str, Any]:
        return {"best": self.lowest, "waited": self.waited}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.lowest, self.waited = state["best"], state["waited"]


class StopAt(ClassyHook):
    """Asks at one training step; with `process`, in that one alone."""

    def __init__(self, *, step: int, process: int | None = None) -> None:
        self.step, self.process = step, process

    def on_step(self, task: WatchedTask) -> None:
        if task.progress.step == self.step and self.process in (None, distributed.rank()):
            task.request_stop("enough")


class StopAtStart(ClassyHook):
    """Asks before the first phase."""

    def on_start(self, task: WatchedTask) -> None:
        task.request_stop("enough")


@contextmanager
def plugin_hooks() -> Iterator[None]:
    with forgotten(HOOKS, TASKS):
        HOOKS.register("stop_early")(StopEarly)
        HOOKS.register("stop_at")(StopAt)
        yield


@pytest.fixture(autouse=True)
def own_hooks() -> Iterator[None]:
    with plugin_hooks():
        yield


def run(folder: Path, hooks: list[Any], *others: ClassyHook, resume: bool = False, **changes: Any) -> ClassyTask:
    task = tiny_task({**SMALL, **changes, "hooks": hooks}, *others)
    Trainer(folder, resume=resume).train(task)
    return task


def phases(folder: Path) -> list[tuple[bool, int, int]]:
    """Of each phase whether it trained, its epoch and step."""
    records = read_records(folder / "metrics.jsonl")
    return [(record["phase"] == "train", record["epoch"], record["step"]) for record in records]


def assert_same_run(found: Path, expected: Path) -> None:
    assert read_records(found / "metrics.jsonl") == read_records(expected / "metrics.jsonl")
    names = [(run / "checkpoints" / "LATEST").read_text() for run in (found, expected)]
    assert names[0] == names[1]
    folders = [run / "checkpoints" / names[0] for run in (found, expected)]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    states = [json.loads((folder / "state.json").read_text()) for folder in folders]
    assert [states[0][key] for key in ("hooks", "stop")] == [states[1][key] for key in ("hooks", "stop")]


def test_a_run_that_a_hook_ends_is_a_finished_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path, [{"name": "checkpoint", "every_epochs": 2}, FIRST_IS_BEST])
    assert phases(tmp_path)[-2:] == [(True, 3, 6), (False, 3, 6)]
    assert "the training ends after step 6: step has not fallen for 2 phases" in caplog.text
    state = json.loads((tmp_path / "checkpoints/step-6/state.json").read_text())  # though epoch 3 is not a second one
    assert state["hooks"] == {"stop_early": {"best": 2, "waited": 2}}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    records = read_records(tmp_path / "metrics.jsonl")
    run(tmp_path, [{"name": "checkpoint", "every_epochs": 2}, FIRST_IS_BEST], resume=True)
    assert read_records(tmp_path / "metrics.jsonl") == records
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("hooks", "killed_at"),
    [
        ([{"name": "checkpoint", "best": "loss"}, FIRST_IS_BEST], ("train", 2, 1)),
        ([{"name": "stop_at", "step": 5}, "checkpoint"], ("train", 2, 1)),  # in the step that asks to stop
        ([{"name": "checkpoint", "every_steps": 1}, {"name": "stop_at", "step": 5}], ("train", 1, 2)),
    ],
    ids=["patience", "the same step", "saved in the step"],
)
def test_a_killed_and_resumed_run_ends_as_one_that_went_through(
    hooks: list[Any], killed_at: tuple[str, int, int], tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, hooks)
    with pytest.raises(Stopped):
        run(broken, hooks, SignalAt(*killed_at))
    run(broken, hooks, resume=True)
    assert_same_run(broken, whole)


def test_a_training_that_ends_within_an_epoch_is_measured_and_stays_ended(tmp_path: Path) -> None:
    hooks = [{"name": "stop_at", "step": 3}, "checkpoint"]
    task = run(tmp_path, hooks)
    assert phases(tmp_path) == [(True, 1, 2), (False, 1, 2), (True, 2, 3), (False, 2, 3)]
    assert read_records(tmp_path / "metrics.jsonl")[2]["loss"] == pytest.approx(task.last_loss.item())
    assert run(tmp_path, hooks, resume=True).progress.step == 3
    assert len(phases(tmp_path)) == 4


class GatheringTask(SegmentationTask):
    """Its tensors are spread over the processes, as those of sharded training are."""

    def checkpoint_tensors(self) -> dict[str, dict[str, Tensor]]:
        gathered = distributed.gather_over_processes(torch.tensor([10 + distributed.rank()]))
        return {**super().checkpoint_tensors(), "shards": {"gathered": gathered}}


def two_processes(folder: Path) -> None:
    with plugin_hooks():
        TASKS.register("gathering")(GatheringTask)
        config = tiny_config({**SMALL, "name": "gathering"})
        hooks = [{"name": "checkpoint", "every_steps": 1}, FIRST_IS_BEST]
        for name, stop in (("whole", []), ("broken", [SignalAt("train", 1, 1)]), ("broken", [])):
            task = build_task({**config, "hooks": hooks})
            task.hooks = [*task.hooks, *stop]
            try:
                Trainer(folder / name, resume=(folder / name).exists()).train(task)
            except Stopped:
                assert stop
        Trainer(folder / "one_asks").train(
            build_task({**config, "hooks": [{"name": "stop_at", "step": 3, "process": 1}, "checkpoint"]})
        )


def test_two_processes_gather_what_they_save_and_end_at_the_same_step(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    in_two_processes(two_processes, tmp_path)
    assert phases(tmp_path / "whole")[-1][1:] == (3, 6)
    assert_same_run(tmp_path / "broken", tmp_path / "whole")
    saved = load_file(tmp_path / "whole/checkpoints/step-6/shards.safetensors")
    assert saved["gathered"].tolist() == [[10], [11]]
    assert phases(tmp_path / "one_asks")[-1][1:] == (2, 3)
    state = json.loads((tmp_path / "one_asks/checkpoints/step-3/state.json").read_text())
    assert state["stop"] == "enough"


# -- other hooks than before -----------------------------------------------------------------------------------------


def test_the_log_tells_of_hooks_that_a_checkpoint_does_not_know_or_knows_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, [FIRST_IS_BEST, {**FIRST_IS_BEST, "patience": 5}], SignalAt("train", 1, 1))
    state = json.loads((tmp_path / "checkpoints/step-3/state.json").read_text())
    assert state["hooks"] == {name: {"best": 2, "waited": 0} for name in ("stop_early", "stop_early 2")}
    with caplog.at_level(logging.INFO):
        run(tmp_path, [{**FIRST_IS_BEST, "patience": 5}], NamelessHook(), resume=True)
    assert "remembers hooks that this run does not have: stop_early 2" in caplog.text
    assert "holds nothing of the hook 'NamelessHook', which begins anew" in caplog.text


class NamelessHook(ClassyHook):
    def state(self) -> dict[str, Any]:
        return {"seen": 1}


class NoJsonHook(ClassyHook):
    def state(self) -> dict[str, Any]:
        return {"loss": torch.ones(())}


def test_a_state_that_cannot_be_saved_names_the_hook(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'NoJsonHook'.*`state`.*JSON"):
        run(tmp_path, ["checkpoint"], NoJsonHook(), num_epochs=1)


@pytest.mark.parametrize("state", [{"stop_early": {"best": 1}}, {"stop_early": 3}, [1]])
def test_a_saved_state_that_is_none_is_one_error_that_names_the_file(state: Any, tmp_path: Path) -> None:
    from classyseg.checkpoint import Checkpoint
    from classyseg.tasks.resume import load_hooks

    with pytest.raises(ConfigError, match=r"step-3/state\.json.*hooks.*earlier checkpoint"):
        load_hooks([StopEarly()], Checkpoint(tmp_path / "step-3", {}, {"hooks": state}))


def test_a_run_that_is_asked_to_stop_at_its_start_is_still_measured(tmp_path: Path) -> None:
    run(tmp_path / "new", [], StopAtStart())
    assert phases(tmp_path / "new") == [(False, 0, 0)]
    with pytest.raises(Stopped):
        run(tmp_path / "old", ["checkpoint"], SignalAt("train", 0, 1))
    test = {"dataset.test": tiny_config(SMALL)["dataset"]["val"]}
    run(tmp_path / "old", ["checkpoint"], StopAtStart(), resume=True, **test)
    records = read_records(tmp_path / "old" / "metrics.jsonl")
    assert [(record["phase"], record["step"]) for record in records] == [("train", 1), ("val", 1), ("test", 1)]


def test_a_run_that_a_hook_ended_stays_ended_whatever_its_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, ["checkpoint", {"name": "stop_at", "step": 1}])
    before = phases(tmp_path)
    with caplog.at_level(logging.INFO):
        run(tmp_path, ["checkpoint", {"name": "stop_at", "step": 1}], resume=True, num_epochs=8)
    assert phases(tmp_path) == before
    assert "it stays ended: enough" in caplog.text
    assert "goes on" not in caplog.text
