"""The loop: its events in order, its end by signals and errors, and what it leaves behind."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from classyseg import stopping
from classyseg.checkpoint import checkpoint_folders, load_checkpoint, newest_checkpoint
from classyseg.cli.train import main
from classyseg.config import ConfigError
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.io import FolderLock
from classyseg.trainer import Stopped, Trainer
from runs import SignalAt, read_records, tiny_task, write_config

SMALL = {"num_epochs": 1, "dataset.train.num_samples": 16, "dataset.val.num_samples": 1}


DIVERGES = {"optimizer.lr": 1e6, "optimizer.weight_decay": 1e6}
"""Each step multiplies the weights by some -1e12."""


class Recorder(ClassyHook):
    """Writes down every event."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_start(self, task: WatchedTask) -> None:
        self.events.append("start")

    def on_phase_start(self, task: WatchedTask) -> None:
        self.events.append(f"{task.progress.phase} starts")

    def on_step(self, task: WatchedTask) -> None:
        self.events.append(f"{task.progress.phase} {task.progress.step_in_phase}/{task.num_batches}")

    def on_phase_end(self, task: WatchedTask) -> None:
        self.events.append(f"{task.metrics['phase']} ended")

    def on_end(self, task: WatchedTask) -> None:
        self.events.append("end")


def test_hooks_see_the_events_in_order() -> None:
    recorder = Recorder()

    Trainer().train(tiny_task(SMALL, recorder))

    train = ["train starts", "train 1/2", "train 2/2", "train ended"]
    assert recorder.events == ["start", *train, "val starts", "val 1/1", "val ended", "end"]


def test_the_record_of_a_phase_is_on_the_disk_before_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def remember(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.name == "metrics.jsonl":
            flushed.append(path.read_text(encoding="utf-8"))

    class Watch(ClassyHook):
        def on_phase_end(self, task: WatchedTask) -> None:
            assert flushed[-1] == (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")

    monkeypatch.setattr(os, "fsync", remember)
    Trainer(tmp_path).train(tiny_task(SMALL, Watch()))

    assert [text.count("\n") for text in flushed] == [1, 2]


def test_without_an_output_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    Trainer().train(tiny_task({**SMALL, "hooks": ["checkpoint", {"name": "log", "every": 1}]}))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_after_the_step_and_gives_back_the_handlers(number: int, code: int) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    recorder = Recorder()

    with pytest.raises(Stopped) as stopped:
        Trainer().train(tiny_task(SMALL, SignalAt("train", 0, 1, number), recorder))

    assert stopped.value.exit_code == code
    assert recorder.events[-1] == "train 1/2"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_signal_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "REPEAT_SECONDS", 0.0)  # as if a while lay between the two
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            Trainer().train(tiny_task(SMALL, *[SignalAt("train", 0, 1, signal.SIGINT)] * 2))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_after_the_last_batch_lets_the_run_end(tmp_path: Path) -> None:
    class SignalAtTheEnd(ClassyHook):
        def on_end(self, task: WatchedTask) -> None:
            signal.raise_signal(signal.SIGTERM)

    Trainer(tmp_path).train(tiny_task(SMALL, SignalAtTheEnd()))

    assert [record["phase"] for record in read_records(tmp_path / "metrics.jsonl")] == ["train", "val"]


def test_a_run_also_works_outside_the_main_thread() -> None:
    recorder = Recorder()
    thread = threading.Thread(target=lambda: Trainer().train(tiny_task(SMALL, recorder)))

    thread.start()
    thread.join()

    assert recorder.events[-1] == "end"


def test_the_folder_is_locked_while_the_run_lasts_and_free_after_an_error(tmp_path: Path) -> None:
    class Intruder(ClassyHook):
        def on_step(self, task: WatchedTask) -> None:
            Trainer(tmp_path, resume=True).train(tiny_task(SMALL))

    with pytest.raises(ConfigError, match=r"in use by process \d+ on"):
        Trainer(tmp_path).train(tiny_task(SMALL, Intruder()))

    FolderLock(tmp_path).release()


def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    working, done = processes.Event(), processes.Event()

    def work() -> None:
        working.set()
        done.wait(60)

    run = FolderLock(tmp_path)
    worker = processes.Process(target=work)
    worker.start()
    assert working.wait(60)

    run.release()  # what the kernel does when the run is killed

    FolderLock(tmp_path).release()
    done.set()
    worker.join()


def test_a_loss_that_is_no_number_ends_the_run_before_its_weights_are_saved(tmp_path: Path) -> None:
    changes = {**SMALL, **DIVERGES, "dataset.train.num_samples": 32, "hooks": ["checkpoint"]}

    with pytest.raises(FloatingPointError, match=r"step \d, epoch 1: .* loss is .*optimizer\.lr"):
        Trainer(tmp_path).train(tiny_task(changes))

    assert checkpoint_folders(tmp_path / "checkpoints") == []
    assert not (tmp_path / "metrics.jsonl").exists()


def test_weights_of_a_loss_that_is_no_number_are_not_saved_within_an_epoch_either(tmp_path: Path) -> None:
    hook = {"name": "checkpoint", "every_steps": 1}
    changes = {**SMALL, **DIVERGES, "dataset.train.num_samples": 32, "hooks": [hook]}

    with pytest.raises(FloatingPointError, match=r"step \d, epoch 1: .* loss is .*optimizer\.lr"):
        Trainer(tmp_path).train(tiny_task(changes))

    newest, problems = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    assert not problems
    assert all(x.isfinite().all() for x in load_checkpoint(newest).tensors["optimizer"].values())


def test_the_command_line_writes_the_resolved_config_and_resumes_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = str(tmp_path / "run")
    assert main(["--config", str(write_small(tmp_path)), "--output", run]) == 0

    assert main(["--config", str(tmp_path / "run/config.yaml"), "--output", run, "--resume"]) == 0

    assert f"resumed {tmp_path / 'run/checkpoints/step-2'}" in caplog.text


def write_small(folder: Path) -> Path:
    return write_config(folder, {**SMALL, "hooks": ["checkpoint"]})


def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    assert main(["--config", str(write_small(tmp_path)), "--output", str(tmp_path / "file/run")]) == 2
    assert f"--output {tmp_path / 'file/run'}: cannot be written" in capsys.readouterr().err
