"""The contract of tasks, and what all of them share: parts, the clock, hooks, the run folder, checkpoints."""

from __future__ import annotations

import contextlib
import inspect
import logging
import time
from abc import ABC
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from torch import Tensor

from classyseg import distributed
from classyseg.averaging import AveragingConfig
from classyseg.checkpoint import Checkpoint
from classyseg.checkpoint_writer import CheckpointWriter
from classyseg.complexity import Complexity
from classyseg.config import MAX_SEED, unknown
from classyseg.datasets import TrainOrder
from classyseg.datasets.facts import DataFacts
from classyseg.engine import Computed, Engine
from classyseg.engine.runtime import RuntimeConfig
from classyseg.errors import ConfigError
from classyseg.evaluation import Evaluation
from classyseg.hooks import ClassyHook, averaging_of
from classyseg.inference import Network, black_of, preparation_of
from classyseg.inference.device import bring
from classyseg.layers import NormalizeConfig
from classyseg.losses import ClassyLoss, Terms
from classyseg.models import ClassyModel, load_initial_weights
from classyseg.problems import Problems
from classyseg.records import RunRecords, WriteError
from classyseg.registry import (
    ComponentConfig,
    Configurable,
    HookConfig,
    LossConfig,
    MeterConfig,
    ModelConfig,
    OptimizerConfig,
    ProtocolConfig,
)
from classyseg.rng import seed_everything
from classyseg.run_folder import CHECKPOINTS, METRICS
from classyseg.signature import qualified
from classyseg.stopping import RollBack, WaitEnded
from classyseg.structures import BestIs, LabelMeaning, PhaseTime, Progress, Sample
from classyseg.tasks.assembly import TaskSpec, assemble, check_assembly
from classyseg.tasks.borrowed import BorrowedWeights
from classyseg.tasks.costs import cost_of, input_of
from classyseg.tasks.data import DatasetsConfig, TaskData
from classyseg.tasks.data_checks import Data, normalize_of_weights
from classyseg.tasks.ending import Ending
from classyseg.tasks.features import TaskFeatures, network_input
from classyseg.tasks.final_model import save_model
from classyseg.tasks.non_finite import NonFiniteSteps
from classyseg.tasks.pace import Pace
from classyseg.tasks.plan import RunPlan, epoch_of
from classyseg.tasks.python_config import config_of
from classyseg.tasks.resume import (
    require_finite,
    restore_engine,
    versions,
    whole_number,
)
from classyseg.tasks.sample_checks import (
    check_samples,
    warn_of_compression,
)
from classyseg.tasks.saving import go_back, save_run, start_run
from classyseg.tasks.settling import settle

log = logging.getLogger(__name__)


