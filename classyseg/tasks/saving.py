"""How a run starts in its folder, is saved between two batches, and is resumed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from classyseg import distributed
from classyseg.checkpoint import NUM_TENSORS, Checkpoint, load_checkpoint, save_checkpoint
from classyseg.config import dump_yaml
from classyseg.errors import NonFiniteError
from classyseg.records import RecordFile, RunRecords
from classyseg.run_folder import CHECKPOINTS, CONFIG, FILES, remove_leftovers
from classyseg.stopping import RollBack
from classyseg.tasks.extension import check_extension
from classyseg.tasks.non_finite import ADVICE, RECORD_FILE
from classyseg.tasks.python_config import tell_what_is_not_written
from classyseg.tasks.resume import (
    METRICS_FILE,
    cut_records,
    load_hooks,
    load_non_finite,
    newest_of_run,
    read_records,
    require_finite,
    same_run,
    saved_loss_sum,
    saved_plan,
    saved_progress,
    saved_stop,
    states_of_hooks,
)
from classyseg.tasks.settling import settled_before

if TYPE_CHECKING:
    from classyseg.tasks.classy_task import ClassyTask

log = logging.getLogger(__name__)


def start_run(
    task: ClassyTask, run_folder: Path | None, *, resume: bool, strict: bool, extend: bool, in_place: Callable[[], bool]
) -> None:
    """Prepares a task and its folder. Weights, clock and records are those of the start, or of a checkpoint."""
    task.run_folder = run_folder
    task.records = RunRecords(run_folder if distributed.is_primary() else None, in_place)
    if run_folder is not None and distributed.is_primary():
        tell_what_is_not_written(task.config)
    if run_folder is not None and resume and task.runtime.left_to_machine:
        with distributed.failing_together():
            task.settled = settled_before(run_folder)
    task.prepare()
    if run_folder is not None:
        with distributed.failing_together():
            if distributed.is_primary():
                remove_leftovers(run_folder / CHECKPOINTS)
                for name in FILES:
                    remove_leftovers(run_folder, f"{name}.tmp-*")
                records = read_records(run_folder, _record_files(task))
    newest = newest_of_run(run_folder / CHECKPOINTS, strict=strict) if run_folder is not None and resume else None
    if newest is None:
        with distributed.failing_together():
            task.load_initial_weights()
    task.engine.distribute(task.averaging)
    checkpoint = None if newest is None else resume_run(task, newest, extend=extend)
    if run_folder is not None:
        with distributed.failing_together():
            if distributed.is_primary():
                cut_records(run_folder, records, task.progress, task.plan.last_step, checkpoint)
                task.records.replace(CONFIG, dump_yaml(task.config))
    goes_back = task.non_finite.policy == "rollback" and task.engine.optimizer is not None
    task.beginning = _beginning(task) if goes_back and checkpoint is None else None


def _record_files(task: ClassyTask) -> list[RecordFile]:
    """All files of records in the run's folder, each once: of the task, its data and its hooks."""
    declared = [
        METRICS_FILE,
        task.data.record_file,
        RECORD_FILE,
        *(file for hook in task.hooks for file in hook.record_files),
    ]
    return list({file.name: file for file in declared}.values())


def save_run(task: ClassyTask, *, asynchronous: bool = False) -> Path | None:
    """See `ClassyTask.save_checkpoint`."""
    task.non_finite.look(task)
    gathered = _gathered(task)
    tensors = {} if task.run_folder is None else task.checkpoint_tensors()
    if task.run_folder is None or not distributed.is_primary():
        return None
    task.records.write()  # records first: a checkpoint must not be ahead of the records on the disk
    state = _state(task, gathered, tensors)
    root, step = task.run_folder / CHECKPOINTS, task.progress.step
    if asynchronous:
        return task.writer.write(root, step, tensors, state)
    task.writer.wait()
    return save_checkpoint(root, step, tensors, state)


