"""What a person sees of a run, on a terminal and in a log."""

from __future__ import annotations

import os
import select
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

import classyseg.hooks.progress_bar
from classyseg.hooks import ProgressBarHook
from classyseg.structures import Progress
from runs import FakeTask

Clock = Callable[[float], None]


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Moves the clock that the hook reads."""
    now = [100.0]

    def move(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(classyseg.hooks.progress_bar, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return move


def run_steps(hook: ProgressBarHook, task: FakeTask, advance: Clock, count: int = 10) -> None:
    for _ in range(count):
        advance(2.0)
        task.steps(hook, 1)


def test_elsewhere_than_on_a_terminal_plain_lines_come_every_few_seconds(
    advance: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    hook, task = ProgressBarHook(seconds=8), FakeTask()
    hook.on_phase_start(task)
    run_steps(hook, task, advance)

    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 1/2 train 4/10 loss 0.5000, 20.0 samples/s, data wait 25%")
    assert first.endswith("training left 0:00:32")  # 16 of 20 steps, 2 seconds each
    assert second.startswith("epoch 1/2 train 8/10")


def test_the_time_left_counts_the_steps_of_this_process_alone_after_a_resume(
    advance: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    hook, task = ProgressBarHook(seconds=8), FakeTask()
    task.progress = Progress(epoch=1, step=14, step_in_phase=4)
    hook.on_phase_start(task)
    run_steps(hook, task, advance, 4)

    assert capsys.readouterr().out.rstrip().endswith("training left 0:00:04")


def test_a_test_phase_shows_the_training_that_is_left_and_no_loss(
    advance: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    hook, task = ProgressBarHook(seconds=8), FakeTask()
    hook.on_phase_start(task)
    run_steps(hook, task, advance)
    task.end_phase(hook, loss=0.5)
    hook.on_phase_start(task)
    capsys.readouterr()
    run_steps(hook, task, advance, 4)

    line = capsys.readouterr().out
    assert line.startswith("epoch 1/2 test 4/10")
    assert "loss" not in line
    assert line.rstrip().endswith("training left 0:00:20")


def test_every_phase_ends_with_a_line_of_its_results(advance: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    hook, task = ProgressBarHook(), FakeTask()
    hook.on_phase_start(task)
    task.end_phase(hook, loss=0.123456, lr=0.1, mean_iou=None, iou={"disc": 0.5}, data_wait=0.3)

    assert capsys.readouterr().out == "epoch 1/2 train: loss 0.1235, lr 0.1\n"


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Makes standard error a pseudo-terminal; the call gives what is shown there, up to and with a text."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 140))
    with os.fdopen(master, "rb", 0) as screen, os.fdopen(slave, "w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", file)

        def shown(until: str) -> str:
            file.flush()
            text = ""
            while until not in text:
                assert select.select([screen], [], [], 30)[0], f"{until!r} never comes; shown: {text!r}"
                text += screen.read(1 << 16).decode()
            return text

        yield shown


def test_a_terminal_shows_a_bar_that_is_gone_after_the_phase(
    monkeypatch: pytest.MonkeyPatch, advance: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    hook, task = ProgressBarHook(seconds=1000), FakeTask()
    with terminal(monkeypatch) as shown:
        hook.on_phase_start(task)
        run_steps(hook, task, advance, 4)
        during = shown("training left 0:00:32")
        task.end_phase(hook, loss=0.5)

        assert shown("   \r").endswith("   \r")
    assert "epoch 1/2 train" in during
    assert "4/10" in during
    assert "loss 0.5000" in during
    assert capsys.readouterr().out == "epoch 1/2 train: loss 0.5\n"


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(classyseg.hooks.progress_bar, "is_primary", lambda: False)
    hook, task = ProgressBarHook(seconds=1e-9), FakeTask()
    hook.on_phase_start(task)
    task.steps(hook)
    task.end_phase(hook, loss=0.5)

    assert capsys.readouterr() == ("", "")
