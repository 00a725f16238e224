"""Semi-supervised training: labels for some images, and consistency of views for many more that have none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from classyseg import distributed
from classyseg.averaging import AveragingConfig
from classyseg.checkpoint import Checkpoint
from classyseg.config import MAX_SEED
from classyseg.datasets import ClassyDataset, TrainOrder
from classyseg.datasets.views import Views, check_strong
from classyseg.engine.runtime import RuntimeConfig, check_batch_size
from classyseg.errors import ConfigError, moving, within
from classyseg.heads.classy_head import LOGITS
from classyseg.layers import NormalizeConfig, confident_classes_at
from classyseg.losses import ClassyLoss, CrossEntropyLoss, Terms
from classyseg.problems import Problems
from classyseg.registry import (
    HOOKS,
    TASKS,
    TRANSFORMS,
    HookConfig,
    LossConfig,
    MeterConfig,
    ModelConfig,
    OptimizerConfig,
    ProtocolConfig,
)
from classyseg.rng import derived_seed, generator_for
from classyseg.structures import Sample
from classyseg.tasks.assembly import TaskSpec
from classyseg.tasks.beside import Beside
from classyseg.tasks.classy_task import ClassyTask
from classyseg.tasks.data_checks import Data, facts_of_all
from classyseg.tasks.resume import whole_number
from classyseg.tasks.unlabelled import (
    UNLABELLED,
    FeatureDropout,
    UnlabelledConfig,
    UnlabelledDatasets,
    UnlabelledSample,
    average_of,
)
from classyseg.transforms import Normalize, PairTransform

MARK = "unlabelled/"
"""The beginning of the names of the logits of views among the outputs of a batch; no head's name has a slash."""
SEED_OF_VIEWS = 2_000_003
"""Stands in the seed of the unlabelled images, so that they are not drawn as labelled ones of the same number are."""
BOXES = -7
"""The last integer of the generator of a step's boxes."""


