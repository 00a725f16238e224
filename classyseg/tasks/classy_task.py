"""The contract of tasks, and what all of them share: the clock, hooks, the run folder, checkpoints."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from classyseg import distributed
from classyseg.checkpoint import (
    NUM_TENSORS,
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    set_aside_newer,
    step_of,
)
from classyseg.config import dump_yaml
from classyseg.hooks import ClassyHook
from classyseg.records import RunRecords
from classyseg.registry import ComponentConfig, Configurable
from classyseg.run_folder import CHECKPOINTS, CONFIG, FILES, METRICS, remove_leftovers
from classyseg.stopping import WaitEnded
from classyseg.structures import BestIs, Progress, Sample
from classyseg.tasks.given import config_of, parts_in_python
from classyseg.tasks.resume import cut_records, read_records, same_run, saved_loss_sum, saved_progress

log = logging.getLogger(__name__)

RECORD_KEYS = ("phase", "epoch", "step", "loss", "lr", "seconds", "samples_per_second", "data_wait")
"""What the record of every phase holds; the meters add to those of val phases."""


class ClassyTask(Configurable, ABC):
    """A run's parts and its steps; `Trainer` is the loop around it.

    A run is a sequence of phases: one over the training set an epoch, one over the validation set after every
    `val_every_epochs` of them and after the last. `progress` is the only clock, and with the tensors of
    `checkpoint_tensors` all that a continued run needs. A subclass calls `super().__init__` and gives the abstract
    methods.
    """

    _given: Mapping[str, Any]

    def __init__(self, *, num_epochs: int, val_every_epochs: int, has_val: bool) -> None:
        self.num_epochs = num_epochs
        self.val_every_epochs = val_every_epochs
        self.has_val = has_val
        self.progress = Progress(phase="train" if num_epochs else "val")
        self.hooks: Sequence[ClassyHook] = ()
        self.run_folder: Path | None = None
        self._config: Mapping[str, Any] | None = None
        self.chosen: Mapping[str, Any] = {}
        """Values of the config that it left to the task, and the task chose: for the record of the run."""
        self.metrics: dict[str, Any] = {}
        self.unseen_classes: Collection[str] = ()
        self.records = RunRecords(None)
        """What the run's folder gets; of the primary process."""
        self.phase_files: dict[str, str] = {}
        """What the run's folder gets beside the record of a phase: texts by file name, in place of earlier ones."""
        self.gives_up: Callable[[], bool] = lambda: False
        """Whether the run was asked to stop, and is not to wait for data any longer."""
        self.last_loss = torch.zeros(())
        self._loss_sum = torch.zeros((), dtype=torch.float64)
        self._samples = 0
        self._waited = 0.0
        self._phase_started = 0.0

    def __new__(cls, *args: Any, **given: Any) -> Self:
        task = super().__new__(cls)
        task._given = given  # of which `config` tells
        return task

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config: what `build_task` read, or the arguments that Python code gave."""
        if self._config is None:
            self._config = {**config_of(type(self), self._given), **self.chosen}
        return self._config

    @config.setter
    def config(self, config: Mapping[str, Any]) -> None:
        self._config = config

    # -- what a task gives -------------------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Brings the parts to their device, and the model into the form that trains on several processes."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int: ...

    @property
    @abstractmethod
    def num_batches(self) -> int:
        """How many batches the current phase has in this process."""

    @property
    @abstractmethod
    def common_batches(self) -> int:
        """How many of them every process has at least."""

    @property
    @abstractmethod
    def lr(self) -> float: ...

    @abstractmethod
    def load_batches(self, start: int) -> Iterator[Sample]:
        """The batches of the current phase from number `start` on."""

    @abstractmethod
    def train_step(self, batch: Sample) -> None:
        """Learns from a batch; sets `last_loss` to its loss, on the device."""

    @abstractmethod
    def eval_step(self, batch: Sample) -> None:
        """Counts a batch in the meters."""

    @abstractmethod
    def begin_phase(self) -> None:
        """Train or eval mode; meters at zero."""

    @abstractmethod
    def phase_metrics(self) -> dict[str, Any]:
        """What the finished phase adds to its record; sets `phase_files`. Every process calls it."""

    @abstractmethod
    def checkpoint_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Groups of tensors to save: `model` and `optimizer`."""

    @abstractmethod
    def checkpoint_state(self) -> dict[str, Any]:
        """Plain values to save beside them."""

    @abstractmethod
    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes the tensors and values of a checkpoint. Raises: `ConfigError` when they do not fit."""

    def gather_state(self) -> dict[str, Any]:
        """Plain values to save that need all processes; every process calls it."""
        return {}

    def load_initial_weights(self) -> None:
        """Loads what the run starts from; called where no checkpoint is restored. Raises: `ConfigError`."""

    def close(self) -> None:
        """Ends the processes that load data, and what the hooks hold; called when a run ends, however it ends."""
        for hook in self.hooks:
            hook.close()

    @classmethod
    def check(cls, config: ComponentConfig) -> None:
        """What can be found wrong with a valid config without data, weights or a device. Raises: `ConfigError`."""

    # -- the life of a run, called by the trainer --------------------------------------------------------------------

    def start(
        self, run_folder: Path | None, *, resume: bool = False, in_place: Callable[[], bool] = lambda: True
    ) -> None:
        """Prepares everything; with `resume`, continues the newest checkpoint of `run_folder` that verifies, if any.

        `in_place` tells whether the folder is still the run's; only the primary process asks.
        """
        self.run_folder = run_folder
        self.records = RunRecords(run_folder if distributed.is_primary() else None, in_place)
        self._tell_what_is_not_written()
        self.prepare()
        if run_folder is not None:
            with distributed.failing_together():
                if distributed.is_primary():
                    remove_leftovers(run_folder / CHECKPOINTS)
                    for name in FILES:
                        remove_leftovers(run_folder, f"{name}.tmp-*")
                    records = read_records(run_folder)
        checkpoint = self._resume(run_folder) if run_folder is not None and resume else None
        if checkpoint is None:
            with distributed.failing_together():
                self.load_initial_weights()
        if run_folder is not None:
            with distributed.failing_together():
                if distributed.is_primary():
                    cut_records(records, self.progress, checkpoint)
                    self.records.replace(CONFIG, dump_yaml(self.config))
        for hook in self.hooks:
            hook.on_start(self)

    def _tell_what_is_not_written(self) -> None:
        places = parts_in_python(self.config)
        if places and self.run_folder is not None and distributed.is_primary():
            log.warning(
                "config.yaml and the checkpoints cannot describe what Python code built: %s; to train or resume this "
                "run from a config, write mappings such as {'name': 'resnet50'} there",
                ", ".join(places),
            )

    def start_phase(self) -> bool:
        """Begins the phase that `progress` names; False when the run is done."""
        done = self.progress.epoch >= self.num_epochs
        if self.progress.phase == "train" and done:
            return False
        if self.progress.phase == "val" and not self.has_val:
            return False
        self._samples, self._waited, self._phase_started = 0, 0.0, time.perf_counter()
        self.begin_phase()
        for hook in self.hooks:
            hook.on_phase_start(self)
        return True

    def batches(self) -> Iterator[Sample]:
        """The batches of the phase that are left, while measuring how long the loop waits for each."""
        batches = iter(self.load_batches(self.progress.step_in_phase))
        while True:
            asked = time.perf_counter()
            # A process may have one val batch more than another: the other's vote is then that its batches are over.
            all_load = self.progress.step_in_phase <= self.common_batches
            try:
                with distributed.failing_together() if all_load else contextlib.nullcontext():
                    batch = next(batches, None)
                    self._waited += time.perf_counter() - asked
            except WaitEnded as ended:
                ended.together = all_load
                raise
            if batch is None:
                return
            yield batch

    def step(self, batch: Sample) -> None:
        """One batch of either phase."""
        if self.progress.phase == "train":
            self.train_step(batch)
            self.progress.step += 1
            self._loss_sum = self._loss_sum.to(self.last_loss.device) + self.last_loss
        else:
            self.eval_step(batch)
        self.progress.step_in_phase += 1
        self._samples += len(batch.image)
        for hook in self.hooks:
            hook.on_step(self)

    def agree_to_stop(self, asked: bool) -> bool:
        """Whether any process was asked to stop, between two batches, where all of them can save the same step."""
        return self.progress.step_in_phase <= self.common_batches and distributed.any_process(asked)

    def end_phase(self) -> None:
        """Writes the record of the phase and moves `progress` to the next one."""
        progress = self.progress
        record: dict[str, Any] = {"phase": progress.phase, "epoch": progress.epoch, "step": progress.step}
        if progress.phase == "train":
            record["epoch"] += 1
            record["loss"] = self._mean_over_processes(self._loss_sum) / self.steps_per_epoch
        record |= {"lr": self.lr, **self.phase_metrics()}
        record |= {
            "seconds": time.perf_counter() - self._phase_started,
            "samples_per_second": self.samples_per_second,
            "data_wait": self.data_wait,
        }
        self.metrics = record
        self.progress = self._next_progress()
        self._loss_sum = torch.zeros((), dtype=torch.float64)
        with distributed.failing_together():
            if record["phase"] == "train":
                _require_finite(record["loss"], f"epoch {record['epoch']}")
            if self.run_folder is not None and distributed.is_primary():
                for name, text in self.phase_files.items():
                    self.records.give(name, text)
                self.records.append(METRICS, record, durable=True)
        for hook in self.hooks:
            hook.on_phase_end(self)

    def end(self) -> None:
        for hook in self.hooks:
            hook.on_end(self)
        with distributed.failing_together():
            self.records.finish()

    def _next_progress(self) -> Progress:
        now = self.progress
        if now.phase == "val":
            return Progress(epoch=now.epoch, phase="train", step=now.step)
        epoch = now.epoch + 1
        return Progress(epoch=epoch, phase="val" if self._is_measured(epoch) else "train", step=now.step)

    def _is_measured(self, epoch: int) -> bool:
        """Whether a val phase follows so many epochs."""
        return self.has_val and (epoch == self.num_epochs or (epoch > 0 and epoch % self.val_every_epochs == 0))

    # -- what hooks read ---------------------------------------------------------------------------------------------

    @property
    def samples_per_second(self) -> float:
        """Samples of the whole job a second, in this phase so far."""
        return self._samples * distributed.world_size() / max(1e-9, time.perf_counter() - self._phase_started)

    @property
    def data_wait(self) -> float:
        """The share of this phase's time in which the loop waited for data."""
        return self._waited / max(1e-9, time.perf_counter() - self._phase_started)

    def step_loss(self) -> float:
        """The whole job's loss of the last step. Every process calls it."""
        return self._mean_over_processes(self.last_loss)

    def best_is(self, number: str) -> BestIs | None:
        """Which value of a number of the val record is best; None: nothing says, and a `best` must say it itself."""
        return "smallest" if number == "loss" else None

    def _mean_over_processes(self, value: Tensor) -> float:
        return (distributed.sum_over_processes(value.detach().double().cpu()) / distributed.world_size()).item()

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> Path | None:
        """Saves the run as it stands between two batches; None without a run folder.

        Every process calls it, within `failing_together`: what cannot be written fails in the primary alone.

        Raises: `FloatingPointError` when a training loss of this phase was not finite: such weights are worth nothing;
            `OSError` when something cannot be written; `WriteError` where the run's folder is gone.
        """
        loss_sum = self._mean_over_processes(self._loss_sum)
        _require_finite(loss_sum, f"the steps up to {self.progress.step}")
        gathered = self.gather_state()
        if self.run_folder is None or not distributed.is_primary():
            return None
        self.records.write()  # a checkpoint tells nothing of what is not on the disk
        tensors = self.checkpoint_tensors()
        state = {
            "progress": asdict(self.progress),
            "loss_sum": loss_sum,
            NUM_TENSORS: {name: len(group) for name, group in tensors.items()},
            "config": self.config,
            **gathered,
            **self.checkpoint_state(),
        }
        return save_checkpoint(self.run_folder / CHECKPOINTS, self.progress.step, tensors, state)

    def _resume(self, run_folder: Path) -> Checkpoint | None:
        """Restores the newest checkpoint that verifies, and gives it; None where there is none."""
        root = run_folder / CHECKPOINTS
        step = -1
        with distributed.failing_together():
            if distributed.is_primary():
                newest, problems = newest_checkpoint(root)
                for problem in problems:
                    log.warning("passing over a damaged checkpoint: %s", problem)
                step = step_of(newest) if newest else -1
                set_aside_newer(root, step)
        step = distributed.integer_from_primary(step)
        if step < 0:
            if distributed.is_primary():
                log.info("%s: no checkpoint to resume; starting from the beginning", root)
            return None
        with distributed.failing_together():
            checkpoint = load_checkpoint(root / f"step-{step}")
            same_run(checkpoint, self.config)
            progress = saved_progress(
                checkpoint,
                num_epochs=self.num_epochs,
                steps_per_epoch=self.steps_per_epoch,
                is_measured=self._is_measured,
            )
            loss_sum = saved_loss_sum(checkpoint)
            self.restore(checkpoint)
        self.progress = progress
        self._loss_sum = torch.tensor(loss_sum, dtype=torch.float64)
        if distributed.is_primary():
            log.info("resumed %s", checkpoint.folder)
        return checkpoint


def _require_finite(loss: float, where: str) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the training loss of {where} is {loss}. A lower optimizer.lr, a warm-up or optimizer.clip_norm may help"
        )
