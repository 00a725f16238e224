"""The hook that shows a run on a terminal, in a notebook or in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Annotated

from pydantic import Field

from classyseg.console import discard_output, is_terminal, say, terminal_width, wrapped
from classyseg.distributed import is_primary
from classyseg.hooks.bar import Bar, open_bar
from classyseg.hooks.class_table import class_table
from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.registry import HOOKS

BAR_SECONDS = 0.5
log = logging.getLogger(__name__)


@HOOKS.register("progress_bar")
class ProgressBarHook(ClassyHook):
    """A bar on a terminal or in a notebook; elsewhere a plain line every `seconds`. After each phase, its results.

    It shows the loss, samples per second, the share of time spent waiting for data, and the time left of the training;
    after a val or test phase also the numbers of each class. If printing fails (a closed pipe or terminal, a full
    disk), the run goes on without it.

    A narrow terminal shows less, but always the time left. Of up to 20 classes all are shown, of more the worst five
    and all that are 0. A class that is not in the set has `-`; one that is in no mask, but was predicted, says so.

    Args:
        seconds: Between two plain lines.
    """

    def __init__(self, *, seconds: Annotated[float, Field(gt=0)] = 10.0) -> None:
        self.seconds = seconds
        self._bar: Bar | None = None
        self._has_bar = self._prints = True
        self._last_shown = 0.0
        self._train_seconds_per_step: float | None = None

    def on_phase_start(self, task: WatchedTask) -> None:
        self._started = self._last_shown = time.monotonic()
        self._first_step = task.progress.step_in_phase
        self._close_bar(is_done=False)  # one is open where the run went back, and begins a phase anew
        if is_primary() and self._has_bar:
            with self._without_the_bar_where_it_fails():
                self._bar = open_bar(task.num_batches, task.progress.step_in_phase)
                self._show(task, self._started)

    def on_step(self, task: WatchedTask) -> None:
        if not is_primary():
            return
        now = time.monotonic()
        if now - self._last_shown < (BAR_SECONDS if self._bar is not None else self.seconds):
            return
        self._last_shown = now
        if self._bar is not None:
            with self._without_the_bar_where_it_fails():
                self._show(task, now)
        else:
            text = ", ".join([*self._details(task), self._left(task, now)])
            self._print(f"{_title(task)} {task.progress.step_in_phase}/{task.num_batches} {text}")

    def on_phase_end(self, task: WatchedTask) -> None:
        if not is_primary():
            return
        self._close_bar(is_done=True)
        record = task.metrics
        shown = [
            f"{key} {value:.4g}" for key, value in record.items() if isinstance(value, float) and key not in _UNSHOWN
        ]
        title = f"{_place(task, record['epoch'], record['step'])} {record['phase']}:"
        # On a terminal, lines break between two results. In a file it is one line, so that it can be searched.
        columns = terminal_width() if is_terminal(sys.stdout) else sys.maxsize
        lines = wrapped([*(f"{text}," for text in shown[:-1]), *shown[-1:]], columns, first=title, indent="    ")
        if record["phase"] != "train":
            lines += class_table(record, task.best_is, task.unseen_classes, terminal_width())
        self._print("\n".join(lines))

    def close(self) -> None:
        self._close_bar(is_done=False)

    def _show(self, task: WatchedTask, now: float) -> None:
        if self._bar is not None:
            details = self._details(task) if now > self._started else []
            self._bar.show(task.progress.step_in_phase, _title(task), self._left(task, now), details)

    def _close_bar(self, *, is_done: bool) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            with self._without_the_bar_where_it_fails():
                bar.close(is_done=is_done)

    @contextmanager
    def _without_the_bar_where_it_fails(self) -> Iterator[None]:
        """A terminal that is gone ends the bar, not the run."""
        try:
            yield
        except OSError as error:
            self._has_bar = False
            with suppress(OSError):
                self._close_bar(is_done=True)
            log.warning("the bar is not shown any more (%s); the run goes on", error.strerror)

    def _print(self, text: str) -> None:
        if not self._prints:
            return
        try:
            say(text)
        except OSError as error:
            self._prints = False
            discard_output()
            log.warning("progress is not printed any more (%s); the run goes on", error.strerror)

    def _details(self, task: WatchedTask) -> list[str]:
        speed = [f"{task.samples_per_second:.1f} samples/s", f"data wait {task.data_wait:.0%}"]
        return [f"loss {task.last_loss.item():.4f}", *speed] if task.progress.phase == "train" else speed

    def _left(self, task: WatchedTask, now: float) -> str:
        """The time left of the training; after its end, of the phase that measures."""
        progress = task.progress
        done = progress.step_in_phase - self._first_step
        seconds_per_step = (now - self._started) / done if done else None
        if progress.phase == "train":
            self._train_seconds_per_step = seconds_per_step or self._train_seconds_per_step
        steps = task.num_steps - progress.step
        if steps or progress.phase == "train":
            return f"training left {_duration(steps, self._train_seconds_per_step)}"
        return f"{progress.phase} left {_duration(task.num_batches - progress.step_in_phase, seconds_per_step)}"


_UNSHOWN = ("samples_per_second", "data_wait")
MAX_SECONDS = 1e12


def _duration(steps: int, seconds_per_step: float | None) -> str:
    """How long so many steps take, `?` before the first one was measured."""
    return (
        "?" if seconds_per_step is None else str(timedelta(seconds=round(min(steps * seconds_per_step, MAX_SECONDS))))
    )


def _title(task: WatchedTask) -> str:
    progress = task.progress
    done = -(-progress.step // task.steps_per_epoch)  # the epoch that the last step belongs to
    epoch = progress.epoch + 1 if progress.phase == "train" else done
    return f"{_place(task, epoch, progress.step)} {progress.phase}"


def _place(task: WatchedTask, epoch: int, step: int) -> str:
    """Where a run is, in the unit of its length."""
    return f"step {step}/{task.num_steps}" if task.num_epochs is None else f"epoch {epoch}/{task.num_epochs}"
