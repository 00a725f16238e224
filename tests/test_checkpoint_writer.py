"""Checkpoints that a thread writes while the run goes on are those that the run would have written itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from classyseg.checkpoint import checkpoint_folders, load_checkpoint, newest_checkpoint
from classyseg.checkpoint_writer import CheckpointWriter
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.stopping import Stopped
from classyseg.trainer import Trainer
from runs import SignalAt, read_records, tiny_task

CHANGES: dict[str, Any] = {
    "num_epochs": 2,
    "batch_size": 4,
    "dataset.train.num_samples": 16,
    "dataset.train.size": [16, 16],
    "dataset.val.num_samples": 2,
    "dataset.val.size": [16, 16],
    "optimizer.name": "adamw",
}


def hooks(asynchronous: bool) -> dict[str, Any]:
    options = {"every_steps": 1, "keep": 9, "best": "mean_iou", "asynchronous": asynchronous}
    return {**CHANGES, "hooks": [{"name": "checkpoint", **options}, {"name": "log", "every": 1}]}


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file takes longer than a step."""
    keep = os.fsync

    def fsync(descriptor: Any) -> None:
        if threading.current_thread().name == "checkpoint":
            time.sleep(0.03)
        keep(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def files(run: Path) -> dict[str, bytes]:
    """The tensors of all checkpoints, and the pointers to them."""
    paths = [*run.glob("checkpoints/step-*/*.safetensors"), run / "checkpoints/LATEST", run / "checkpoints/BEST"]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


class Overlaps(ClassyHook):
    """How many checkpoints were still being written when a step ended."""

    def __init__(self) -> None:
        self.count = 0

    def on_step(self, task: WatchedTask) -> None:
        self.count += any(thread.name == "checkpoint" for thread in threading.enumerate())


@pytest.fixture(scope="module")
def written_at_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("at once")
    Trainer(run).train(tiny_task(hooks(asynchronous=False)))
    return run


@pytest.mark.usefixtures("slow_disk")
def test_what_a_thread_writes_during_the_next_steps_is_the_run_at_the_save(
    written_at_once: Path, tmp_path: Path
) -> None:
    overlaps = Overlaps()
    Trainer(tmp_path).train(tiny_task(hooks(asynchronous=True), overlaps))

    assert overlaps.count > 4
    assert files(tmp_path) == files(written_at_once)
    assert len(checkpoint_folders(tmp_path / "checkpoints")) == 8
    for folder in checkpoint_folders(tmp_path / "checkpoints"):
        state = load_checkpoint(folder).state
        expected = load_checkpoint(written_at_once / "checkpoints" / folder.name).state
        assert {**state, "config": None} == {**expected, "config": None}
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]


@pytest.mark.usefixtures("slow_disk")
def test_a_signal_waits_for_the_thread_and_the_resumed_run_is_the_same(written_at_once: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped) as stopped:
        Trainer(tmp_path).train(tiny_task(hooks(asynchronous=True), SignalAt("train", 0, 3, signal.SIGTERM)))

    assert stopped.value.exit_code == 143
    assert newest_checkpoint(tmp_path / "checkpoints") == (tmp_path / "checkpoints/step-3", [])
    assert (tmp_path / "checkpoints/LATEST").read_text() == "step-3"
    Trainer(tmp_path, resume=True).train(tiny_task(hooks(asynchronous=True)))
    assert files(tmp_path) == files(written_at_once)
    for name in ("metrics.jsonl", "steps.jsonl"):
        assert read_records(tmp_path / name) == read_records(written_at_once / name)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_signal_in_the_middle_of_a_save_ends_the_run_with_that_checkpoint(
    asynchronous: bool, written_at_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, asked = os.fsync, [False]

    def fsync(descriptor: Any) -> None:
        if not asked[0] and list(tmp_path.glob("checkpoints/step-3.tmp-*")):
            asked[0] = True
            os.kill(os.getpid(), signal.SIGTERM)  # the main thread gets it, also from another one
            time.sleep(0.05)
        keep(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Stopped):
        Trainer(tmp_path).train(tiny_task(hooks(asynchronous)))

    newest, problems = newest_checkpoint(tmp_path / "checkpoints")
    assert problems == []
    assert newest is not None
    assert newest.name == f"step-{read_records(tmp_path / 'steps.jsonl')[-1]['step']}"
    assert asked == [True]
    Trainer(tmp_path, resume=True).train(tiny_task(hooks(asynchronous)))
    assert files(tmp_path) == files(written_at_once)


def test_at_most_one_is_written_at_a_time_and_an_error_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, at_work, most = CheckpointWriter(), [0], [0]
    keep = os.fsync

    def fsync(descriptor: Any) -> None:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        time.sleep(0.005)
        at_work[0] -= 1
        keep(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    values = torch.zeros(3)
    for step in range(4):
        values.fill_(step)
        writer.write(tmp_path, step, {"model": {"x": values}}, {"numbers": [step]})
    writer.wait()
    assert most == [1]
    assert [load_checkpoint(tmp_path / f"step-{i}").tensors["model"]["x"].tolist() for i in range(4)] == [
        [float(i)] * 3 for i in range(4)
    ]

    (tmp_path / "file").touch()
    writer.write(tmp_path / "file", 7, {"model": {"x": values}}, {})
    error = writer.take_error()
    assert error is not None
    assert error.step == 7
    assert writer.take_error() is None


@pytest.mark.gpu
def test_weights_on_a_gpu_may_change_right_after_the_save(tmp_path: Path) -> None:
    writer, values = CheckpointWriter(), torch.zeros(1_000_000, device="cuda")
    for step in range(4):
        values.fill_(step)
        writer.write(tmp_path, step, {"model": {"x": values}}, {})
        values.fill_(-1)
    writer.wait()

    for step in range(4):
        assert (load_checkpoint(tmp_path / f"step-{step}").tensors["model"]["x"] == step).all()


def test_the_state_is_that_of_the_save_although_hooks_change_what_they_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, given, go_on = CheckpointWriter(), [1], threading.Event()
    keep = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (go_on.wait(10), keep(descriptor))[1])

    folder = writer.write(tmp_path, 1, {"model": {"x": torch.ones(1)}}, {"hooks": {"mine": given}})
    given.append(2)
    done: list[str] = []
    writer.afterwards(lambda: done.append(threading.current_thread().name))
    assert not folder.exists()
    go_on.set()
    writer.wait()
    writer.afterwards(lambda: done.append(threading.current_thread().name))

    assert load_checkpoint(folder).state["hooks"] == {"mine": [1]}
    assert done == ["checkpoint", threading.main_thread().name]
