"""The loop: phases of batches, until the task is done or somebody asks it to stop."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from classyseg import distributed, switches
from classyseg.config import user_path
from classyseg.io import FolderLock

if TYPE_CHECKING:
    from classyseg.tasks import ClassyTask


class Stopped(Exception):  # noqa: N818 (an outcome, not an error)
    """A signal ended the run after a checkpoint was saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class Trainer:
    """Trains a task, in this process and those that `torchrun` started beside it.

    `output` is the run's folder, or None to write nothing; `resume` continues what lies there. The loop:

        while the task has a phase:
            for each batch: one step; asked to stop? save, and raise `Stopped`
    """

    def __init__(self, output: str | Path | None = None, *, resume: bool = False) -> None:
        self.output = None if output is None else user_path(output)
        self.resume = resume

    def train(self, task: ClassyTask) -> None:
        """Runs `task` to its end. Raises: `Stopped` after SIGTERM or SIGINT; `ConfigError` for what a user wrote,
        and `PeerError` for an error of another process.
        """
        with switches.kept():
            self._train(task)

    def _train(self, task: ClassyTask) -> None:
        lock = None
        with distributed.failing_together():
            if self.output is not None and distributed.is_primary():
                self.output.mkdir(parents=True, exist_ok=True)
                lock = FolderLock(self.output)
        try:
            with _Signals() as signals:
                task.start(self.output, resume=self.resume)
                while task.start_phase():
                    for batch in task.batches():
                        task.step(batch)
                        if task.agree_to_stop(signals.received is not None):
                            # Together, else torchrun, seeing one process gone, ends the one that saves.
                            with distributed.failing_together():
                                task.save_checkpoint()
                            raise Stopped(signals.received or signal.SIGTERM)
                    task.end_phase()
                task.end()
        finally:
            task.close()
            if lock is not None:
                lock.release()


class _Signals:
    """Remembers the first SIGTERM or SIGINT; a second one acts as it would without us."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread, where Python delivers signals: nothing to remember
                break
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
