"""What a person sees of a run, on a terminal and in a log."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tqdm.notebook as tqdm_notebook
from tqdm import tqdm

import classyseg.hooks.progress_bar
from classyseg.hooks import ProgressBarHook
from classyseg.hooks.bar import MIN_BAR, Bar, bar_format
from classyseg.structures import Progress
from classyseg.trainer import Stopped, Trainer
from runs import FakeTask, SignalAt, tiny_task

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
    assert line.startswith("epoch 1/2 val 4/10")
    assert "loss" not in line
    assert line.rstrip().endswith("training left 0:00:20")


def test_the_bar_of_a_phase_that_the_run_left_to_go_back_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    open_bars: list[object] = []

    class OpenBar:
        def __init__(self, *arguments: Any) -> None:
            open_bars.append(self)

        def show(self, *arguments: Any) -> None: ...

        def close(self, *, is_done: bool) -> None:
            open_bars.remove(self)

    monkeypatch.setattr(classyseg.hooks.progress_bar, "open_bar", OpenBar)
    hook, task = ProgressBarHook(), FakeTask()
    hook.on_phase_start(task)
    hook.on_phase_start(task)
    assert len(open_bars) == 1
    hook.close()
    assert open_bars == []


def test_every_phase_ends_with_a_line_of_its_results(advance: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    hook, task = ProgressBarHook(), FakeTask()
    hook.on_phase_start(task)
    task.end_phase(hook, loss=0.123456, lr=0.1, mean_iou=None, iou={"disc": 0.5}, data_wait=0.3)

    assert capsys.readouterr().out == "epoch 1/2 train: loss 0.1235, lr 0.1\n"


def test_the_line_of_results_is_broken_between_two_of_them_on_a_terminal_alone(
    advance: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {"loss": 1.0, "mean_iou": 0.5, "pixel_accuracy": 0.25, "mean_class_accuracy": 0.125}
    whole = "epoch 1/2 train: loss 1, mean_iou 0.5, pixel_accuracy 0.25, mean_class_accuracy 0.125"
    monkeypatch.setenv("COLUMNS", "50")
    hook, task = ProgressBarHook(), FakeTask()
    hook.on_phase_start(task)
    task.end_phase(hook, **results)
    assert capsys.readouterr().out == f"{whole}\n"

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    task = FakeTask()
    hook.on_phase_start(task)
    task.end_phase(hook, **results)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2 train: loss 1, mean_iou 0.5,",
        "    pixel_accuracy 0.25, mean_class_accuracy 0.125",
    ]


def test_a_test_phase_ends_with_what_was_measured_of_each_class(
    advance: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    hook, task = ProgressBarHook(), FakeTask()
    hook.on_phase_start(task)
    task.end_phase(hook, loss=0.5)
    hook.on_phase_start(task)
    task.unseen_classes = {"disc"}
    capsys.readouterr()
    task.end_phase(hook, mean_iou=0.25, iou={"sky": 0.5, "disc": 0.0})

    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2 val: mean_iou 0.25",
        "       iou    class",
        "    0.5000  0 sky",
        "         0  1 disc (in no mask)",
    ]


def test_the_time_left_is_unknown_before_a_step_was_measured_and_that_of_the_test_phase_after_the_last_epoch(
    advance: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    hook, task = ProgressBarHook(seconds=1), FakeTask()
    task.progress = Progress(epoch=1, phase="val", step=10)  # resumed in a val phase
    hook.on_phase_start(task)
    run_steps(hook, task, advance, 1)
    assert capsys.readouterr().out.rstrip().endswith("training left ?")

    task.progress = Progress(epoch=2, phase="val", step=20)
    hook.on_phase_start(task)
    run_steps(hook, task, advance, 4)
    assert capsys.readouterr().out.rstrip().endswith("val left 0:00:12")


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 140) -> Iterator[Callable[..., str]]:
    """Makes standard error a pseudo-terminal; the call gives what is shown there, up to and with a text."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    with os.fdopen(master, "rb", 0) as screen, os.fdopen(slave, "w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", file)
        patch.delenv("COLUMNS", raising=False)

        def shown(until: str, width: int | None = None) -> str:
            if width is not None:
                termios.tcsetwinsize(slave, (24, width))
                return ""
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


LEFT = "training left 1 day, 2:34:56"
DETAILS = ["loss 0.1234", "1234.5 samples/s", "data wait 100%"]


