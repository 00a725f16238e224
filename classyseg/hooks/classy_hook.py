"""The contract of hooks: five events, and what they may look at."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from classyseg.records import RunRecords
from classyseg.registry import Configurable
from classyseg.structures import BestIs, Progress


class WatchedTask(Protocol):
    """What a hook may count on seeing of a task."""

    progress: Progress
    num_epochs: int
    run_folder: Path | None
    records: RunRecords
    """Writes files into the run's folder, where the process is to."""
    last_loss: Tensor
    """The loss of the last step in this process, on the device: reading it waits for the device."""
    metrics: dict[str, Any]
    """The record of the last finished phase, as it stands in metrics.jsonl."""
    unseen_classes: Collection[str]
    """The classes that no mask of the last val phase had, as far as the meters know."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def num_batches(self) -> int: ...

    @property
    def lr(self) -> float: ...

    @property
    def samples_per_second(self) -> float: ...

    @property
    def data_wait(self) -> float: ...

    def step_loss(self) -> float: ...

    def best_is(self, number: str) -> BestIs | None: ...

    def save_checkpoint(self) -> Path | None: ...


class ClassyHook(Configurable):
    """Watches a run in every process: what only one shall do asks `classyseg.distributed.is_primary()`.

    Hooks read the task; they do not steer it. A phase is one pass over the training or the validation set.
    """

    best: str | None = None
    """The number of a record, such as `mean_iou`, by which the hook tells better from worse: checked at the start."""
    best_is: BestIs | None = None
    """Which value of it is best, where the hook says it; else the task knows (`task.best_is`)."""
    names_best: bool = False
    """Whether it names the run's best checkpoint by it: a run has one."""

    def on_start(self, task: WatchedTask) -> None:
        """Once, before the first phase (of this process: a resumed run starts again)."""

    def on_phase_start(self, task: WatchedTask) -> None:
        """Before the first batch of a phase; `task.progress.phase` says which."""

    def on_step(self, task: WatchedTask) -> None:
        """After every batch of either phase."""

    def on_phase_end(self, task: WatchedTask) -> None:
        """After a phase; `task.metrics` holds its record, and `task.progress` stands at the next one."""

    def on_end(self, task: WatchedTask) -> None:
        """Once, after the last phase."""

    def close(self) -> None:
        """However a run ends, by an error or Ctrl-C too: frees what the hook holds, before a message is printed."""
