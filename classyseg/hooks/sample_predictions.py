"""Pictures of the same few samples after every validation."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from classyseg.console import printable
from classyseg.distributed import failing_together, is_primary
from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.hooks.fixed_samples import FixedSamples
from classyseg.io import folder_written_whole
from classyseg.registry import HOOKS
from classyseg.run_folder import CHECKPOINT_NAME, PREDICTIONS, kind_of, require
from classyseg.structures import Phase, Sample

log = logging.getLogger(__name__)


@HOOKS.register("sample_predictions")
class SamplePredictionsHook(ClassyHook):
    """Draws a few samples of the validation set with their predictions, after each val phase.

    They are the same ones every time, spread evenly over the set; with several processes, over the share of process 0.
    A picture shows image, label, prediction and errors (wrong pixels red, ignored ones white); of whole images and
    clips, the true classes and the predicted ones. It is `predictions/step-N/NN_NAME.png` in the run's folder. A disk
    that is full does not end the run: these pictures are left out, and the log says so.

    Args:
        count: How many samples.
        size: The most pixels of an image's longer side; larger images are made smaller.
        keep: From how many val phases pictures are kept, the newest ones; null: from all.
    """

    sees_predictions: tuple[Phase, ...] = ("val",)
    only_one = True

    def __init__(
        self,
        *,
        count: Annotated[int, Field(ge=1, le=1000)] = 8,
        size: Annotated[int, Field(ge=16, le=4096)] = 512,
        keep: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        self.count, self.size, self.keep = count, size, keep
        self._samples = FixedSamples(count, size)
        self._first_step = True

    def on_start(self, task: WatchedTask) -> None:
        if task.run_folder is None:
            self.sees_predictions = ()

    def on_phase_start(self, task: WatchedTask) -> None:
        self._first_step = True
        if task.progress.phase == "val":
            self._samples.begin(task)

    def on_prediction(self, task: WatchedTask, batch: Sample, prediction: Tensor) -> None:
        self._samples.add(task, batch, prediction)

    def on_step(self, task: WatchedTask) -> None:
        if self._first_step and is_primary() and task.run_folder is not None:
            # A run that was resumed, or went back, draws the later ones again. A start that fails removes nothing.
            self._remove(task.run_folder, lambda step: step > task.progress.step)
        self._first_step = False

    def on_phase_end(self, task: WatchedTask) -> None:
        if task.metrics["phase"] != "val" or task.run_folder is None:
            return
        with failing_together():
            if is_primary():
                task.records.check_in_place()
                try:
                    self._draw(task.run_folder, task.metrics["step"])
                except OSError as error:
                    place = error.filename or task.run_folder / PREDICTIONS
                    log.warning("%s: pictures cannot be written (%s); the run goes on", place, error.strerror)
                except Exception as error:  # of drawing
                    told = printable(f"{type(error).__name__}: {error}", 500)
                    log.warning("sample_predictions: pictures cannot be drawn (%s); the run goes on", told)

    def _draw(self, run_folder: Path, step: int) -> None:
        root = run_folder / PREDICTIONS
        root.mkdir(exist_ok=True)
        require(root, "a folder")
        with folder_written_whole(root / f"step-{step}") as folder:
            for sample in self._samples.drawn():
                (folder / f"{sample.name}.png").write_bytes(sample.png)
        if self.keep is not None:
            newest = sorted(_steps(run_folder))[-self.keep :]
            self._remove(run_folder, lambda step: step not in newest)

    def _remove(self, run_folder: Path, which: Callable[[int], bool]) -> None:
        for step, folder in _steps(run_folder).items():
            if which(step):
                shutil.rmtree(folder, ignore_errors=True)


def _steps(run_folder: Path) -> dict[int, Path]:
    """The folders of pictures in the run's folder, by step."""
    root = run_folder / PREDICTIONS
    found = sorted(root.iterdir()) if root.is_dir() and not root.is_symlink() else []
    matches = [(CHECKPOINT_NAME.fullmatch(path.name), path) for path in found]
    return {int(match[1]): path for match, path in matches if match is not None and kind_of(path) == "a folder"}
