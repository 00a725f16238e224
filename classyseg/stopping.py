"""Stopping a run by a signal: how SIGTERM and SIGINT reach the training loop."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

Batch = TypeVar("Batch")

PATIENCE_SECONDS = 2.0
"""How long a run that was asked to stop still waits for its next batch, before it saves without it."""
REPEAT_SECONDS = 1.0
"""Signals that follow each other faster are one request. Ctrl-C reaches a process from the terminal, and again from
`torchrun`; `scancel` and systemd ask each process, and `torchrun` passes the signal on."""


class Stopped(BaseException):
    """A signal ended the run; `saved` says whether with a checkpoint. `exit_code` is 128 + the signal's number.

    With a `reason`, a hook asked to pause, which is as if the signal had come.

    No `Exception`, as `KeyboardInterrupt` is none: before the first step it is raised wherever the run happens to be,
    and readers that take every error for a broken file would call a good one unreadable.
    """

    def __init__(self, signal_number: int, *, saved: bool = True, reason: str | None = None) -> None:
        how = "" if saved else " before its first step: nothing was saved"
        super().__init__(reason or f"stopped by {signal.Signals(signal_number).name}{how}")
        self.exit_code = 128 + signal_number
        self.saved = saved


class WaitEnded(Exception):  # noqa: N818 (an outcome, not an error)
    """The run was asked to stop while it waited for data, which may never come.

    `together` says that all processes of the job know of it, so that they can save the same step.
    """

    exit_code = 128 + signal.SIGTERM

    def __init__(self) -> None:
        super().__init__("asked to stop while waiting for data")
        self.together = True


class RollBack(BaseException):
    """The run must go back to its newest checkpoint, as `step` was not finite. All processes raise it at one point.

    No `Exception`: the processes need no exchange to learn of it, and nobody may take it for a failure.
    """

    def __init__(self, step: int, told: str, record: Mapping[str, Any]) -> None:
        super().__init__(told)
        self.step, self.told, self.record = step, told, dict(record)


class StopRequests:
    """Remembers SIGTERM and SIGINT; the loop obeys between two batches.

    Signals that come within `REPEAT_SECONDS` of a request belong to it, SIGTERM and SIGINT alike: launchers pass on
    what the process itself got already.

    Within a step, a second request acts at once, as it would without this class. While the loop waits for data, or
    saves, a second request only ends the wait, because an impatient user must not cost the run. The third acts at once.
    With `at_once`, the first request ends the run immediately with `Stopped`.
    """

    def __init__(self, *, at_once: bool) -> None:
        self.at_once = at_once
        self.received: int | None = None
        self._since = 0.0
        self._newest = 0.0
        """When the newest request came."""
        self._insists = False
        self._holds = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                before = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread, where Python delivers signals: nothing to remember
                break
            self._before[number] = before or signal.SIG_DFL  # None for one that is not Python's
        return self

    def gives_up(self) -> bool:
        """Whether the loop must stop waiting for its data."""
        return self.received is not None and (self._insists or time.monotonic() - self._since > PATIENCE_SECONDS)

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields `batches`. A signal that comes during the wait for the next one ends at most that wait."""
        while True:
            with self.holding():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def holding(self) -> Holding:
        """Within the block, a second request does not end the process."""
        return Holding(self)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._since, self._newest = number, now, now
            if self.at_once:
                raise Stopped(number, saved=False)
        elif now - self._newest < REPEAT_SECONDS:
            return
        elif self._holds and not self._insists:
            self._insists, self._newest = True, now
        else:
            self._give_back()
            signal.raise_signal(number)

    def _give_back(self) -> None:
        """Lets those take the signals who had them before."""
        while self._before:
            signal.signal(*self._before.popitem())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()


class Holding:
    """The block of `StopRequests.holding`. A class, as it is entered for each batch."""

    def __init__(self, requests: StopRequests) -> None:
        self._requests = requests

    def __enter__(self) -> None:
        self._requests._holds = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._requests._holds = False
