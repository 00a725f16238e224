"""When checkpoints are saved, and which are kept."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from classyseg.checkpoint import prune
from classyseg.config import ConfigError
from classyseg.distributed import failing_together, integer_from_primary, is_primary
from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.io import write_atomically
from classyseg.registry import HOOKS

MAX_FAILURES = 3
BEST = "BEST"
log = logging.getLogger(__name__)


@HOOKS.register("checkpoint")
class CheckpointHook(ClassyHook):
    """Saves after every `every_epochs` training phases and every `every_steps` steps; keeps the newest `keep`.

    With `best`, a number in the test record such as `mean_iou`, the checkpoint of the best test phase is saved, kept
    and named in `checkpoints/BEST`; `best_is` says whether the largest or the smallest value is best. A phase without
    the value (nothing valid was measured) is never best. The last training phase is always saved. A save that fails (a
    full disk) leaves the older ones as they are and is tried again; the third failure in a row ends the run.
    """

    def __init__(
        self,
        *,
        every_epochs: Annotated[int, Field(ge=1)] = 1,
        every_steps: Annotated[int, Field(ge=1)] | None = None,
        keep: Annotated[int, Field(ge=1)] = 3,
        best: str | None = None,
        best_is: Literal["largest", "smallest"] = "largest",
    ) -> None:
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.keep = keep
        self.best = best
        self.best_is = best_is
        self.failures = 0

    def on_start(self, task: WatchedTask) -> None:
        if task.run_folder is None or not is_primary():
            return
        root = task.run_folder / "checkpoints"
        best = self._best_name(root)
        if best is not None and not (root / best).is_dir():  # it was damaged: the best one is to be found again
            (root / BEST).unlink()

    def on_step(self, task: WatchedTask) -> None:
        progress = task.progress
        if progress.phase == "train" and self.every_steps and progress.step % self.every_steps == 0:
            self._save(task)

    def on_phase_end(self, task: WatchedTask) -> None:
        record = task.metrics
        if record["phase"] == "train" and (
            record["epoch"] % self.every_epochs == 0 or record["epoch"] == task.num_epochs
        ):
            self._save(task)
        if record["phase"] == "test" and self.best is not None and task.run_folder is not None:
            path = task.run_folder / "checkpoints" / BEST
            with failing_together():
                value = self._value(record)
                is_best = value is not None and self._is_best(path, value)
            if integer_from_primary(int(is_best)):
                self._save(task)
                if is_primary() and (path.parent / f"step-{record['step']}").is_dir():
                    write_atomically(path, f"step-{record['step']} {value!r}\n")

    def _save(self, task: WatchedTask) -> None:
        with failing_together():
            self._save_if_possible(task)

    def _save_if_possible(self, task: WatchedTask) -> None:
        try:
            folder = task.save_checkpoint()
        except OSError as error:
            self.failures += 1
            if self.failures >= MAX_FAILURES:
                raise
            log.warning("checkpoint of step %d not saved: %s; training goes on", task.progress.step, error)
            return
        self.failures = 0
        if folder is not None and is_primary():
            prune(folder, self.keep, self._best_name(folder.parent))

    def _best_name(self, root: Path) -> str | None:
        path = root / BEST
        return path.read_text(encoding="utf-8").split()[0] if path.exists() else None

    def _value(self, record: dict[str, object]) -> float | None:
        """The number of the test phase; None where it has none (nothing valid was measured): never the best."""
        value = record.get(self.best or "", "")
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return None
        if not isinstance(value, int | float):
            numbers = [key for key, found in record.items() if isinstance(found, int | float)]
            raise ConfigError(
                f"hooks.checkpoint.best: the test record has no number '{self.best}'; it has {', '.join(numbers)}"
            )
        return float(value)

    def _is_best(self, path: Path, value: float) -> bool:
        if not path.exists():
            return True
        before = float(path.read_text(encoding="utf-8").split()[1])
        return value > before if self.best_is == "largest" else value < before
