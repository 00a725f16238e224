"""A line of JSON for training steps."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from classyseg.distributed import failing_together
from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.records import RecordFile
from classyseg.registry import HOOKS
from classyseg.run_folder import STEPS


@HOOKS.register("log")
class LogHook(ClassyHook):
    """Appends a record to `steps.jsonl` every `every` training steps.

    It holds step, epoch, the whole job's loss, lr, samples_per_second and data_wait.

    Args:
        every: Training steps between two records. Reading the loss waits for the GPU.
    """

    record_files = (RecordFile(STEPS, {"step": int}),)

    def __init__(self, *, every: Annotated[int, Field(ge=1)] = 50) -> None:
        self.every = every

    def on_step(self, task: WatchedTask) -> None:
        progress = task.progress
        if progress.phase != "train" or progress.step % self.every:
            return
        loss = task.step_loss()  # every process takes part
        record = {
            "step": progress.step,
            "epoch": progress.epoch + 1,
            "loss": loss,
            "lr": task.lr,
            "samples_per_second": task.samples_per_second,
            "data_wait": task.data_wait,
        }
        with failing_together():
            task.records.append(STEPS, record)
