"""How a run is saved between two batches, and goes on from there."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from classyseg import distributed
from classyseg.checkpoint import NUM_TENSORS, Checkpoint, load_checkpoint, save_checkpoint
from classyseg.run_folder import CHECKPOINTS
from classyseg.tasks.resume import newest_of_run, require_finite, same_run, saved_loss_sum, saved_progress

if TYPE_CHECKING:
    from classyseg.tasks.classy_task import ClassyTask

log = logging.getLogger(__name__)


def save_run(task: ClassyTask) -> Path | None:
    """`ClassyTask.save_checkpoint`."""
    loss_sum = distributed.mean_over_processes(task.loss_sum)
    require_finite(loss_sum, f"the steps up to {task.progress.step}")
    gathered = {"progress": asdict(task.progress), "loss_sum": loss_sum, **task.gather_state()}
    if task.run_folder is None or not distributed.is_primary():
        return None
    task.records.write()  # a checkpoint tells nothing of what is not on the disk
    tensors = task.checkpoint_tensors()
    state = {
        **gathered,
        NUM_TENSORS: {name: len(group) for name, group in tensors.items()},
        "config": task.config,
        **task.checkpoint_state(),
    }
    return save_checkpoint(task.run_folder / CHECKPOINTS, task.progress.step, tensors, state)


def resume_run(task: ClassyTask, run_folder: Path) -> Checkpoint | None:
    """Restores the newest checkpoint of a run that verifies, and gives it; None without one. Every process calls it."""
    folder = newest_of_run(run_folder / CHECKPOINTS)
    if folder is None:
        return None
    with distributed.failing_together():
        checkpoint = load_checkpoint(folder)
        same_run(checkpoint, task.config)
        progress = saved_progress(
            checkpoint,
            num_epochs=task.num_epochs,
            steps_per_epoch=task.steps_per_epoch,
            is_measured=task.is_measured,
        )
        loss_sum = saved_loss_sum(checkpoint)
        task.restore(checkpoint)
    task.progress = progress
    task.loss_sum = torch.tensor(loss_sum, dtype=torch.float64)
    if distributed.is_primary():
        log.info("resumed %s", checkpoint.folder)
    return checkpoint
