"""The hook that records what some training steps spend their time on."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from classyseg.distributed import failing_together, is_primary
from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.registry import HOOKS
from classyseg.run_folder import PROFILE, PROFILE_TABLE

ROWS = 30
log = logging.getLogger(__name__)


@HOOKS.register("profiler")
class ProfilerHook(ClassyHook):
    """Records some training steps with `torch.profiler`, once in a run, in process 0.

    The run's folder gets `profile.json.gz`, a trace for https://ui.perfetto.dev or chrome://tracing, and `profile.txt`,
    the operations that took most time. Steps that are recorded are slower. If the training phase ends before, what was
    recorded until then is written.

    Args:
        wait: Steps before anything is recorded, counted from the start of the process: the first ones are slow.
        warmup: Then so many steps in which the profiler runs, and its records are dropped.
        active: Then so many steps that are recorded.
        memory: Also records what is allocated.
        shapes: Also records the shapes of inputs.
        stacks: Also records the lines of Python; slow.
    """

    def __init__(
        self,
        *,
        wait: Annotated[int, Field(ge=0)] = 10,
        warmup: Annotated[int, Field(ge=1)] = 2,
        active: Annotated[int, Field(ge=1, le=1000)] = 5,
        memory: bool = False,
        shapes: bool = False,
        stacks: bool = False,
    ) -> None:
        self.wait, self.warmup, self.active = wait, warmup, active
        self.memory, self.shapes, self.stacks = memory, shapes, stacks
        self._seen = 0
        self._began_at: int | None = None
        self._is_done = False
        self._profile: Any = None
        self._found: tuple[bytes, str] | None = None
        """The trace and the table of a profile that has ended."""

    def on_phase_start(self, task: WatchedTask) -> None:
        if task.progress.phase == "train" and self.wait == 0:
            self._begin()

    def on_step(self, task: WatchedTask) -> None:
        if task.progress.phase != "train":
            return
        self._seen += 1
        if self._profile is not None:
            self._profile.step()  # after the last one, it calls `_keep`
        elif self._seen == self.wait:
            self._begin()
        if self._is_last_step():
            self._end(task)

    def on_phase_end(self, task: WatchedTask) -> None:
        if task.metrics["phase"] == "train" and self._began_at is not None and not self._is_done:
            self._end(task)

    def close(self) -> None:
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.stop()

    def _begin(self) -> None:
        if self._is_done or self._began_at is not None:
            return
        self._began_at = self._seen
        if not is_primary():
            return
        self._profile = torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=0, warmup=self.warmup, active=self.active, repeat=1),
            on_trace_ready=self._keep,
            profile_memory=self.memory,
            record_shapes=self.shapes,
            with_stack=self.stacks,
        )
        self._profile.start()

    def _is_last_step(self) -> bool:
        is_running = self._began_at is not None and not self._is_done
        return is_running and self._seen - (self._began_at or 0) == self.warmup + self.active

    def _end(self, task: WatchedTask) -> None:
        """Ends the profile in all processes, and writes it in process 0."""
        self._is_done = True
        with failing_together():
            self.close()
            has_steps = self._seen - (self._began_at or 0) > self.warmup
            if self._found is None or not has_steps:
                if is_primary():
                    log.warning("profiler: the training phase ended before a step was recorded; choose a smaller wait")
                return
            trace, table = self._found
            self._found = None
            task.records.give(PROFILE, trace)
            task.records.give(PROFILE_TABLE, table)
            if task.run_folder is not None:
                log.info("the profile up to step %d is in %s", task.progress.step, task.run_folder / PROFILE)

    def _keep(self, profile: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / PROFILE
            profile.export_chrome_trace(str(path))
            trace = path.read_bytes()
        kinds = {event.device_type for event in profile.events()}
        on_device = any(kind != torch.autograd.DeviceType.CPU for kind in kinds)
        by = f"self_{'device' if on_device else 'cpu'}_time_total"
        self._found = trace, profile.key_averages().table(sort_by=by, row_limit=ROWS)

    def state(self) -> dict[str, Any]:
        return {"is_done": self._is_done}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if type(state["is_done"]) is not bool:
            raise ValueError(f"found {state['is_done']!r}; expected true or false as `is_done`")
        self._is_done = state["is_done"]
