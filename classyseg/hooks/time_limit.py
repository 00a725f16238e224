"""The hook that saves a run and leaves before a cluster would kill it."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import Field

from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.registry import HOOKS


@HOOKS.register("time_limit")
class TimeLimitHook(ClassyHook):
    """After so many minutes, saves the run and ends the process, as SIGTERM does: exit code 143, `--resume` continues.

    The time begins when the parts of the run are built, and anew in each start of a resumed run. It is looked at after
    every batch of any phase, so each start takes at least one step. A measured phase that was left begins anew: a whole
    one must fit into the time. torchrun itself exits with 1 then; see [clusters](clusters.md).

    Args:
        minutes: Choose fewer than the cluster gives, so that the start, one more step and the saving fit in.
    """

    def __init__(self, *, minutes: Annotated[float, Field(gt=0, le=1e7)]) -> None:
        self.minutes = minutes
        self._ends = time.monotonic() + 60 * minutes

    def on_step(self, task: WatchedTask) -> None:
        if time.monotonic() >= self._ends:
            task.request_pause(f"time_limit: {self.minutes:g} minutes are over")