class ClassyTask(Configurable, ABC):
    """A run's parts and its steps; `Trainer` is the loop around it.

    A run is a sequence of phases, as its `plan` says: training, an epoch or less at a time; the validation set, every
    so many steps and after the last one; then the test set, once. `progress` is the only clock. A resumed run needs it
    and the tensors of `checkpoint_tensors`.

    A subclass may override `outputs` or `terms`, or `compute` for both. Training, its `val` phase and `classyseg
    evaluate` go by them; where a protocol shows the network parts of an image, by `outputs`. `training_batch` changes
    what is learnt from. It has these keyword-only parameters; to add its own, its `__init__` lists all of them, and
    hands its own on as `own`, for `check_own`.

    Args:
        num_epochs: Passes over the training set; or give `num_steps`. 0 trains nothing and measures `val` and `test`
            once: it needs no `dataset.train` and no `optimizer`.
        num_steps: Optimizer steps, in place of `num_epochs`.
        batch_size: Of the whole job, not of one process. It must be divisible by processes x
            `runtime.accumulate_steps`, and not larger than the training set.
        dataset: `train`, `val` and `test`; see key `dataset`.
        model: A model with its heads.
        loss: A loss.
        optimizer: An optimizer; required unless `num_epochs` is 0.
        seed: Everything random follows from it: initial weights, the order of samples, transforms, dropout.
        meters: Meters, computed on the validation and the test set.
        hooks: Hooks; `[]` for none: nothing is saved then but the metrics.
        normalize: See key `normalize`. null: if `model.weights` names published weights, what they need (the log and
            the run's `config.yaml` tell it); else ImageNet's mean and deviation.
        val_every_epochs: The validation set is measured after every so many epochs, and after the last step. null: 1,
            unless `val_every_steps` is given.
        val_every_steps: The same in steps; give one of the two. A measurement within an epoch ends a training phase
            there.
        protocol: How the network is run on measured images; see [protocols](#protocols). The loss is measured only with
            `whole`.
        runtime: See key `runtime`.
    """

    replaced = {
        "__init__(test_every_epochs)": "the data that training is measured on is `val`: take `val_every_epochs`",
        "load_batches(start)": "it has no argument: `progress` and `plan` tell where a phase stands",
    }
    record_numbers: Mapping[str, BestIs] = {"loss": "smallest"}
    """The task's own numbers in a val record, and which value of each is best. Meters add theirs."""
    free_on_resume: tuple[str, ...] = (
        "hooks",
        "dataset.test",
        "optimizer.zero",
        *(f"runtime.{key}" for key in RuntimeConfig.free_on_resume),
    )
    """The keys of its config that may differ when a run is resumed."""
    weights_key: str = "model.weights"
    """The key of the weights from which a run starts."""
    datasets: type[DatasetsConfig] = DatasetsConfig
    """What the key `dataset` holds: a subclass has data sets of its own in addition, such as `unlabelled`."""
    may_lack_masks: frozenset[str] = frozenset()
    """The data sets that may be images alone, such as `train` of a task that can learn from a teacher."""
    whole_images: bool | None = False
    """Whether it takes data sets of whole images with their classes, in place of masks; None: either.

    With None, the first data set says which: the others must be alike.
    """
    takes_clips: bool | None = False
    """Whether it takes clips of videos, in place of images; None: either, as for `whole_images`."""
    _given: Mapping[str, Any]

    def __init__(
        self,
        own: Mapping[str, Any] = MappingProxyType({}),
        /,
        *,
        num_epochs: Annotated[int, Field(ge=0, le=10_000_000)] | None = None,
        num_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None,
        batch_size: Annotated[int, Field(ge=1, le=1_000_000)],
        dataset: DatasetsConfig,
        model: ModelConfig,
        loss: LossConfig,
        optimizer: OptimizerConfig | None = None,
        seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0,
        meters: tuple[MeterConfig, ...] = ("mean_iou",),
        hooks: tuple[HookConfig, ...] = ("checkpoint", "progress_bar", "report"),
        normalize: NormalizeConfig | None = None,
        val_every_epochs: Annotated[int, Field(ge=1)] | None = None,
        val_every_steps: Annotated[int, Field(ge=1)] | None = None,
        protocol: ProtocolConfig = "whole",
        runtime: RuntimeConfig = RuntimeConfig(),
    ) -> None:
        self.num_epochs = num_epochs
        """None where the config gives the length in steps."""
        self.seed = seed
        self.batch_size = batch_size
        spec = TaskSpec.of(
            type(self),
            num_epochs=num_epochs,
            num_steps=num_steps,
            val_every_epochs=val_every_epochs,
            val_every_steps=val_every_steps,
            batch_size=batch_size,
            dataset=dataset,
            model=model,
            loss=loss,
            optimizer=optimizer,
            seed=seed,
            meters=meters,
            hooks=hooks,
            normalize=normalize,
            protocol=protocol,
            runtime=runtime,
            **own,
        )
        parts = assemble(spec)
        self.runtime, self._model_config = spec.runtime, spec.model
        self.loss, self.optimizer = parts.loss, parts.optimizer
        self.meters, self.hooks = parts.meters, parts.hooks
        self.added = parts.added
        self.normalize, self.normalizer, self.filled_in = parts.normalize, parts.normalizer, parts.filled_in
        """`filled_in` are values that the config left to the task; the run's `config.yaml` has them."""
        self._numbers = parts.numbers
        # If data sets tell their channels, the assembly has checked them; else the first batch does.
        self._files_tell_channels = any(data.facts.channels is None for data in parts.sets.values())
        if self.runtime.accumulate_steps > 1 and type(self).compute is not ClassyTask.compute and not self.is_additive:
            raise ConfigError(
                "runtime.accumulate_steps",
                f"found {self.runtime.accumulate_steps}, but {type(self).__name__} has a "
                "`compute` of its own, whose terms cannot be told from the parts of a batch; set it to 1, or give the "
                "task `outputs` and `terms` in its place",
            )
        warn_of_compression(parts.model, self.runtime)
        self.data = TaskData(parts.sets)
        self.data.order(batch_size, self.runtime, seed=seed, trains=spec.trains, group_size=parts.group_size)
        measured = {f"has_{name}": name in self.data.sets for name in ("val", "test")}
        self._plan = RunPlan.of(spec.lengths, self.data.num_batches("train"), **measured)
        self._begin_at_zero()
        self.protocol = parts.protocol
        self._put_to_work(parts.model)

    def __new__(cls, *args: Any, **given: Any) -> Self:
        """Raises: `TypeError` for an unknown keyword, with the closest known one."""
        parameters = inspect.signature(cls.__init__).parameters
        open_to_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        for key in () if open_to_all else sorted(given.keys() - parameters.keys()):
            raise TypeError(f"{qualified(cls)}: '{key}': {unknown('argument', key, [*parameters][1:])}")
        task = super().__new__(cls)
        task._given = given  # `config` is made of these
        return task

    def _put_to_work(self, model: ClassyModel) -> None:
        """Makes the parts that work with a model, around `model`."""
        self.model = model
        self.engine = Engine(model, self.loss, self.runtime)
        self.features = self._features_of(model)
        network = Network(model, black=black_of(self.normalizer), channels_last=self.runtime.takes_channels_last)
        # It gets the task with each batch: a task that it kept would refer to itself, and Python collects such a one,
        # with its network, much later than when it is done with.
        self.evaluation = Evaluation(network, self.protocol, self.meters, has_loss=True)
        self.borrowed = BorrowedWeights(self.engine)
        """The best checkpoint's weights, while the test set is measured."""

    def _features_of(self, model: ClassyModel) -> TaskFeatures:
        unit = " of numbers" if self.normalizer.own_unit else ""
        return TaskFeatures(model, self._model_config, self.runtime, f"{self.normalize}{unit}")

    def _begin_at_zero(self) -> None:
        """Sets the clock and all that a run gathers to its start."""
        self.progress = self._plan.first
        self.run_folder: Path | None = None
        self.command = ""  # what trains it, for its card; whoever starts it may say so
        self._config: Mapping[str, Any] | None = None
        self.settled: Mapping[str, Any] = {}
        """What the run that goes on chose for the keys of `runtime` that its config leaves to the machine."""
        self.metrics: dict[str, Any] = {}
        self.unseen_classes: Collection[str] = ()
        self.records = RunRecords(None)
        """Writes files into the run's folder, in the primary process."""
        self.writer = CheckpointWriter()
        self.phase_files: dict[str, str] = {}
        """Texts by file name that are written with the record of a phase, in place of older ones."""
        self.gives_up: Callable[[], bool] = lambda: False
        """Whether the run was asked to stop, so that it must not wait for data any longer. Set it before `start`: the
        loaders take it over there."""
        self.ending = Ending()
        self.non_finite = NonFiniteSteps(self.runtime)
        self.beginning: Checkpoint | None = None
        """The start of the run, where it may have to go back to it."""
        self.last_loss = torch.zeros(())
        # In float64: a sum of float32 losses would lose the last bits over a long epoch.
        self.loss_sum = torch.zeros((), dtype=torch.float64)
        self.pace = Pace()

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config: what `build_task` read, or the arguments that Python code gave."""
        if self._config is None:
            self._config = {**config_of(type(self), self._given), **self.filled_in}
        return self._config

    @config.setter
    def config(self, config: Mapping[str, Any]) -> None:
        self._config = config

    @classmethod
    def check(cls, config: ComponentConfig) -> None:
        """Checks a valid config as far as possible without data, weights or a device. Raises: `ConfigError`."""
        check_assembly(TaskSpec.of(cls, **config.options()))

    @classmethod
    def check_own(cls, spec: TaskSpec, data: Data, loss: ClassyLoss | None, problems: Problems) -> None:
        """Checks the keys that a subclass adds, `spec.own`, against the other parts: for `config check`, and a build.

        `data` has the built data sets, or what their configs tell. `loss` is None if it cannot be built.
        """

    @classmethod
    def add_own(cls, spec: TaskSpec, model: ClassyModel, facts: DataFacts, *, real: bool) -> Any:
        """Adds to the checked model what a subclass needs, such as heads that only train, before the optimizer is made.

        What it returns becomes `added`, such as a teacher. Without `real` a config is checked, and the model lies on
        torch's `meta` device. Raises: `ConfigError`.
        """
        return None

    @classmethod
    def normalize_of_start(cls, spec: TaskSpec) -> NormalizeConfig | None:
        """The mean and deviation that the weights need from which a run starts; None if they tell none."""
        return normalize_of_weights(spec.model)

    # -- what a batch means ------------------------------------------------------------------------------------------

    def outputs(self, batch: Sample) -> Mapping[str, Tensor]:
        """The outputs of the network for the images of a batch, by name."""
        return self.engine(network_input(batch))

    def terms(self, outputs: Mapping[str, Tensor], batch: Sample) -> Terms:
        """The terms of the loss."""
        return self.loss.terms(outputs, batch.target)

    @property
    def is_additive(self) -> bool:
        """Whether the counts of the terms follow from the targets. Then a batch can be computed part by part.

        A batch of a subclass with its own `terms` is computed as a whole, with one more forward pass, unless the
        subclass overrides this and `counts`.
        """
        own = type(self)
        return self.loss.is_additive and own.terms is ClassyTask.terms and own.compute is ClassyTask.compute

    def counts(self, outputs: Mapping[str, Tensor], batch: Sample) -> Tensor:
        """The counts of the terms of a batch, if they are additive. Only the names and kinds of `outputs` matter."""
        return self.loss.counts(outputs, batch.target)

    def compute(self, batch: Sample) -> Computed:
        """The outputs and terms of a batch, which is on the device and normalised."""
        outputs = self.outputs(batch)
        return Computed(outputs, self.terms(outputs, batch))

    def training_batch(self, batch: Sample) -> Sample:
        """What a step learns from, in place of this process's share of the batch, which is on the device, normalised.

        Called once a step, before a batch is split into parts. Random numbers come from (seed, step, process), or, for
        the same on any number of processes, from a generator of `(seed, step)`.
        """
        return batch

    def complete(self, batch: Sample) -> Sample:
        """The batch for `outputs`, with its cached features, if any: `outputs` may be called twice, they are read
        once."""
        return self.features.complete(batch)

    # -- the parts at work -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Brings all parts to their device, and the model into the form that trains on several processes."""
        with distributed.failing_together():
            if distributed.is_primary():
                check_samples(self.data.sets, self.datasets.without_labels)
        self.place()
        self.data.open(self.runtime, self.engine.device, self.gives_up)

    def place(self) -> None:
        """Brings the parts to their device; a task with networks of its own (a teacher) brings these there, too."""
        self.engine.place()
        self.normalizer.to(self.engine.device)
        settle(self)
        self.engine.start(self.optimizer)

    def take_runtime(self, runtime: RuntimeConfig) -> None:
        """Takes `runtime`, in which nothing is left to the machine any more, in place of its own."""
        changed = {key: getattr(runtime, key) for key in self.runtime.left_to_machine}
        self.runtime = self.engine.runtime = runtime
        if "channels_last" in changed:
            self.evaluation.network.channels_last = runtime.takes_channels_last
            bring(self.model, self.engine.device, channels_last=runtime.takes_channels_last)
        self.features = self._features_of(self.model)
        known = self.config
        self.config = {**known, "runtime": {**known["runtime"], **changed}}

    def measure(self, model: ClassyModel) -> None:
        """Takes a trained `model` in place of its own, to say what its batches mean: for `classyseg evaluate`.

        A task of `num_epochs: 0` is enough for it. No process waits for another one.
        """
        self._put_to_work(model)
        self.loss.choose_main_head(model.main_head)
        self.place()
        for part in (model, self.loss):
            part.eval()

    @property
    def averaging(self) -> AveragingConfig | None:
        """How the weights are averaged, if a hook asks for it. A task that needs an average says so here."""
        return averaging_of(self.hooks)

    def load_initial_weights(self) -> None:
        """Loads the weights from which the run starts, unless a checkpoint is restored. Raises: `ConfigError`."""
        load_initial_weights(self.model, self._model_config)

    def close(self) -> None:
        """Ends the processes that load data, and frees what hooks hold. Called however a run ends."""
        with contextlib.ExitStack() as parts:  # an error of one part keeps no other one open
            parts.callback(self.writer.wait)
            parts.callback(self.data.close)
            parts.callback(self.borrowed.give_back)
            for hook in reversed(self.hooks):
                parts.callback(hook.close)

    @property
    def plan(self) -> RunPlan:
        """The phases of the run. After a hook ended it, there are no more training phases."""
        return self._plan if self.ending.reason is None else self._plan.ending_at(self.progress.step)

    @property
    def steps_per_epoch(self) -> int:
        return self._plan.steps_per_epoch

    @property
    def num_steps(self) -> int:
        """How many steps the whole run has."""
        return self._plan.num_steps

    @property
    def num_batches(self) -> int:
        """How many batches the current phase has, in this process."""
        if self.progress.phase == "train":
            return self._phase_end - (self.progress.step - self.progress.step_in_phase)
        return self.data.num_batches(self.progress.phase)

    @property
    def _phase_end(self) -> int:
        """The step of the run at which the current training phase ends."""
        return self.plan.end_of_training_phase(self.progress.step - self.progress.step_in_phase)

    @property
    def common_batches(self) -> int:
        """How many batches of the current phase every process has at least."""
        return self.data.common_batches(self.progress.phase)

    @property
    def lr(self) -> float:
        return 0.0 if self.engine.optimizer is None else self.engine.optimizer.current_lr

    def load_batches(self) -> Iterator[Sample]:
        """The batches that are left of the current phase."""
        return self.data.batches(self.progress, self._phase_end, self.run_folder)

    def begin_phase(self) -> None:
        """Sets train or eval mode, and meters to zero."""
        training = self.progress.phase == "train"
        if not training:
            self.progress.step_in_phase = 0
        if self.progress.phase == "test" and self.run_folder is not None and self.names_best:
            self.writer.wait()
            self.borrowed.take(self.run_folder / CHECKPOINTS)
        self.data.bad_samples.begin_phase(anew=not training)
        self.features.open()
        self.engine.set_mode(training)
        self.evaluation.begin()

    def on_device(self, batch: Sample) -> Sample:
        """The batch as the network takes it: on the device, normalised."""
        if self._files_tell_channels and batch.image.shape[1] != self.model.in_channels:
            raise ConfigError(
                "model.in_channels",
                f"found {self.model.in_channels}, but the images have {batch.image.shape[1]} "
                f"channels ({batch.name[0]})",
            )
        batch = self.features.keyed(batch).to(self.engine.device, channels_last=self.runtime.takes_channels_last)
        batch = batch.replace(image=self.normalizer(batch.image))
        results_device = self.engine.results_device
        return batch if results_device == self.engine.device else batch.replace(target=batch.target.to(results_device))

    def train_step(self, batch: Sample) -> None:
        """Learns from a batch; sets `last_loss` to its loss, on the device."""
        step = self.progress.step
        seed_everything(self.seed, step, distributed.rank())
        share_done = step / self.num_steps
        self.last_loss = self.engine.step(self.training_batch(self.on_device(batch)), self, share_done)

    @torch.no_grad()
    def eval_step(self, batch: Sample) -> None:
        """Counts a batch in the meters, and shows its predictions to the hooks that look at them."""
        hooks = [hook for hook in self._hooks_in_turn() if self.progress.phase in hook.sees_predictions]

        def see(prediction: Tensor) -> None:
            for hook in hooks:
                hook.on_prediction(self, batch, prediction)

        self.evaluation.update(self.on_device(batch), self, see if hooks else None)

    def phase_metrics(self) -> dict[str, Any]:
        """The numbers that a finished phase adds to its record; sets `phase_files`. Every process calls it."""
        phase = self.progress.phase
        self.features.report(phase)
        self.phase_files = {}
        bad = self.data.bad_samples.end_phase(phase)
        if phase == "train":
            return dict(bad)
        metrics = self.evaluation.result()
        self.phase_files, self.unseen_classes = self.evaluation.files, self.evaluation.unseen_classes
        return metrics | bad

    # -- the life of a run, called by the trainer --------------------------------------------------------------------

    def start(
        self,
        run_folder: Path | None,
        *,
        resume: bool = False,
        strict: bool = False,
        extend: bool = False,
        in_place: Callable[[], bool] = lambda: True,
    ) -> None:
        """Prepares everything. With `resume`, goes on from the newest checkpoint of `run_folder` that verifies, if any.

        With `strict`, a newer one that does not is an error.
        `extend` allows another length even where that changes the learning rate of steps to come. `in_place` tells
        whether the folder still belongs to the run; only the primary process asks.
        """
        start_run(self, run_folder, resume=resume, strict=strict, extend=extend, in_place=in_place)
        for hook in self._hooks_in_turn():
            hook.on_start(self)
        self.ending.agree(self.progress.step)
        if self.ending.reason is not None:  # val and test follow the last step, even if no step was taken
            at_start = self.progress == Progress()
            self.progress = self.plan.after(self.progress) if at_start else self.plan.resumed_at(self.progress)

    @property
    def names_best(self) -> bool:
        """Whether a hook names a best checkpoint. Then its weights are used for the test set and the model's folder."""
        return any(hook.names_best and hook.best is not None for hook in self.hooks)

    def _hooks_in_turn(self) -> list[ClassyHook]:
        return sorted(self.hooks, key=lambda hook: hook.saves)

    def start_phase(self) -> bool:
        """Begins the phase that `progress` names. Returns False when the run is done."""
        self.ending.agree(self.progress.step)
        if self.plan.is_over(self.progress):
            return False
        self.pace.begin()
        self.begin_phase()
        for hook in self._hooks_in_turn():
            hook.on_phase_start(self)
        return True

    def batches(self) -> Iterator[Sample]:
        """The batches that are left of the phase. The wait for each is measured.

        A training that was asked to stop has none left.
        """
        batches, common_batches = iter(self.load_batches()), self.common_batches
        while self.progress.phase != "train" or not self.training_is_over:
            # A process may have one val batch more than another. For that one there is no exchange: the other has left
            # this loop.
            all_load = self.progress.step_in_phase <= common_batches
            asked = time.perf_counter()
            try:
                with distributed.failing_together() if all_load else contextlib.nullcontext():
                    batch = next(batches, None)
            except WaitEnded as ended:
                ended.together = all_load
                raise
            self.pace.waited_since(asked)
            if batch is None:
                return
            yield batch

    def step(self, batch: Sample) -> None:
        """Runs one batch of any phase."""
        if self.progress.phase == "train":
            self.engine.guard.step = self.progress.step + 1
            self.train_step(batch)
            self.non_finite.note(self.progress.step + 1, batch.names)
            if self.engine.guard.must_look:
                self.non_finite.look(self)
            self.progress.step += 1
            self.loss_sum = self.loss_sum.to(self.last_loss.device) + self.engine.guard.counted(self.last_loss)
        else:
            self.eval_step(batch)
        self.progress.step_in_phase += 1
        self.pace.count(len(batch.image))
        for hook in self._hooks_in_turn():
            hook.on_step(self)

    def roll_back(self, cause: RollBack) -> None:
        """Goes back to the newest checkpoint, for a step that was not finite. The trainer starts a phase after it."""
        go_back(self, cause)

    @property
    def training_orders(self) -> Mapping[str, TrainOrder]:
        """The orders of the data sets that training reads, by name: step N, from 0 on, takes batch N of each."""
        return {"train": self.data.train_order}

    @property
    def num_learnt(self) -> int:
        """From how many steps of this training phase something was learnt."""
        return self.progress.step_in_phase - self.non_finite.skipped

    def request_stop(self, reason: str) -> None:
        """Asks the run to end after this step or measuring phase, as a finished run does. Any process may ask."""
        self.ending.request(reason)

    def request_pause(self, reason: str) -> None:
        """Asks the run to be saved after this batch and to leave, as after SIGTERM. Any process may ask."""
        self.ending.request_pause(reason)

    @property
    def training_is_over(self) -> bool:
        """Whether no training step follows: all are done, or a hook asked to stop."""
        return self.progress.step >= self.num_steps or self.ending.reason is not None

    @property
    def stop_reason(self) -> str | None:
        """Why a hook ended the training before its last step; None if none did."""
        return self.ending.reason

    def agree_to_stop(self, asked: bool) -> bool:
        """Whether any process got a signal to stop, or a hook asked to pause; asked between batches, when all can save
        the same step."""
        can_agree = self.progress.step_in_phase <= self.common_batches
        return can_agree and self.ending.agree_in_step(self.progress.step, signalled=asked)

    def end_phase(self) -> None:
        """Writes the record of the phase, and moves `progress` to the next phase."""
        progress = self.progress
        self.non_finite.look(self)
        epoch = epoch_of(progress.step, self.steps_per_epoch)
        record: dict[str, Any] = {"phase": progress.phase, "epoch": epoch, "step": progress.step}
        if progress.phase == "train":
            loss_sum, num_learnt = distributed.mean_over_processes(self.loss_sum), self.num_learnt
            record["loss"] = loss_sum / num_learnt if num_learnt else None
            record |= self.non_finite.metrics()
        if progress.phase == "test":
            record["weights_step"] = progress.step if self.borrowed.step is None else self.borrowed.step
        record |= {"lr": self.lr, **self.phase_metrics()}
        record |= {
            "seconds": self.pace.seconds,
            "samples_per_second": self.pace.samples_per_second,
            "data_wait": self.pace.data_wait,
        }
        self.borrowed.give_back()
        self.metrics = record
        self.progress = self.plan.after(progress)
        self.loss_sum = torch.zeros((), dtype=torch.float64)
        with distributed.failing_together():
            if record["phase"] == "train":
                require_finite(record["loss"] or 0.0, f"epoch {record['epoch']}")
            if self.run_folder is not None and distributed.is_primary():
                for name, text in self.phase_files.items():
                    self.records.give(name, text)
                self.records.append(METRICS, record, durable=True)
        # Hooks that save come last: a checkpoint holds what the others have made of this phase, and their requests.
        for saves in (False, True):
            for hook in self._hooks_in_turn():
                if hook.saves == saves:
                    hook.on_phase_end(self)
            self.ending.agree(self.progress.step)
            self.progress = self.plan.after(progress)  # a request to stop changes the plan

    def end(self) -> None:
        for hook in self._hooks_in_turn():
            hook.on_end(self)
        self.writer.wait()
        with distributed.failing_together():
            lost = []
            # A full disk may stop all: all are told. The model is first, as all processes gather its weights.
            for write in (lambda: save_model(self), self._tell_lost_checkpoint, self.records.finish):
                try:
                    write()
                except WriteError as error:
                    lost.append(str(error))
            if lost:
                raise WriteError("; ".join(lost))

    def _tell_lost_checkpoint(self) -> None:
        """Raises: `WriteError` for a checkpoint that a thread could not write, if nobody has looked."""
        if (error := self.writer.take_error()) is not None:
            raise WriteError(f"the checkpoint of step {error.step} cannot be saved: {error}")

    # -- what hooks read ---------------------------------------------------------------------------------------------

    @property
    def labels(self) -> LabelMeaning:
        """What the labels of the data mean."""
        data = self.data.reference_set
        return LabelMeaning(tuple(data.classes), tuple(data.palette), data.ignore_index, data.multi_label)

    @property
    def num_samples(self) -> int:
        """How many samples the current phase has in this process."""
        phase = self.progress.phase
        per_step = self.batch_size // distributed.world_size()
        return self.num_batches * per_step if phase == "train" else self.data.num_samples(phase)

    @property
    def samples_per_second(self) -> float:
        """Samples of the whole job per second, in this phase so far."""
        return self.pace.samples_per_second

    @property
    def data_wait(self) -> float:
        """The share of this phase's time that the loop waited for data."""
        return self.pace.data_wait

    @property
    def phase_time(self) -> PhaseTime:
        """What this phase has taken so far, in this process."""
        return self.pace.so_far

    def step_loss(self) -> float:
        """The loss of the last step, of the whole job; it waits for the device. Every process calls it."""
        self.non_finite.look(self)
        return distributed.mean_over_processes(self.last_loss)

    def optimizer_numbers(self) -> dict[str, Any]:
        """What the optimizer tells of the last step, by group of parameters. Every process calls it."""
        return {} if self.engine.optimizer is None else self.engine.optimizer.numbers()

    def input_shape(self, size: tuple[int, int] | None = None) -> tuple[tuple[int, ...], str]:
        """The shape of one input of the model at `size`, or at that of the data; and where the size comes from."""
        return input_of(self.model, self.data.sets) if size is None else (self.model.input_shape(*size), "given")

    def complexity(self, shape: tuple[int, ...]) -> Complexity:
        """What the model costs for one input. Raises: errors of torch for a model that needs values."""
        return cost_of(self.model, self._model_config, len(self.data.reference_set.classes), shape)

    def best_is(self, number: str) -> BestIs | None:
        """Which value of a number of the val record is best; None: not known, so a `best` needs a `best_is`."""
        with contextlib.suppress(ConfigError):  # a plugin's meter may give a number that it does not declare
            return self._numbers.best_is(number)
        return None

    def describe_data(self) -> dict[str, dict[str, Any]]:
        """How many samples each data set has, and what is known of their images."""
        return self.data.described()

    def recompute_batch_norm(self, num_batches: int) -> bool:
        """Gives the model the running statistics of the next `num_batches` batches of training, at most an epoch.

        All processes call it together, between two phases or at the start of one. They join what their batches give.
        The statistics are those of the weights that are measured. Returns False, and changes nothing, if the run was
        asked to stop meanwhile.
        """
        batches = self.data.coming_batches(self.progress.step, min(num_batches, self.steps_per_epoch))
        try:
            with self.engine.recomputing_statistics():
                while True:
                    with distributed.failing_together():
                        if self.gives_up():
                            raise WaitEnded
                        found = next(batches, None)
                    if found is None:
                        return True
                    step, batch = found
                    seed_everything(self.seed, step, distributed.rank())  # as in that step: for dropout
                    for part in self.on_device(batch).chunk(self.runtime.accumulate_steps):
                        self.outputs(self.complete(part))
        except (WaitEnded, distributed.PeerError) as ended:
            if ended.exit_code != WaitEnded.exit_code:
                raise
            return False

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save_checkpoint(self, *, asynchronous: bool = False) -> Path | None:
        """Saves the run between two batches. Returns the folder; None without a run folder, and in other processes.

        With `asynchronous`, a thread writes it: `writer` tells when it is there, or why it is not.

        Every process calls it, within `failing_together`: only the primary writes, and only it may fail.

        Raises: `NonFiniteError` or `RollBack` if a training step was not finite, as the weights are then useless;
            `OSError` if something cannot be written; `WriteError` if the run's folder is gone.
        """
        return save_run(self, asynchronous=asynchronous)

    def checkpoint_tensors(self) -> dict[str, dict[str, Tensor]]:
        """The groups of tensors to save: `model`, `optimizer`, and `average` where weights are averaged. Every process
        calls it."""
        return self.engine.tensors()

    def gather_state(self) -> dict[str, Any]:
        """Plain values to save for which all processes are needed. Every process calls it."""
        return {"bad_samples": self.data.bad_samples.total()}

    def checkpoint_state(self) -> dict[str, Any]:
        """Plain values to save with the tensors."""
        scaler, averaging = self.engine.precision.scaler, self.engine.averaging
        return {
            **self.data.meaning_of_labels(),
            "normalize": self.normalize.model_dump(mode="json"),
            "preparation": preparation_of(self.config, own_unit=self.normalizer.own_unit),
            "train_size": self.data.sets["train"].facts.size if "train" in self.data.sets else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "averaging": None if averaging is None else {"num_steps": averaging.num_steps},
            "versions": versions(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes the tensors and values of a checkpoint. Raises: `ConfigError` if they do not fit."""
        bad_samples = whole_number(checkpoint, "bad_samples", checkpoint.state.get("bad_samples", 0))
        restore_engine(self.engine, checkpoint, self.num_steps)
        self.data.bad_samples.before = bad_samples