@TASKS.register("semi_supervised")
class SemiSupervisedTask(ClassyTask):
    """Trains a model on images with labels and, by consistency of their views, on images without.

    For masks and for whole images, as `dataset.train` is. A step takes a batch of both. An epoch is one of the labelled
    images: with few of them, give `num_steps`. The loss is that of the labels, plus `unlabelled.weight` x the
    consistency. Val records, checkpoints and predictions are those of any task; the record of a training phase has
    `confident`, the share of unlabelled pixels (images) of which the teacher was sure.

    Args:
        dataset: `train` (with labels), `unlabelled`, `val` and `test`. `dataset.unlabelled` is any data set of images
            of the same channels, whose `transforms` make the weak view; labels that it has are left aside.
        unlabelled: How the images without labels are learnt from; see key `unlabelled`.
    """

    datasets = UnlabelledDatasets
    whole_images = None

    def __init__(
        self,
        *,
        num_epochs: Annotated[int, Field(ge=0, le=10_000_000)] | None = None,
        num_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None,
        batch_size: Annotated[int, Field(ge=1, le=1_000_000)],
        dataset: UnlabelledDatasets,
        model: ModelConfig,
        loss: LossConfig,
        unlabelled: UnlabelledConfig,
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
        self.learning = UnlabelledConfig.model_validate(unlabelled)
        super().__init__(
            {"unlabelled": self.learning},
            num_epochs=num_epochs,
            num_steps=num_steps,
            batch_size=batch_size,
            dataset=dataset,
            model=model,
            loss=loss,
            optimizer=optimizer,
            seed=seed,
            meters=meters,
            hooks=hooks,
            normalize=normalize,
            val_every_epochs=val_every_epochs,
            val_every_steps=val_every_steps,
            protocol=protocol,
            runtime=runtime,
        )
        self.beside: Beside | None = None
        """The unlabelled images, in a task that trains."""
        if self.num_steps:
            self.beside = self._read_beside(self.data.sets[UNLABELLED])
        self._cross_entropy = CrossEntropyLoss(self.loss.ignore_index)
        self._dropout = FeatureDropout(self.learning.feature_dropout or 0.0)
        for head in self.model.heads.values() if self.learning.feature_dropout is not None else ():
            head.register_forward_pre_hook(self._dropout)
        self._confident = torch.zeros(2, dtype=torch.float64)

    def _read_beside(self, images: ClassyDataset) -> Beside:
        with within(UNLABELLED):
            strong = TRANSFORMS.build_each("strong", self.learning.strong, images.ignore_index)
        views = Views(images, strong, self.learning.num_strong, seed=derived_seed(self.seed, SEED_OF_VIEWS))
        size = self.learning.batch_size or self.batch_size
        with moving("batch_size", f"{UNLABELLED}.batch_size"):
            return Beside(UNLABELLED, views, size, seed=views.seed)

    # -- checks ------------------------------------------------------------------------------------------------------

    @classmethod
    def check_own(cls, spec: TaskSpec, data: Data, loss: ClassyLoss | None, problems: Problems) -> None:
        if not spec.trains:
            return
        learning: UnlabelledConfig = spec.own[UNLABELLED]
        with problems.collected():
            if UNLABELLED not in data:
                raise ConfigError(f"dataset.{UNLABELLED}", "missing; a task that trains has one")
        with problems.collected(), moving("batch_size", f"{UNLABELLED}.batch_size"):
            check_batch_size(learning.batch_size or spec.batch_size, spec.runtime.accumulate_steps)
        with problems.collected():
            if spec.runtime.cache_features is not None:
                raise ConfigError(
                    "runtime.cache_features", "found for a task whose views of an image are all new; leave it out"
                )
        with problems.collected():
            if learning.ramp_up_steps and learning.ramp_up_epochs:
                raise ConfigError(f"{UNLABELLED}.ramp_up_steps", "found together with ramp_up_epochs; keep one of them")
        with problems.collected():
            average_of(learning, HOOKS.build_each("hooks", spec.hooks))
        with problems.collected():
            if learning.teacher == "student" and learning.average is not None:
                raise ConfigError(f"{UNLABELLED}.average", "found with teacher: student, which has none; take one out")
        facts = facts_of_all({name: part for name, part in data.items() if name != UNLABELLED} or data)
        with problems.collected():
            if facts.whole_images and learning.cut_mix:
                raise ConfigError(f"{UNLABELLED}.cut_mix", "found for whole images, which have one class each; set 0")
            share = (learning.batch_size or spec.batch_size) // distributed.world_size()
            if share == 1 and learning.cut_mix_of(whole_images=facts.whole_images):
                raise ConfigError(
                    f"{UNLABELLED}.batch_size",
                    "gives each process one image, and cut_mix takes rectangles of another one; take two or more for "
                    f"each process, or {UNLABELLED}.cut_mix: 0",
                )
        with problems.collected():
            with within(UNLABELLED):
                strong = TRANSFORMS.build_each("strong", learning.strong)
            check_strong(strong, facts.channels or 3)
        for i, step in enumerate(data[UNLABELLED].transforms if UNLABELLED in data else ()):
            with problems.collected():
                if isinstance(step, Normalize):
                    raise ConfigError(
                        f"dataset.{UNLABELLED}.transforms[{i}]",
                        "found 'normalize', and the strong views need images that are not normalised yet; take it out "
                        "of all data sets, and give the task one `normalize`",
                    )
                if isinstance(step, PairTransform) and step.gives_soft_targets(facts.whole_images):
                    raise ConfigError(
                        f"dataset.{UNLABELLED}.transforms[{i}]",
                        f"{type(step).__name__} gives shares of classes, which images without labels do not have",
                    )

    @classmethod
    def add_own(cls, spec: TaskSpec, model: Any, facts: Any, *, real: bool) -> None:
        """Adds nothing. Raises: `ConfigError` for classes that nobody can tell from the logits of the main head."""
        head = model.head(model.main_head)
        if spec.trains and facts.multi_label:
            raise ConfigError(
                "dataset.train", "has several classes of an image; the task semi_supervised takes one class of each"
            )
        if spec.trains and LOGITS not in head.output_names:
            raise ConfigError(
                f"model.heads.{model.main_head}",
                f"gives {', '.join(head.output_names)}; the task semi_supervised needs a main head of logits",
            )

    # -- the life of a run -------------------------------------------------------------------------------------------

    @property
    def averaging(self) -> AveragingConfig | None:
        return average_of(self.learning, self.hooks) if self.num_steps else super().averaging

    @property
    def training_orders(self) -> Mapping[str, TrainOrder]:
        others = {} if self.beside is None else {UNLABELLED: self.beside.epochs}
        return {**super().training_orders, **others}

    def prepare(self) -> None:
        super().prepare()
        if self.beside is not None:
            self.beside.open(self.runtime, self.engine.device, self.gives_up)

    def close(self) -> None:
        super().close()
        if self.beside is not None:
            self.beside.close()

    def load_batches(self) -> Iterator[Sample]:
        labelled = super().load_batches()
        if self.beside is None or self.progress.phase != "train":
            return labelled
        return self._pairs(labelled, self.beside)

    def _pairs(self, labelled: Iterator[Sample], beside: Beside) -> Iterator[Sample]:
        others = beside.batches(self.progress.step, self._phase_end, self.run_folder)
        for batch, other in zip(labelled, others, strict=True):
            yield UnlabelledSample(
                batch.image,
                batch.target,
                batch.name,
                views=other.image,
                valid=other.target,
                unlabelled_name=other.names,
            )

    def begin_phase(self) -> None:
        super().begin_phase()
        if self.beside is not None:
            self.beside.bad_samples.begin_phase(anew=self.progress.phase != "train")

    def phase_metrics(self) -> dict[str, Any]:
        metrics = super().phase_metrics()
        if self.beside is None or self.progress.phase != "train":
            return metrics
        sure, all_ = distributed.sum_over_processes(self._confident.cpu()).tolist()
        self._confident = torch.zeros_like(self._confident)
        bad = self.beside.bad_samples.end_phase(UNLABELLED)
        bad = {f"{key}_{UNLABELLED}": value for key, value in bad.items()}
        return {**metrics, **bad, "confident": sure / all_ if all_ else None}

    # -- what a batch means ------------------------------------------------------------------------------------------

    def training_batch(self, batch: Sample) -> Sample:
        """The batch with the teacher's classes for its strong views, which get rectangles of each other."""
        batch = super().training_batch(batch)
        if not isinstance(batch, UnlabelledSample):
            return batch
        found, counted = self.found_in(batch)
        sure = (found != self.loss.ignore_index).sum()
        self._confident = self._confident.to(found.device) + torch.stack([sure, counted.sum()])
        num_strong = self.learning.num_strong
        strong, founds, counts = batch.views[:, 1:].clone(), [found] * num_strong, [counted] * num_strong
        if self._cut_mix:
            founds, counts = [x.clone() for x in founds], [x.clone() for x in counts]
            half = len(strong) // 2
            for i, view, rows, columns in self._boxes(len(strong), strong.shape[-2:]):
                other = (i + half) % len(strong)
                strong[i, view][..., rows, columns] = batch.views[other, 1 + view][..., rows, columns]
                founds[view][i, rows, columns] = found[other, rows, columns]
                counts[view][i, rows, columns] = counted[other, rows, columns]
        if self.learning.feature_dropout is not None:
            founds, counts = [*founds, found], [*counts, counted]
        views = torch.cat([batch.views[:, :1], strong], 1)
        return replace(batch, views=views, found=torch.stack(founds, 1), counted=torch.stack(counts, 1))

    def found_in(self, batch: UnlabelledSample) -> tuple[Tensor, Tensor]:
        """The teacher's classes in the weak views, (M, H, W) or (M,), ignored where it is not sure; and what counts."""
        weak, ignored = batch.views[:, 0], self.loss.ignore_index
        part = -(-len(weak) // self.runtime.accumulate_steps)  # no more images at once than a step learns from
        labels, sure = [], []
        for images in weak.split(part):
            logits = self._teacher(self._normalized(images))[self.model.main_head]
            if logits.dim() == 4:
                label, confidence = confident_classes_at(logits, batch.valid.shape[1:])
            else:
                confidence, label = logits.float().softmax(1).max(1)
            labels.append(label)
            sure.append(confidence >= self.learning.threshold)
        found = torch.cat(labels)
        counted = batch.valid == 0
        counted = counted if found.dim() > 1 else counted.flatten(1).any(1)  # a bad sample that is skipped has no pixel
        return found.where(torch.cat(sure) & counted, ignored), counted

    @torch.no_grad()
    def _teacher(self, images: Tensor) -> Mapping[str, Tensor]:
        if self.learning.teacher == "average":
            return self.engine.averaged_outputs(images)
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with self.engine.precision.autocast():
                outputs: Mapping[str, Tensor] = self.model(images)
        finally:
            for module, mode in modes:
                module.training = mode
        return outputs

    @property
    def _cut_mix(self) -> float:
        return self.learning.cut_mix_of(whole_images=self.data.reference_set.whole_images)

    def _boxes(self, num_images: int, size: tuple[int, int] | torch.Size) -> Iterator[tuple[int, int, slice, slice]]:
        """Rectangles for this process's images: image, view, rows and columns.

        All are drawn for the whole job from (seed, step), so that the number of processes changes nothing. They cover
        2 to 40 % of an image, and have a ratio of 0.3 to 3.3, as UniMatch's.
        """
        processes, rank = distributed.world_size(), distributed.rank()
        generator = generator_for(self.seed, self.progress.step, BOXES)
        shape = (num_images * processes, self.learning.num_strong, 5)
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64)[rank::processes].tolist()
        height, width = size
        for i, views in enumerate(drawn):
            for view, (chance, area, ratio, top, left) in enumerate(views):
                if chance >= self._cut_mix:
                    continue
                pixels, shape_ = (0.02 + 0.38 * area) * height * width, 0.3 + (1 / 0.3 - 0.3) * ratio
                rows, columns = (
                    min(height, int(math.sqrt(pixels * shape_))),
                    min(width, int(math.sqrt(pixels / shape_))),
                )
                top, left = int(top * (height - rows + 1)), int(left * (width - columns + 1))
                yield i, view, slice(top, top + rows), slice(left, left + columns)

    def _normalized(self, images: Tensor) -> Tensor:
        normalized: Tensor = self.normalizer(images)
        return (
            normalized.contiguous(memory_format=torch.channels_last) if self.runtime.takes_channels_last else normalized
        )

    def outputs(self, batch: Sample) -> Mapping[str, Tensor]:
        """The outputs for labelled images; in training also the main head's logits for the views of unlabelled ones."""
        own = super().outputs(batch)
        if not isinstance(batch, UnlabelledSample):
            return own
        strong, num_strong = batch.views[:, 1:].flatten(0, 1), self.learning.num_strong
        if self.learning.feature_dropout is None:
            logits = self.engine(self._normalized(strong))[self.model.main_head]
        else:
            with self._dropout.of_images(len(strong)):
                logits = self.engine(self._normalized(torch.cat([strong, batch.views[:, 0]])))[self.model.main_head]
        views = [*logits[: len(strong)].unflatten(0, (-1, num_strong)).unbind(1)]
        if len(logits) > len(strong):
            views.append(logits[len(strong) :])
        return {**own, **{f"{MARK}{i}": view for i, view in enumerate(views)}}

    def terms(self, outputs: Mapping[str, Tensor], batch: Sample) -> Terms:
        labels = super().terms({name: x for name, x in outputs.items() if not name.startswith(MARK)}, batch)
        if not isinstance(batch, UnlabelledSample) or batch.found is None:
            return labels
        sums = [
            self._cross_entropy.total(outputs[f"{MARK}{i}"], found.contiguous())
            for i, found in enumerate(batch.found.unbind(1))
        ]
        pairs = [*zip(sums, self._counts_of_views(batch), strict=True)]
        return Terms.joined([labels, Terms.of(pairs, batch.target.device, self.view_weights)], [1.0, 1.0])

    @property
    def is_additive(self) -> bool:
        own, here = type(self), SemiSupervisedTask
        return self.loss.is_additive and (own.terms, own.counts, own.compute) == (here.terms, here.counts, here.compute)

    def counts(self, outputs: Mapping[str, Tensor], batch: Sample) -> Tensor:
        labels = super().counts({name: x for name, x in outputs.items() if not name.startswith(MARK)}, batch)
        if not isinstance(batch, UnlabelledSample):
            return labels
        return torch.cat([labels, torch.stack(self._counts_of_views(batch))])

    def _counts_of_views(self, batch: UnlabelledSample) -> list[Tensor]:
        return [] if batch.counted is None else [counted.sum().double() for counted in batch.counted.unbind(1)]

    @property
    def view_weights(self) -> tuple[float, ...]:
        """The factors of the views' terms in this step."""
        learning = self.learning
        steps = learning.ramp_up_steps or learning.ramp_up_epochs * self.steps_per_epoch
        missing = 1 - min(1.0, self.progress.step / steps) if steps else 0.0
        weight = learning.weight * math.exp(-5 * missing**2)
        of_features = [] if learning.feature_dropout is None else [weight / 2]
        of_strong = (weight - sum(of_features)) / learning.num_strong
        return (*[of_strong] * learning.num_strong, *of_features)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def gather_state(self) -> dict[str, Any]:
        state = super().gather_state()
        if self.beside is None:
            return state
        confident = distributed.sum_over_processes(self._confident.cpu()).tolist()
        return {**state, "bad_unlabelled": self.beside.bad_samples.total(), "confident": confident}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes a checkpoint. Raises: `ConfigError` if it does not fit."""
        bad, confident = checkpoint.state.get("bad_unlabelled", 0), checkpoint.state.get("confident", [0, 0])
        whole_number(checkpoint, "bad_unlabelled", bad)
        is_pair = isinstance(confident, list) and len(confident) == 2
        for count in confident if is_pair else [confident]:
            is_whole = isinstance(count, float) and count.is_integer()
            whole_number(checkpoint, "confident", int(count) if is_whole else count)
        super().restore(checkpoint)
        if self.beside is not None:
            self.beside.bad_samples.before = bad
            sums = torch.tensor(confident, dtype=torch.float64)
            self._confident = sums if distributed.is_primary() else torch.zeros_like(sums)
