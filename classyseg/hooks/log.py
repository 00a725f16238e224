"""A line of JSON for training steps: loss and learning rate, speed, memory."""

from __future__ import annotations

import time
from typing import Annotated, Any

import torch
from pydantic import Field

from classyseg.distributed import failing_together, gather_over_processes
from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.hooks.memory_use import device_peak, host_bytes
from classyseg.records import RecordFile
from classyseg.registry import HOOKS
from classyseg.run_folder import STEPS
from classyseg.structures import PhaseTime


@HOOKS.register("log")
class LogHook(ClassyHook):
    """Appends a record to `steps.jsonl` every `every` training steps.

    It holds step, epoch, the whole job's loss, lr, samples_per_second and data_wait; the last two are for the phase so
    far. The other keys add to it; what they add stands in run_folder.md. Nothing waits for the GPU between two records.

    Args:
        every: Training steps between two records. Reading the loss waits for the GPU.
        throughput: Adds `throughput`, how fast the steps since the record before were: where time is lost, and when.
        memory: Adds `memory`, what the run takes on its devices and in RAM.
        groups: Adds `gradient_norm` and `groups`: for each group of parameters the learning rate, weight decay and
            momentum of the step, and the norms of its gradients and weights.
    """

    record_files = (RecordFile(STEPS, {"step": int}),)

    def __init__(
        self,
        *,
        every: Annotated[int, Field(ge=1)] = 50,
        throughput: bool = False,
        memory: bool = False,
        groups: bool = False,
    ) -> None:
        self.every = every
        self.throughput = throughput
        self.memory = memory
        self.groups = groups
        self._before = PhaseTime(0.0, 0.0, 0)
        self._last_step, self._slowest, self._steps = time.perf_counter(), 0.0, 0

    def on_phase_start(self, task: WatchedTask) -> None:
        self._begin_interval(task, time.perf_counter())

    def on_step(self, task: WatchedTask) -> None:
        progress = task.progress
        if progress.phase != "train":
            return
        now = time.perf_counter()
        self._slowest, self._last_step = max(self._slowest, now - self._last_step), now
        self._steps += 1
        if progress.step % self.every:
            return
        loss = task.step_loss()  # every process takes part; it waits for the device, so that the clock is right
        record: dict[str, Any] = {
            "step": progress.step,
            "epoch": progress.epoch + 1,
            "loss": loss,
            "lr": task.lr,
            "samples_per_second": task.samples_per_second,
            "data_wait": task.data_wait,
        }
        if self.throughput:
            record["throughput"] = self._throughput(task)
        if self.memory:
            record["memory"] = _memory(task.last_loss.device)
        if self.groups:
            record |= task.optimizer_numbers()
        with failing_together():
            task.records.append(STEPS, record)
        self._begin_interval(task, time.perf_counter())

    def _begin_interval(self, task: WatchedTask, now: float) -> None:
        self._before = task.phase_time
        self._last_step, self._slowest, self._steps = now, 0.0, 0

    def _throughput(self, task: WatchedTask) -> dict[str, float]:
        """Speed since the record before, or since the beginning of the phase. Every process calls it."""
        seconds, waited, samples = (now - before for now, before in zip(task.phase_time, self._before, strict=True))
        own = torch.tensor([samples, seconds, waited, self._slowest], dtype=torch.float64)
        each = gather_over_processes(own)
        longest, waited, slowest = each[:, 1:].amax(dim=0).tolist()
        longest = max(1e-9, longest)
        return {
            "samples_per_second": each[:, 0].sum().item() / longest,
            "data_wait": waited / longest,
            "step_seconds": longest / self._steps,
            "slowest_step_seconds": slowest,
        }


def _memory(device: torch.device) -> dict[str, int | None]:
    """Memory of the process that takes most. Every process calls it."""
    on_device = device_peak(device)
    own = torch.tensor([-1 if on_device is None else on_device, host_bytes()], dtype=torch.int64)
    most_on_device, most_on_host = gather_over_processes(own).amax(dim=0).tolist()
    return {"device": None if most_on_device < 0 else most_on_device, "host": most_on_host}
