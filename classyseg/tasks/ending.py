"""How a run ends before its last step, or pauses: a hook asks, and all processes agree."""

from __future__ import annotations

import logging

from classyseg import distributed

log = logging.getLogger(__name__)


class Ending:
    """Requests of this process to stop, and what all processes agreed on.

    `reason` is the first reason that any process gave; None while the run goes on. It is the same in every process. A
    pause is no end: the run is saved and leaves, as after a signal, and is resumed later.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._asked: str | None = None
        self._asked_to_pause: str | None = None

    def request(self, reason: str) -> None:
        self._asked = self._asked or reason

    def request_pause(self, reason: str) -> None:
        self._asked_to_pause = self._asked_to_pause or reason

    def why_paused(self) -> str | None:
        """The reason of the first process that asked to pause; None if none did. Every process calls it."""
        return distributed.first_text(self._asked_to_pause)

    def agree(self, step: int) -> None:
        """If any process has a request, all take it. Every process calls it."""
        found = distributed.first_text(self._asked)
        if found is not None and self.reason is None:
            self.reason = found
            if distributed.is_primary():
                log.info("the training ends after step %d: %s", step, found)

    def agree_in_step(self, step: int, *, signalled: bool) -> bool:
        """As `agree`; in the same exchange, it gives whether any process got a signal, or asked to pause."""
        signalled = signalled or self._asked_to_pause is not None
        signalled, requested = distributed.each_in_any_process(signalled, self._asked is not None)
        if requested and self.reason is None:
            self.agree(step)
        return signalled
