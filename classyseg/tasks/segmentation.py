"""Semantic segmentation: one model with heads, one loss, a training and a validation set of masks."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from classyseg import distributed
from classyseg.checkpoint import Checkpoint, check_tensors, step_of
from classyseg.config import MAX_SEED, ConfigError, ConfigRecord, user_path, within
from classyseg.datasets import (
    BadSamples,
    Batches,
    ClassyDataset,
    EvalBatches,
    TrainBatches,
    build_dataset,
    make_loader,
)
from classyseg.foreign import instead_of_key
from classyseg.layers import ImageNormalizer, NormalizeConfig, argmax_at, synchronize_batch_norm
from classyseg.losses import ClassyLoss, build_loss
from classyseg.meters import ClassyMeter
from classyseg.models import ClassyModel, build_model, load_initial_weights
from classyseg.models.memory.feature_cache import FeatureCache
from classyseg.optim import ClassyOptimizer, build_optimizer
from classyseg.registry import (
    HOOKS,
    METERS,
    TASKS,
    ComponentConfig,
    DatasetConfig,
    HookConfig,
    LossConfig,
    MeterConfig,
    ModelConfig,
    OptimizerConfig,
)
from classyseg.rng import seed_everything
from classyseg.structures import BestIs, Sample
from classyseg.tasks.accumulation import parts_of, whole_batch_step
from classyseg.tasks.best import check_best, check_measured, record_numbers
from classyseg.tasks.checks import (
    applied_normalize,
    check_classes,
    check_complete,
    check_masks,
    check_parts,
    check_samples,
    check_targets,
    clips_in_a_batch,
    joined_files,
    joined_metrics,
    normalize_of_weights,
    normalizes,
    warn_of_compression,
)
from classyseg.tasks.classy_task import ClassyTask
from classyseg.tasks.known import check_config, check_in_channels, check_unit, in_own_unit, seen_at_once
from classyseg.tasks.resume import restore_optimizer, saved_scaler, whole_number
from classyseg.tasks.runtime import RuntimeConfig, check_batch_size

log = logging.getLogger(__name__)

# Each process has running statistics of its own until a val phase takes the primary's. torch renamed the switch.
_NEW_SWITCH = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_KEEP_OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW_SWITCH else "broadcast_buffers": False}

NOT_OF_FEATURES = ("weights", "heads", "frozen", "frozen_norm", "activation_checkpointing", "activation_compression")
"""The keys of a model's config that leave the features of given weights as they are."""


class DatasetsConfig(ConfigRecord):
    """The data sets of a task; without `val`, nothing is measured but the training loss.

    A task that trains needs `train`.

    Args:
        train: A data set; required unless `num_epochs` is 0. Classes, palette and ignored label come from here, or from
            `val` where there is no `train`.
        val: A data set with the same classes; null: only the training loss is recorded.
    """

    train: DatasetConfig | None = None
    val: DatasetConfig | None = None

    @classmethod
    def instead_of(cls, key: object, value: object) -> str:
        return instead_of_key("dataset", key, cls.model_fields)


