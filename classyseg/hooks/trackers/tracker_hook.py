"""The contract of trackers, and what all of them share: when something is told, a run that goes on, errors."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from classyseg.checkpoint import checkpoint_folders, step_of
from classyseg.console import printable
from classyseg.distributed import is_primary
from classyseg.environment import without_secrets
from classyseg.errors import ConfigError
from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.hooks.fixed_samples import FixedSamples
from classyseg.hooks.trackers.courier import Courier
from classyseg.hooks.trackers.entries import (
    SAMPLES,
    STEP,
    Entry,
    Results,
    Summary,
    entry_of,
    history,
    kept_pictures,
    picture_folder,
    points_file,
)
from classyseg.io import append_json_line, folder_written_whole
from classyseg.run_folder import CHECKPOINTS, POINTS, kind_of, require
from classyseg.stopping import Stopped
from classyseg.structures import Phase, Sample

MAX_ERROR = 500
PICTURE_SIDE = 512
"""The most pixels of the longer side of an image in a picture."""
log = logging.getLogger(__name__)


class TrackerHook(ClassyHook, ABC):
    """Tells a tracker the numbers of training steps and phases, with pictures of a few samples of each val phase.

    Process 0 alone does it. What must not be lost, or come twice, is on the disk before the tracker knows of it: phases
    in metrics.jsonl, the points of steps in a file of the tracker's folder. A run that is resumed, or goes back,
    removes from both what it will do again, and calls `open_tracker` with all that is left.

    `open_tracker`, `write` and `close_tracker` are called in a thread, in order. If one raises anything, or hangs at
    the end for `finish_seconds`, that is said once, and the run goes on without the tracker.
    """

    folder: str
    """The tracker's folder in the run's folder, and its name in messages."""
    package: str | None = None
    """What must be installed for it; the extra of classyseg that brings it has the name of the folder."""
    sees_predictions: tuple[Phase, ...] = ("val",)
    only_one = True
    is_final: bool = False
    """Whether the tracker cannot take back what it was told. Else `open_tracker` replaces all that it has."""

    def __init__(self, *, every: int, images: int, finish_seconds: float) -> None:
        self.every, self.images, self.finish_seconds = every, images, finish_seconds
        self.record_files = (points_file(self.folder),)
        if not images:
            self.sees_predictions = ()
        self._samples = FixedSamples(images, PICTURE_SIDE)
        self._last_step = 0
        self._begun = self._failed = False
        self._lost = False
        """Whether what it is to be told can no longer be kept on the disk."""
        self._courier: Courier | None = None
        self._results: Results | None = None
        self._has_ended = self._may_go_back = False
        self.run_folder = Path()
        self.run_config: Mapping[str, Any] = {}
        """The resolved config of the run, without the values of keys such as `token`."""
        self._held: list[Entry] = []
        """Entries that wait for the checkpoint which makes them final."""

    # -- what a tracker does -----------------------------------------------------------------------------------------

    @abstractmethod
    def open_tracker(self, history: Sequence[Entry]) -> None:
        """Begins, with all entries so far: in an empty folder, or in that of a run which goes on.

        A tracker that is final passes over those that it knows.
        """

    @abstractmethod
    def write(self, entries: Sequence[Entry]) -> None:
        """Adds entries."""

    @abstractmethod
    def close_tracker(self, summary: Summary) -> None:
        """Adds how the run ended, and writes all that is left."""

    def give_up(self) -> None:
        """Called if it hangs when the run has ended: nothing of it may keep the process from its end."""

    # -- the events of a hook ----------------------------------------------------------------------------------------

    def check(self, model: nn.Module) -> None:
        if self.package is None:
            return
        try:
            found = importlib.util.find_spec(self.package)
        except ValueError:  # somebody has put a module without a description in its place
            found = None
        if found is None or found.origin is None:  # a folder of this name, such as ./wandb, is no package
            raise ConfigError(
                f"{self.folder}: the package '{self.package}' is not installed: pip install 'classyseg[{self.folder}]'"
            )

    def on_phase_start(self, task: WatchedTask) -> None:
        if task.progress.phase == "val" and self.images:
            self._samples.begin(task)
        if task.progress.step < self._last_step:  # the run went back
            self._begun = False

    def on_prediction(self, task: WatchedTask, batch: Sample, prediction: Tensor) -> None:
        if self._lost:
            return
        try:
            self._samples.add(task, batch, prediction)
        except Exception as error:  # nothing of a tracker may end a training
            self._lost = True
            self._fail(error)

    def on_step(self, task: WatchedTask) -> None:
        progress = task.progress
        if progress.phase != "train" or progress.step % self.every:
            return
        loss = task.step_loss()  # every process takes part, also when the tracker is quiet
        record = {
            "step": progress.step,
            "epoch": progress.epoch + 1,
            "loss": loss,
            "lr": task.lr,
            "samples_per_second": task.samples_per_second,
            "data_wait": task.data_wait,
        }
        self._last_step = max(self._last_step, progress.step)
        self._tell(task, STEP, record)

    def on_phase_end(self, task: WatchedTask) -> None:
        self._last_step = max(self._last_step, task.metrics["step"])
        self._tell(task, task.metrics["phase"], task.metrics)

    def on_end(self, task: WatchedTask) -> None:
        self._close("finished", task.stop_reason or f"all {task.num_steps} steps are done")

    def close(self) -> None:
        if not self._has_ended:
            error = sys.exception()  # that which ends the run, if one does
            is_failure = not (error is None or isinstance(error, Stopped | KeyboardInterrupt))
            told = "left before its end" if error is None else printable(f"{type(error).__name__}: {error}", MAX_ERROR)
            self._close("failed" if is_failure else "stopped", told)
        courier, self._courier = self._courier, None
        if courier is not None and not courier.wait(self.finish_seconds):
            self._fail(TimeoutError(f"not done {self.finish_seconds:g} seconds after the end (finish_seconds)"))
            try:
                self.give_up()
            except Exception as error:  # of a tracker: the run has ended well all the same
                log.warning("%s: %s", self.folder, printable(f"{type(error).__name__}: {error}", MAX_ERROR))

    def state(self) -> dict[str, Any]:
        return {"last_step": self._last_step}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if type(state["last_step"]) is not int:
            raise ValueError(f"found {state['last_step']!r}; expected a step as `last_step`")
        self._last_step = state["last_step"]
        self._begun = False  # a run that goes back is given the state of its checkpoint

    # -- how entries come to the tracker -----------------------------------------------------------------------------

    def _tell(self, task: WatchedTask, kind: str, record: Mapping[str, Any]) -> None:
        """Keeps an entry on the disk, and hands it over."""
        if self._lost or task.run_folder is None or not is_primary():
            return
        try:
            folder, step, now = task.run_folder / self.folder, record["step"], time.time()
            if not self._begun:
                self._begin(task, task.run_folder, (kind, step))
            row = record if kind == STEP else {"step": step, "epoch": record["epoch"]}
            append_json_line(folder / POINTS, {"kind": kind, "time": now, **row})
            entry = entry_of(record, kind, now, self._draw(folder, kind, step))
            if self._results is not None:
                self._results.add(entry)
        except Exception as error:  # a full disk: nothing of a tracker may end a training
            self._lost = True
            self._fail(error)
            return
        self._held.append(entry)
        self._hand_over()

    def _begin(self, task: WatchedTask, run_folder: Path, told_next: tuple[str, int]) -> None:
        """Hands over all entries so far, without the one that is told next: metrics.jsonl has it already."""
        folder = run_folder / self.folder
        folder.mkdir(exist_ok=True)
        require(folder, "a folder")
        entries = [entry for entry in history(run_folder, self.folder) if (entry.kind, entry.step) != told_next]
        _remove_pictures(folder, {(entry.kind, entry.step) for entry in entries})
        self._results = Results(entries, task.best_is)
        self.run_folder, self.run_config = run_folder, without_secrets(task.config)
        runtime = task.config.get("runtime")
        self._may_go_back = isinstance(runtime, Mapping) and runtime.get("non_finite") == "rollback"
        self._begun, self._held = True, []
        if self._courier is None:
            self._courier = Courier(self, self._fail)
        self._courier.open(entries)

    def _draw(self, folder: Path, kind: str, step: int) -> dict[str, Path]:
        """Writes the pictures of a val phase, and returns them by name."""
        if kind != "val" or not self.images:
            return {}
        place = picture_folder(folder, kind, step)
        place.parent.mkdir(exist_ok=True)
        require(place.parent, "a folder")
        with folder_written_whole(place) as whole:
            for sample in self._samples.drawn():
                (whole / f"{sample.name}.png").write_bytes(sample.png)
        return kept_pictures(folder, kind, step)

    def _hand_over(self, *, at_end: bool = False) -> None:
        """Hands over what is held. If the run may go back, a final tracker gets what a checkpoint has made final."""
        if self._courier is None:
            return
        held, self._held = self._held, []
        try:
            if self.is_final and self._may_go_back and not at_end:
                saved = max((step_of(path) for path in checkpoint_folders(self.run_folder / CHECKPOINTS)), default=-1)
                self._held = [entry for entry in held if entry.step > saved]
                held = [entry for entry in held if entry.step <= saved]
            for entry in held:
                self._courier.write(entry)
        except OSError as error:  # too many are waiting, or the checkpoints cannot be looked at
            self._fail(error)

    def _close(self, outcome: str, reason: str) -> None:
        """Tells the tracker how the run ended; `close` waits for it."""
        self._has_ended = True
        if self._courier is None or self._results is None:
            return
        self._hand_over(at_end=outcome == "finished")
        self._courier.close(Summary(outcome, reason, self._results.last, self._results.best))

    def _fail(self, error: BaseException) -> None:
        """Says an error, once."""
        if self._failed:
            return
        self._failed = True
        log.warning(
            "%s: %s; it gets nothing from now on (step %d), and the run goes on. %s",
            self.folder,
            printable(f"{type(error).__name__}: {error}", MAX_ERROR),
            self._last_step,
            "metrics.jsonl has the numbers of all phases"
            if self._lost
            else "When the run is resumed, it is told again",
        )


def _remove_pictures(folder: Path, known: Collection[tuple[str, int]]) -> None:
    """Removes pictures of phases that the run does again; of a link, the link."""
    root = folder / SAMPLES
    if not os.path.lexists(root):
        return
    require(root, "a folder")
    names = {picture_folder(folder, kind, step).name for kind, step in known}
    for path in root.iterdir():
        if path.name not in names and kind_of(path) == "a folder":
            shutil.rmtree(path)