@pytest.mark.parametrize("columns", [1, 7, 20, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("title", ["epoch 1/2 train", "epoch 12345/100000 train"])
@pytest.mark.parametrize("left", [LEFT, "training left 0:00:32", "val left ?"])
def test_a_bar_fits_its_line_and_shows_the_time_left_at_every_width(columns: int, title: str, left: str) -> None:
    line = bar_format(title, "123456/200000", left, DETAILS, columns)

    time = left.partition(" left ")[2]
    assert len(line.replace("{bar}", "=" * MIN_BAR)) <= columns
    assert time in line or time.endswith(line)
    assert left in line or columns < 80


def test_more_is_shown_where_there_is_room() -> None:
    lines = [bar_format("epoch 1/9 train", "1/20", "training left 0:00:32", DETAILS, c) for c in (77, 97, 117)]

    assert lines == [
        "epoch 1/9 train |{bar}| 1/20, training left 0:00:32, loss 0.1234",
        "epoch 1/9 train |{bar}| 1/20, training left 0:00:32, loss 0.1234, 1234.5 samples/s",
        "epoch 1/9 train |{bar}| 1/20, training left 0:00:32, loss 0.1234, 1234.5 samples/s, data wait 100%",
    ]


@pytest.mark.parametrize("columns", [40, 80, 100])
def test_what_is_drawn_on_a_terminal_fits_it_also_after_it_was_made_smaller(
    columns: int, monkeypatch: pytest.MonkeyPatch, advance: Clock
) -> None:
    hook, task = ProgressBarHook(), FakeTask()
    with terminal(monkeypatch, columns) as shown:
        hook.on_phase_start(task)
        run_steps(hook, task, advance, 2)
        before = shown("left 0:00:36")
        shown("", width=columns - 5)
        run_steps(hook, task, advance, 2)
        after = shown("left 0:00:32")
        task.end_phase(hook)

    assert all(len(line) < columns for line in before.split("\r"))
    assert max(len(line.rstrip()) for line in after.split("\r")) < columns - 5
    assert "loss 0.5000" in after or columns == 40


def test_what_is_logged_warned_of_or_printed_comes_above_the_bar_on_lines_of_its_own(
    monkeypatch: pytest.MonkeyPatch, advance: Clock
) -> None:
    hook, task = ProgressBarHook(), FakeTask()
    with terminal(monkeypatch, 100) as shown:
        handler = logging.StreamHandler(before := sys.stderr)
        monkeypatch.setattr(logging.root, "handlers", [handler])
        monkeypatch.setattr(sys, "stdout", os.fdopen(os.dup(before.fileno()), "w"))
        hook.on_phase_start(task)
        run_steps(hook, task, advance, 1)
        logging.getLogger("any").warning("checkpoint of step 3 not saved")
        sys.stderr.write("a.py:1: UserWarning: deprecated\n  a = 1\n")
        print("half", end=" ", file=sys.stderr)
        print("a line", file=sys.stderr)
        print("printed")
        task.end_phase(hook, loss=0.5)
        assert (handler.stream, sys.stderr) == (before, before)
        print("done", file=sys.stderr)
        lines = [line.rpartition("\r")[2] for line in shown("done\r\n").split("\r\n")[:-1]]

    assert [line.rstrip() for line in lines] == [
        "checkpoint of step 3 not saved",
        "a.py:1: UserWarning: deprecated",
        "  a = 1",
        "half a line",
        "printed",
        "epoch 1/2 train: loss 0.5",
        "done",
    ]


def test_ctrl_c_leaves_the_bar_and_what_comes_begins_a_new_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stop = SignalAt("train", 1, 2, signal.SIGINT)
    with terminal(monkeypatch, 80) as shown:
        with pytest.raises(Stopped):
            Trainer(tmp_path).train(tiny_task({"hooks": ["progress_bar"]}, stop))
        print("stopped", file=sys.stderr)
        *_, bar, message = shown("stopped").splitlines()

    assert bar.rpartition("\r")[2].startswith("epoch 2/3 train")
    assert message == "stopped"


def test_a_terminal_that_is_gone_ends_the_bar_and_not_the_run(
    advance: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hook, task = ProgressBarHook(seconds=1), FakeTask()
    with terminal(monkeypatch):
        hook.on_phase_start(task)

        def gone(*arguments: object) -> None:
            raise OSError(errno.EPIPE, "Broken pipe")

        monkeypatch.setattr(Bar, "show", gone)
        run_steps(hook, task, advance, 2)
        task.end_phase(hook, loss=0.5)

    assert "the bar is not shown any more (Broken pipe)" in caplog.text
    assert capsys.readouterr().out.splitlines()[-1] == "epoch 1/2 train: loss 0.5"


def test_a_notebook_has_a_notebooks_bar_and_without_ipywidgets_plain_lines(
    advance: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[dict[str, Any]] = []

    class NotebookBar(tqdm):
        def refresh(self, *arguments: Any, **options: Any) -> bool:
            drawn.append(self.format_dict)
            return True

    kernel = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setattr(tqdm_notebook, "tqdm_notebook", NotebookBar)
    for progress in (object, None):
        monkeypatch.setattr(tqdm_notebook, "IProgress", progress)
        hook, task = ProgressBarHook(seconds=1), FakeTask()
        hook.on_phase_start(task)
        run_steps(hook, task, advance, 1)
        hook.close()

    assert [shown["n"] for shown in drawn] == [0, 1]
    assert drawn[-1]["bar_format"].endswith("loss 0.5000, 20.0 samples/s, data wait 25%")
    assert capsys.readouterr().out.startswith("epoch 1/2 train 1/10 loss")


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(classyseg.hooks.progress_bar, "is_primary", lambda: False)
    hook, task = ProgressBarHook(seconds=1e-9), FakeTask()
    hook.on_phase_start(task)
    task.steps(hook)
    task.end_phase(hook, loss=0.5)

    assert capsys.readouterr() == ("", "")
