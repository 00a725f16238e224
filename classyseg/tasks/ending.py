"""How a run ends before its last step: a hook asks, and all processes agree."""

from __future__ import annotations

import logging

from classyseg import distributed

log = logging.getLogger(__name__)


class Ending:
    """Requests of this process to stop, and what all processes agreed on.

    `reason` is the first reason that any process gave; None while the run goes on. It is the same in every process.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._asked: str | None = None

    def request(self, reason: str) -> None:
        self._asked = self._asked or reason

    def agree(self, step: int) -> None:
        """If any process has a request, all take it. Every process calls it."""
        found = distributed.first_text(self._asked)
        if found is not None and self.reason is None:
            self.reason = found
            if distributed.is_primary():
                log.info("the training ends after step %d: %s", step, found)

    def agree_in_step(self, step: int, *, signalled: bool) -> bool:
        """As `agree`; in the same exchange, it gives whether any process got a signal."""
        signalled, requested = distributed.each_in_any_process(signalled, self._asked is not None)
        if requested and self.reason is None:
            self.agree(step)
        return signalled