@TASKS.register("segmentation")
class SegmentationTask(ClassyTask):
    """Trains a model with its heads on masks and measures it on a validation set.

    Classes, palette and ignored label come from the training set, or from the validation set where there is no other.
    Every step draws its randomness from `(seed, step, process)`. `num_epochs: 0` only measures: it needs neither a
    training set nor an optimizer.

    An epoch has `len(train) // batch_size` steps: the last short batch is dropped, another one every epoch, since the
    order changes. The validation set is measured whole, each sample once.

    Args:
        num_epochs: Passes over the training set. 0 measures the validation set once and trains nothing: it needs no
            `dataset.train` and no `optimizer`.
        batch_size: Of the whole job, not of a process. Must be divisible by processes x `runtime.accumulate_steps`, and
            not be larger than the training set.
        dataset: `train` and `val`; see key `dataset`.
        model: A model with its heads.
        loss: A loss.
        optimizer: An optimizer; required unless `num_epochs` is 0.
        seed: Everything random follows from it: initial weights, the order of samples, transforms, dropout.
        meters: Meters, computed on the validation set.
        hooks: Hooks; `[]` for none: nothing is saved then but the metrics.
        normalize: See key `normalize`. null: what the published weights need that `model.weights` names, which the log
            tells and `config.yaml` of the run records; else ImageNet's mean and deviation.
        val_every_epochs: The validation set is measured after every so many epochs, and after the last.
        runtime: See key `runtime`.
    """

    record_numbers: Mapping[str, BestIs] = {"loss": "smallest"}
    """The task's own numbers of a val record, and which of their values is best. The meters add theirs."""

    def __init__(
        self,
        *,
        num_epochs: Annotated[int, Field(ge=0, le=10_000_000)],
        batch_size: Annotated[int, Field(ge=1, le=1_000_000)],
        dataset: DatasetsConfig,
        model: ModelConfig,
        loss: LossConfig,
        optimizer: OptimizerConfig | None = None,
        seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0,
        meters: tuple[MeterConfig, ...] = ("mean_iou",),
        hooks: tuple[HookConfig, ...] = ("checkpoint", "progress_bar"),
        normalize: NormalizeConfig | None = None,
        val_every_epochs: Annotated[int, Field(ge=1)] = 1,
        runtime: RuntimeConfig = RuntimeConfig(),
    ) -> None:
        dataset = DatasetsConfig.model_validate(dataset)
        super().__init__(num_epochs=num_epochs, val_every_epochs=val_every_epochs, has_val=dataset.val is not None)
        check_complete(num_epochs, dataset, optimizer)
        self.seed = seed
        self.batch_size = batch_size
        self.runtime = RuntimeConfig.model_validate(runtime)
        check_batch_size(batch_size, self.runtime.accumulate_steps)
        with within("dataset.train"):
            self.train_set: ClassyDataset | None = None if dataset.train is None else build_dataset(dataset.train)
        with within("dataset.val"):
            self.val_set: ClassyDataset | None = None if dataset.val is None else build_dataset(dataset.val)
        self.described: ClassyDataset = next(iter(self._data_sets().values()))
        self._check_data_sets()
        own_unit = in_own_unit(self._data_sets())
        check_unit(self._data_sets(), normalize)
        self.normalize = self._chosen_normalize(model, normalize)
        self.normalizer = ImageNormalizer(self.normalize, own_unit=own_unit)

        seed_everything(seed)
        self._model_config = model
        self.model: ClassyModel = build_model(model, self.described.num_classes, load=False)
        with within("loss"):
            self.loss: ClassyLoss = build_loss(loss, self.described.ignore_index)
        self._check_together(dataset, meters)
        warn_of_compression(self.model, self.runtime)
        self.meters: list[ClassyMeter] = METERS.build_each(
            "meters", meters, self.described.classes, self.described.ignore_index
        )
        self._numbers = record_numbers(
            self.record_numbers, self.meters, self.model.main_head, self.described.classes, are_built=True
        )
        self._optimizer_config = optimizer
        process = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        num_train = len(self.train_set or ()) if num_epochs else batch_size  # else none of it is read
        self._train_batches = TrainBatches(num_train, batch_size, seed=seed, **process)
        num_val, eval_batch_size = len(self.val_set or ()), self.runtime.eval_batch_size
        group_size = None if self.val_set is None else self.val_set.group_size
        together = clips_in_a_batch(self.meters, eval_batch_size, num_val, group_size)
        self._val_batches = EvalBatches(num_val, eval_batch_size, together=together, **process)
        self._loaders: dict[str, Batches] = {}
        self.bad_samples = BadSamples(self._data_sets())
        self._feature_cache: FeatureCache | None = None
        self.hooks = HOOKS.build_each("hooks", hooks)
        check_measured(self.hooks, has_val=self.val_set is not None)
        check_best(self.hooks, self._numbers)

    # -- checks that need several parts ------------------------------------------------------------------------------

    def _data_sets(self) -> dict[str, ClassyDataset]:
        found = {"train": self.train_set, "val": self.val_set}
        return {name: data for name, data in found.items() if data is not None}

    def _check_together(self, dataset: DatasetsConfig, meters: Sequence[Any]) -> None:
        """What model, loss, meters and data sets ask of each other; `check` asks it of the config alone."""
        first, described = next(iter(self._data_sets().items()))
        check_classes(first, getattr(dataset, first), described.classes, self.loss)
        self.loss.check_num_classes(described.num_classes)
        check_targets({name: data.transforms for name, data in self._data_sets().items()}, self.loss)
        seen = seen_at_once(self.batch_size, self.runtime, dataset.train)
        trains = self.num_epochs > 0
        check_parts(self.model, self.loss, meters, self.runtime, described.num_classes, trains=trains, seen=seen)
        check_in_channels(self.model, self._data_sets())

    def _check_data_sets(self) -> None:
        for name, dataset in self._data_sets().items():
            check_masks(name, dataset)
            dataset.seed = self.seed
            found, wanted = ((list(d.classes), d.ignore_index) for d in (dataset, self.described))
            if found != wanted:
                raise ConfigError(
                    f"dataset.{name}: its classes {found[0]} (ignored: {found[1]}) are not those of dataset.train, "
                    f"{wanted[0]} (ignored: {wanted[1]})"
                )

    def _chosen_normalize(self, model_config: Any, normalize: NormalizeConfig | None) -> NormalizeConfig:
        transforms = {name: data.transforms for name, data in self._data_sets().items()}
        of_weights = normalize_of_weights(model_config)
        found = applied_normalize(transforms, normalize, of_weights)
        if normalize is None and of_weights is not None and not any(map(normalizes, transforms.values())):
            log.info("normalize: mean %s and std %s, which the weights need", of_weights.mean, of_weights.std)
            self.chosen = {"normalize": of_weights.model_dump(mode="json")}
        return found

    @classmethod
    def check(cls, config: ComponentConfig) -> None:
        check_complete(config.num_epochs, config.dataset, config.optimizer)  # type: ignore[attr-defined]
        check_config(config, cls.record_numbers)

    # -- the parts at work -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        with distributed.failing_together():
            if distributed.is_primary():
                check_samples(self._data_sets())
        self.runtime.apply()
        self.device = self.runtime.torch_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.runtime.sync_batch_norm and distributed.world_size() > 1:
            synchronize_batch_norm(self.model, self.device)
        layout = torch.channels_last if self.runtime.channels_last else torch.contiguous_format
        self.model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.normalizer.to(self.device)
        self.loss.to(self.device)
        if self._optimizer_config is not None:
            with within("optimizer"):
                self.optimizer: ClassyOptimizer = build_optimizer(
                    self._optimizer_config, self.model.named_parameters(), float(self.num_epochs)
                )
        half = self.runtime.precision == "float16"
        self.scaler = torch.amp.GradScaler(self.device.type) if half else None
        self.network: nn.Module = self.model
        if distributed.world_size() > 1:
            self.network = DistributedDataParallel(
                self.model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                **_KEEP_OWN_BUFFERS,
                gradient_as_bucket_view=True,
                find_unused_parameters=self.model.unused_in_training(),
            )
        if self.runtime.compile:
            self.network = torch.compile(self.network)  # type: ignore[assignment]
        loading = {**self.runtime.loading(self.device), "gives_up": lambda: self.gives_up()}
        for phase, dataset, order in (
            ("train", self.train_set, self._train_batches),
            ("val", self.val_set, self._val_batches),
        ):
            if dataset is not None and (phase == "val" or self.num_epochs):
                self._loaders[phase] = make_loader(dataset, order, **loading)

    def load_initial_weights(self) -> None:
        load_initial_weights(self.model, self._model_config)

    def close(self) -> None:
        super().close()
        for loader in self._loaders.values():
            loader.close()

    @property
    def steps_per_epoch(self) -> int:
        return len(self._train_batches)

    @property
    def num_batches(self) -> int:
        return len(self._train_batches if self.progress.phase == "train" else self._val_batches)

    @property
    def common_batches(self) -> int:
        return len(self._train_batches) if self.progress.phase == "train" else self._val_batches.common_batches

    @property
    def lr(self) -> float:
        return 0.0 if self._optimizer_config is None else self.optimizer.current_lr

    def best_is(self, number: str) -> BestIs | None:
        with contextlib.suppress(ConfigError):  # of a number that a plugin's meter gives and does not declare
            return self._numbers.best_is(number)
        return None

    def load_batches(self, start: int) -> Iterator[Sample]:
        if self.progress.phase == "train":
            self._train_batches.epoch, self._train_batches.start = self.progress.epoch, start
        loader = self._loaders[self.progress.phase]
        for batch in loader:
            if loader.bad:
                self.bad_samples.add(self.progress.phase, loader.bad, self.run_folder)
            yield batch

    def begin_phase(self) -> None:
        training = self.progress.phase == "train"
        if not training:
            distributed.broadcast_buffers(self.model)  # every process measures with the same running statistics
            self.progress.step_in_phase = 0
        self.bad_samples.begin_phase(anew=not training)
        self._open_feature_cache()
        self.model.train(training)
        self.loss.train(training)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = training and not self.runtime.deterministic
        for meter in self.meters:
            meter.reset()
        self._val_loss = torch.zeros(2, self.loss.num_terms, dtype=torch.float64, device=self.device)

    def _on_device(self, batch: Sample) -> Sample:
        if batch.image.shape[1] != self.model.in_channels:
            raise ConfigError(
                f"model.in_channels: found {self.model.in_channels}, but the images have {batch.image.shape[1]} "
                f"channels ({batch.name[0]})"
            )
        batch = batch.to(self.device, channels_last=self.runtime.channels_last)
        return batch.replace(image=self.normalizer(batch.image))

    def _autocast(self) -> torch.autocast:
        dtype = self.runtime.dtype()
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def train_step(self, batch: Sample) -> None:
        step = self.progress.step
        seed_everything(self.seed, step, distributed.rank())
        keys = self._cache_keys(batch)
        batch = self._on_device(batch)
        progress = step / (self.num_epochs * self.steps_per_epoch)
        self.model.set_progress(progress)
        self.optimizer.set_progress(progress)
        self.optimizer.zero_grad()
        if self.runtime.accumulate_steps > 1 and not self.loss.is_additive:
            self.last_loss = self._whole_batch(batch, keys)
        else:
            self.last_loss = self._added_parts(batch, keys)
        self.optimizer.step(self.scaler)

    def _added_parts(self, batch: Sample, keys: list[str]) -> Tensor:
        """The batch's loss, whose gradients are the sums of those of its parts."""
        total: Tensor | float = 0.0
        for image, target, share, is_last in parts_of(batch, self.loss, self.runtime.accumulate_steps):
            with self._no_sync(unless=is_last):
                with self._autocast():
                    logits = self.network(self._cached(image, keys))
                loss = (self.loss.terms(logits, target) * share).sum()
                self._backward(loss)
            total = total + loss.detach()
        return torch.as_tensor(total)

    def _whole_batch(self, batch: Sample, keys: list[str]) -> Tensor:
        """The batch's loss and gradients, of a loss that must see all parts at once."""
        steps = self.runtime.accumulate_steps
        inputs = [self._cached(image, keys) for image in batch.image.chunk(steps)]
        passes = itertools.count(1)

        def run(i: int) -> Mapping[str, Tensor]:
            with self._no_sync(unless=next(passes) == 2 * steps), self._autocast():
                return self.network(inputs[i])

        return whole_batch_step(
            self.network, run, steps, lambda outputs: self.loss.terms(outputs, batch.target).sum(), self._backward
        )

    def _backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _open_feature_cache(self) -> None:
        """Once, and not before the weights are final: they are part of its keys."""
        if self.runtime.cache_features is None or self._feature_cache is not None:
            return
        unit = " of numbers" if self.normalizer.own_unit else ""
        with distributed.failing_together():
            self._feature_cache = FeatureCache(
                user_path(self.runtime.cache_features),
                self.model,
                settings=f"{self.normalize}{unit} {self.runtime.precision} {self._backbone_config()}",
                gigabytes=self.runtime.cache_gigabytes,
            )

    def _cache_keys(self, batch: Sample) -> list[str]:
        """The keys of the batch's images in the feature cache, taken before they are normalised; empty without one."""
        return [] if self._feature_cache is None else self._feature_cache.keys(batch.image)

    def _backbone_config(self) -> dict[str, Any]:
        """The model's config without what the weights or the heads tell; empty for a model that Python code built."""
        if not isinstance(self._model_config, ComponentConfig):
            return {}
        values = self._model_config.resolved()
        return {key: value for key, value in values.items() if key not in NOT_OF_FEATURES}

    def _cached(self, images: Tensor, keys: list[str]) -> Tensor | Mapping[str, Tensor]:
        """What the network is given for the next `images`: features where there is a cache; takes their `keys`."""
        if self._feature_cache is None:
            return images
        own = [keys.pop(0) for _ in images]
        return self._feature_cache.features(own, images)

    def _no_sync(self, *, unless: bool) -> contextlib.AbstractContextManager[None]:
        """Keeps the gradients of what is inside to this process, `unless` processes must exchange them."""
        together = unless or distributed.world_size() == 1
        return contextlib.nullcontext() if together else self.network.no_sync()  # type: ignore[operator]

    @torch.no_grad()
    def eval_step(self, batch: Sample) -> None:
        keys = self._cache_keys(batch)
        batch = self._on_device(batch)
        with self._autocast():
            logits: Mapping[str, Tensor] = self.model(self._cached(batch.image, keys))
        if self.loss.names_read(logits, batch.target):  # else the record has no loss
            counts = self.loss.counts(batch.target)
            self._val_loss += torch.stack([self.loss.terms(logits, batch.target).double() * counts, counts])
        labels: dict[str, Tensor] = {}
        for meter in self.meters:
            head = meter.head or self.model.main_head
            if meter.reads_labels and head not in labels:
                labels[head] = argmax_at(logits[head], batch.target.shape[1:])
            meter.update(labels[head] if meter.reads_labels else logits[head], batch.target)

    def phase_metrics(self) -> dict[str, Any]:
        if self._feature_cache is not None:
            counts = distributed.sum_over_processes(torch.tensor(self._feature_cache.counts_of_phase()))
            self._feature_cache.report(self.progress.phase, *counts.tolist())
        self.phase_files = {}
        bad = self.bad_samples.end_phase(self.progress.phase)
        if self.progress.phase == "train":
            return dict(bad)
        totals, counts = distributed.sum_over_processes(self._val_loss.cpu())
        loss = (totals / counts.clamp(min=1e-12)).sum().item()
        metrics: dict[str, Any] = {"loss": loss if counts.any() else None}
        values = [meter.compute() for meter in self.meters]
        self.phase_files = joined_files(self.meters, values, self.model.main_head)
        self.unseen_classes = {name for meter in self.meters for name in meter.unseen_classes}
        return metrics | joined_metrics(self.meters, values, self.model.main_head) | bad

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def checkpoint_tensors(self) -> dict[str, dict[str, Tensor]]:
        state = {} if self._optimizer_config is None else self.optimizer.state()
        return {"model": self.model.state_dict(), "optimizer": state}

    def gather_state(self) -> dict[str, Any]:
        return {"bad_samples": self.bad_samples.total()}

    def checkpoint_state(self) -> dict[str, Any]:
        import torchvision  # whose import takes a second

        return {
            "classes": list(self.described.classes),
            "palette": [list(color) for color in self.described.palette],
            "ignore_index": self.described.ignore_index,
            "normalize": self.normalize.model_dump(mode="json"),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
            },
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        check_tensors(checkpoint, "model", self.model.state_dict())
        scaler = saved_scaler(checkpoint, None if self.scaler is None else self.scaler.state_dict())
        self.bad_samples.before = whole_number(checkpoint, "bad_samples", checkpoint.state.get("bad_samples", 0))
        step = step_of(checkpoint.folder)
        if self._optimizer_config is not None:
            restore_optimizer(self.optimizer, checkpoint, step)
        self.model.load_state_dict(checkpoint.tensors["model"])
        if step > 0:  # a val phase that comes first records the rate of that step
            self.optimizer.set_progress((step - 1) / (self.num_epochs * self.steps_per_epoch))
        if self.scaler is not None and scaler is not None:
            self.scaler.load_state_dict(scaler)
