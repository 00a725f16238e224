"""The hook that decides when checkpoints are saved, and which are kept."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from classyseg.checkpoint import checkpoint_folders, prune
from classyseg.distributed import failing_together, integer_from_primary, is_primary
from classyseg.errors import written_in
from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.hooks.numbers import direction_of, number_of
from classyseg.io import read_json_lines, write_atomically
from classyseg.records import WriteError
from classyseg.registry import HOOKS
from classyseg.run_folder import BEST, CHECKPOINTS, LATEST, METRICS
from classyseg.structures import BestIs

log = logging.getLogger(__name__)


@HOOKS.register("checkpoint")
class CheckpointHook(ClassyHook):
    """Saves after every `every_epochs` epochs and every `every_steps` steps; keeps the newest `keep`.

    The last step is always saved. A save that fails (a full disk, a folder that became read-only) leaves the older ones
    as they are; the log tells the reason and how much is free. The next one is tried as usual.

    What a checkpoint holds, and what is guaranteed of it, stands in run_folder.md.

    Args:
        every_epochs: After every so many epochs; null: not at the end of epochs.
        every_steps: And after every so many steps.
        keep: The newest ones that are kept, and the best if it is not one of them; all others are deleted, former bests
            too.
        best: A number of the val record, such as `mean_iou`. The checkpoint of the val phase with its best value is
            saved, kept, and named in `checkpoints/BEST`. It is `loss`, a number of one of the `meters`, or one of a
            class, such as `iou/person`; `HEAD/iou/person` for another head. A phase where it is null is never the best;
            of equal phases the first is. Only one hook of a run may have it.
        best_is: `largest` or `smallest`; null: as the number declares it. For a loss the smallest is best, for numbers
            of built-in meters the largest. If a plugin's meter does not declare it, this key is needed. It overrides
            what the number declares.
        asynchronous: The run goes on as soon as the weights are copied, and a thread writes the copies. It takes the
            memory of a checkpoint once more. At most one is written at a time. A failure is told at the next save, or
            at the end, and counts.
        max_failures: After so many failed saves in a row the run ends.
    """

    saves = True
    names_best = True

    def __init__(
        self,
        *,
        every_epochs: Annotated[int, Field(ge=1)] | None = 1,
        every_steps: Annotated[int, Field(ge=1)] | None = None,
        keep: Annotated[int, Field(ge=1)] = 3,
        best: str | None = None,
        best_is: BestIs | None = None,
        asynchronous: bool = False,
        max_failures: Annotated[int, Field(ge=1)] = 3,
    ) -> None:
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.keep = keep
        self.best = best
        self.best_is = best_is
        self.asynchronous = asynchronous
        self.max_failures = max_failures
        self.failures = 0
        self._saved: Path | None = None
        self._unsaved = False
        """Whether training steps came after the newest checkpoint."""
        self._values: dict[str, float] = {}
        """The number of each val phase so far, by the name of the checkpoint that it measured."""

    def on_start(self, task: WatchedTask) -> None:
        if task.run_folder is None or self.best is None:
            return
        with failing_together():
            if is_primary():
                for record in read_json_lines(task.run_folder / METRICS):
                    if record["phase"] == "val":
                        with written_in(f"{task.run_folder / METRICS}, epoch {record['epoch']}"):
                            self._remember(record)
                # The best one may be damaged by now, or `best` may have changed.
                self._name_best(task, task.run_folder / CHECKPOINTS, self._values)

    def on_step(self, task: WatchedTask) -> None:
        progress = task.progress
        self._unsaved = self._unsaved or progress.phase == "train"
        if progress.phase == "train" and self.every_steps and progress.step % self.every_steps == 0:
            self._save(task)

    def on_phase_end(self, task: WatchedTask) -> None:
        record = task.metrics
        if record["phase"] == "train":
            ends_epoch = record["step"] % task.steps_per_epoch == 0
            due = self.every_epochs is not None and record["epoch"] % self.every_epochs == 0
            if task.training_is_over or (ends_epoch and due):
                self._save(task)
        if record["phase"] == "val" and self.best is not None and task.run_folder is not None:
            root, name = task.run_folder / CHECKPOINTS, f"step-{record['step']}"
            with failing_together():
                self._remember(record)
                is_best = is_primary() and self._best_of(task, root, self._values, name) == name
            if integer_from_primary(int(is_best)):
                self._save(task)
            with failing_together():
                if is_primary():
                    values = dict(self._values)  # a thread may do it, while this one goes on
                    task.writer.afterwards(lambda: self._name_and_prune(task, root, values))

    def _name_and_prune(self, task: WatchedTask, root: Path, values: Mapping[str, float]) -> None:
        self._name_best(task, root, values)
        if (newest := _newest(root)) is not None:
            prune(newest, self.keep, _named_best(root))

    def _save(self, task: WatchedTask) -> None:
        if self.asynchronous:
            with failing_together():
                self._learn_of_write(task)
            if integer_from_primary(int(task.writer.step == task.progress.step)):
                return  # after the training phase; now its val phase turned out to be the best
        with failing_together():
            self._save_if_possible(task)

    def _learn_of_write(self, task: WatchedTask) -> None:
        """Waits for the thread, and counts the write before if it failed. Only the primary writes."""
        error = task.writer.take_error()
        if error is not None:
            self._failed(task, error, error.step)
        elif task.writer.step is not None:
            self.failures = 0

    def _save_if_possible(self, task: WatchedTask) -> None:
        try:
            folder = task.save_checkpoint(asynchronous=True) if self.asynchronous else task.save_checkpoint()
        except WriteError:  # the run's folder is gone
            raise
        except OSError as error:
            self._failed(task, error, task.progress.step)
            return
        self._saved, self._unsaved = folder, False
        if self.asynchronous and folder is not None:
            task.writer.afterwards(lambda: self._prune_after(folder))
            return
        self.failures = 0
        if folder is not None and is_primary():
            self._prune_after(folder)

    def _prune_after(self, folder: Path) -> None:
        if folder.is_dir():  # else it could not be written, and nothing may be deleted for it
            prune(folder, self.keep, _named_best(folder.parent))

    def _failed(self, task: WatchedTask, error: OSError, step: int) -> None:
        """Counts a failed save. Raises: `WriteError` after too many in a row."""
        self.failures += 1
        if self.failures >= self.max_failures:
            raise _not_saved(task, error, step) from error
        root = (task.run_folder or Path()) / CHECKPOINTS
        log.warning(
            "checkpoint of step %d not saved: %s (%s); %s; training goes on, and ends after %d failures in a row",
            step,
            error,
            _free(root),
            _kept(root),
            self.max_failures,
        )

    def on_end(self, task: WatchedTask) -> None:
        """Saves the last step if no checkpoint has it: a save failed, it was deleted, or a hook ended the run.

        Raises: `WriteError` where it still cannot be.
        """
        with failing_together():
            if (error := task.writer.take_error()) is not None:  # in the primary, which alone writes
                self.failures += 1
                log.warning("checkpoint of step %d not saved: %s; it is tried once more", error.step, error)
        is_lost = self.failures > 0 or (self._saved is not None and not self._saved.is_dir())
        if integer_from_primary(int(is_lost or self._unsaved)):
            with failing_together():
                try:
                    folder = task.save_checkpoint()
                except WriteError:
                    raise
                except OSError as error:
                    raise _not_saved(task, error, task.progress.step) from error
                if folder is not None and is_primary():
                    prune(folder, self.keep, _named_best(folder.parent))

    # -- the best one --------------------------------------------------------------------------------------------------

    def _remember(self, record: Mapping[str, Any]) -> None:
        """Keeps the number of a val phase. A phase without a number (nothing valid was measured) is never the best."""
        value, name = number_of(record, self.best or "", "checkpoint"), f"step-{record['step']}"
        self._values.pop(name, None)
        if value is not None:
            self._values[name] = value

    def _best_of(
        self, task: WatchedTask, root: Path, values: Mapping[str, float], unsaved: str | None = None
    ) -> str | None:
        """The name of the best existing checkpoint, also counting `unsaved`; None if nothing was measured."""
        there = {folder.name: values.get(folder.name) for folder in checkpoint_folders(root)}
        if unsaved is not None:
            there[unsaved] = values.get(unsaved)
        named = _read_best(root)
        if named is not None and named[0] in there and named[0] not in values and named[0] != unsaved:
            there[named[0]] = named[1]  # its record is lost, or will be made again
        best: tuple[str, float] | None = None
        for name, value in there.items():
            if value is not None and (best is None or self._is_better(task, value, best[1])):
                best = name, value
        return None if best is None else best[0]

    def _is_better(self, task: WatchedTask, value: float, before: float) -> bool:
        best_is = direction_of(task, self.best or "", self.best_is, "checkpoint")
        return value > before if best_is == "largest" else value < before

    def _name_best(self, task: WatchedTask, root: Path, values: Mapping[str, float]) -> None:
        """Makes `BEST` name the best existing checkpoint, if any."""
        name = self._best_of(task, root, values)
        try:
            if name is None:
                (root / BEST).unlink(missing_ok=True)
            elif name in values:
                write_atomically(root / BEST, f"{name} {values[name]!r}\n")
        except OSError as error:  # the former best one stays, and is still named
            log.warning("%s: not written (%s); training goes on", root / BEST, error.strerror)


def _not_saved(task: WatchedTask, error: OSError, step: int) -> WriteError:
    root = (task.run_folder or Path()) / CHECKPOINTS
    return WriteError(
        f"{root}: the checkpoint of step {step} cannot be saved ({type(error).__name__}: {error}; {_free(root)}); "
        f"{_kept(root)}. Mend the disk, and continue with --resume"
    )


def _kept(root: Path) -> str:
    newest = _newest(root)
    return "there is no older one" if newest is None else f"the newest is {newest.name}"


def _free(root: Path) -> str:
    """How much the disk of `root` has left, for a message."""
    place = next((path for path in (root, *root.absolute().parents) if path.is_dir()), root)
    try:
        return f"{shutil.disk_usage(place).free} bytes are free"
    except OSError as error:
        return f"how much is free is not known: {error.strerror}"


def _read_best(root: Path) -> tuple[str, float] | None:
    """The name of the best checkpoint and its value; None if there is none, or if the file is damaged."""
    try:
        name, value = (root / BEST).read_text(encoding="utf-8").split()
        if not math.isfinite(float(value)):
            raise ValueError(f"found the value {value}")
        return name, float(value)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s: cannot be read (%s); the best checkpoint is found again", root / BEST, error)
        return None


def _named_best(root: Path) -> str | None:
    best = _read_best(root)
    return None if best is None else best[0]


def _newest(root: Path) -> Path | None:
    """The checkpoint that `LATEST` names, else the one with the highest number."""
    with_number = checkpoint_folders(root)
    latest = root / LATEST
    name = latest.read_text(encoding="utf-8").strip() if latest.is_file() else ""
    named = [folder for folder in with_number if folder.name == name]
    return [*with_number, *named][-1] if with_number else None