def _gathered(task: ClassyTask) -> dict[str, Any]:
    """The values of a checkpoint for which all processes are needed. Every process calls it.

    It comes before the primary does anything that may fail in it alone.
    """
    loss_sum = distributed.mean_over_processes(task.loss_sum)
    require_finite(loss_sum, f"the steps up to {task.progress.step}")
    task.ending.agree(task.progress.step)
    return {
        "progress": asdict(task.progress),
        "loss_sum": loss_sum,
        "stop": task.ending.reason,
        "non_finite": task.non_finite.state(),
        **task.gather_state(),
        "hooks": states_of_hooks(task.hooks),
    }


def _state(
    task: ClassyTask, gathered: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Any]:
    return {
        **gathered,
        NUM_TENSORS: {name: len(group) for name, group in tensors.items()},
        "config": task.config,
        **task.checkpoint_state(),
    }


def resume_run(task: ClassyTask, folder: Path, *, extend: bool) -> Checkpoint:
    """Restores a checkpoint that was verified, and returns it. Every process calls it.

    `extend` allows another length even where that changes the learning rate.
    """
    with distributed.failing_together():
        checkpoint = load_checkpoint(folder, verified=True)
        same_run(checkpoint, task.config, task.free_on_resume, weights=task.weights_key)
        _restore(task, checkpoint, extend=extend)
    if distributed.is_primary():
        log.info("resumed %s", checkpoint.folder)
        if task.ending.reason is not None:
            step = task.progress.step
            log.info("a hook ended this run at step %d, and it stays ended: %s", step, task.ending.reason)
    return checkpoint


def _restore(task: ClassyTask, checkpoint: Checkpoint, *, extend: bool = False) -> None:
    task.ending.reason = saved_stop(checkpoint)
    has_ended = task.ending.reason is not None  # a hook ended it: another length changes nothing
    plan = saved_plan(checkpoint, task.plan)
    progress = saved_progress(checkpoint, plan, has_ended=has_ended)
    if plan.num_steps != task.num_steps and not has_ended:
        check_extension(plan, task.plan, progress.step, task.model, task.optimizer, extend=extend)
    loss_sum = saved_loss_sum(checkpoint)
    load_non_finite(task.non_finite, checkpoint, progress.step, task.training_orders)
    task.restore(checkpoint)
    load_hooks(task.hooks, checkpoint)
    task.progress = progress
    task.progress = task.plan.resumed_at(progress)
    task.loss_sum = torch.tensor(loss_sum, dtype=torch.float64)
    if plan.num_steps != task.num_steps and task.optimizer is not None and progress.step:
        done = (progress.step - 1) / plan.num_steps  # the rate of the last step, for the next record
        task.optimizer.current_lr = task.optimizer.lr * task.optimizer.schedule_for(plan.length)(done)


def _beginning(task: ClassyTask) -> Checkpoint:
    """The start of a run as a checkpoint in memory, to go back to while there is none on the disk."""
    gathered, tensors = _gathered(task), task.checkpoint_tensors()
    kept = {name: {key: x.detach().cpu().clone() for key, x in group.items()} for name, group in tensors.items()}
    folder = (task.run_folder or Path()) / CHECKPOINTS / "step-0"
    return Checkpoint(folder, kept, json.loads(json.dumps(_state(task, gathered, tensors))))


def go_back(task: ClassyTask, cause: RollBack) -> None:
    """Restores the newest checkpoint, or the start where there is none, and leaves out the samples of the bad step."""
    steps, folder = task.non_finite, task.run_folder
    known = steps.rollbacks, steps.left_out
    task.writer.forget()
    writes = folder is not None and distributed.is_primary()
    with distributed.failing_together():
        if folder is not None and writes:
            task.records.write()
            records = read_records(folder, _record_files(task))
    newest = None if folder is None else newest_of_run(folder / CHECKPOINTS)
    checkpoint = None if newest is None else resume_run(task, newest, extend=False)
    if checkpoint is None:
        with distributed.failing_together():
            if task.beginning is None:
                raise NonFiniteError(f"{cause}. No checkpoint is left to go back to. {ADVICE}")
            _restore(task, task.beginning)
    steps.rollbacks, steps.left_out = known
    with distributed.failing_together():
        if folder is not None and writes:
            cut_records(folder, records, task.progress, task.plan.last_step, checkpoint)
        if distributed.is_primary():
            log.warning("%s; the run goes back to step %d, and takes other samples", cause, task.progress.step)
    steps.went_back(task, cause)
