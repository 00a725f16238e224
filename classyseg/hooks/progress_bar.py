"""What a person at the terminal sees of a run."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from typing import Annotated, Any

from pydantic import Field
from tqdm import tqdm

from classyseg.distributed import is_primary
from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.io import discard_output
from classyseg.registry import HOOKS

BAR_SECONDS = 0.5
log = logging.getLogger(__name__)


@HOOKS.register("progress_bar")
class ProgressBarHook(ClassyHook):
    """A bar on a terminal; elsewhere a plain line every `seconds`. After each phase, a line with its results.

    Shown: the loss, samples a second, how much of the time was spent waiting for data, and the time left of the
    training. Where printing fails (a closed pipe, a full disk), the run goes on without it.
    """

    def __init__(self, *, seconds: Annotated[float, Field(gt=0)] = 10.0) -> None:
        self.seconds = seconds
        self._bar: Any = None
        self._prints = True
        self._last_shown = 0.0
        self._train_seconds_per_step = 0.0

    def on_phase_start(self, task: WatchedTask) -> None:
        self._started = self._last_shown = time.monotonic()
        self._first_step = task.progress.step_in_phase
        if is_primary() and sys.stderr.isatty():
            progress = task.progress
            self._bar = tqdm(
                total=task.num_batches, initial=progress.step_in_phase, desc=_title(task), unit="batch", leave=False
            )

    def on_step(self, task: WatchedTask) -> None:
        if not is_primary():
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update()
        if now - self._last_shown < (BAR_SECONDS if self._bar is not None else self.seconds):
            return
        self._last_shown = now
        text = self._text(task, now)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=True)
        else:
            self._print(f"{_title(task)} {task.progress.step_in_phase}/{task.num_batches} {text}")

    def on_phase_end(self, task: WatchedTask) -> None:
        if not is_primary():
            return
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        record = task.metrics
        shown = [
            f"{key} {value:.4g}" for key, value in record.items() if isinstance(value, float) and key not in _UNSHOWN
        ]
        self._print(f"epoch {record['epoch']}/{task.num_epochs} {record['phase']}: {', '.join(shown)}")

    def _print(self, line: str) -> None:
        if not self._prints:
            return
        try:
            print(line, flush=True)
        except OSError as error:
            self._prints = False
            discard_output()
            log.warning("progress is not printed any more (%s); the run goes on", error.strerror)

    def _text(self, task: WatchedTask, now: float) -> str:
        progress = task.progress
        done = max(1, progress.step_in_phase - self._first_step)
        if progress.phase == "train":
            self._train_seconds_per_step = (now - self._started) / done
            left = task.num_epochs * task.steps_per_epoch - progress.step
        else:
            left = (task.num_epochs - progress.epoch) * task.steps_per_epoch
        eta = timedelta(seconds=round(left * self._train_seconds_per_step))
        speed = f"{task.samples_per_second:.1f} samples/s, data wait {task.data_wait:.0%}, training left {eta}"
        return f"loss {task.last_loss.item():.4f}, {speed}" if progress.phase == "train" else speed


_UNSHOWN = ("samples_per_second", "data_wait")


def _title(task: WatchedTask) -> str:
    progress = task.progress  # a test phase comes after the epoch was counted
    epoch = progress.epoch + 1 if progress.phase == "train" else progress.epoch
    return f"epoch {epoch}/{task.num_epochs} {progress.phase}"
