"""Distillation: a model that learns from labels, and from a trained model, its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from classyseg.checkpoint import Checkpoint
from classyseg.config import MAX_SEED, ConfigRecord, Float, Text, unknown
from classyseg.console import shown
from classyseg.datasets.facts import DataFacts
from classyseg.engine.runtime import RuntimeConfig
from classyseg.errors import ConfigError, moving, within
from classyseg.heads.adapter import ADAPTED, FeatureAdapter
from classyseg.heads.classy_head import LOGITS
from classyseg.layers import NormalizeConfig, confident_classes_at
from classyseg.losses import CrossEntropyLoss, Terms
from classyseg.losses.imitation import channel_wise_sum, cosine_sum, soft_target_sum, squared_error_sum
from classyseg.models import ClassyModel
from classyseg.registry import (
    TASKS,
    HookConfig,
    LossConfig,
    MeterConfig,
    ModelConfig,
    OptimizerConfig,
    ProtocolConfig,
)
from classyseg.rng import seed_everything
from classyseg.structures import BlockInfo, Sample, output_name
from classyseg.tasks.assembly import TaskSpec
from classyseg.tasks.classy_task import ClassyTask
from classyseg.tasks.data import DatasetsConfig
from classyseg.tasks.teacher import WEIGHTS, Teacher

Weight = Annotated[Float, Field(gt=0, le=1e9)]
Temperature = Annotated[Float, Field(gt=0, le=1e6)]
Heads = Annotated[tuple[Text, ...], Field(min_length=1)] | None
MARK = "teacher/"
"""The beginning of the names of the teacher's features among the outputs of a batch; no head's name has a slash."""
TEACHER_LOGITS = f"{MARK}/logits"
FEATURES = "teacher.features"
ADAPTERS = 1_000_003
"""Stands in the seed of the adapters' first values, so that the model's own do not depend on them."""


class SoftTargets(ConfigRecord):
    """The student learns the teacher's probabilities: the KL divergence at each pixel or image, times T squared.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.

    Args:
        weight: A factor of this term.
        temperature: T, by which the logits of both are divided before the softmax. Above 1, small probabilities count
            more.
        where: `labelled`: pixels (images) whose label is not ignored. `everywhere`: all of them, so that images
            without labels teach, too, and with them the borders that crops add.
        heads: The student's heads that learn from the teacher's main head. null: the main head.
    """

    weight: Weight = 1.0
    temperature: Temperature = 4.0
    where: Literal["labelled", "everywhere"] = "labelled"
    heads: Heads = None


class ChannelWise(ConfigRecord):
    """The student learns where each class is strong: the KL divergence of the softmax over positions, of each class.

    It reads the logits at their own stride. For masks only.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, whose values the
    defaults are.

    Args:
        weight: A factor of this term.
        temperature: By which the logits are divided before the softmax over positions.
        heads: The student's heads that learn from the teacher's main head. null: the main head.
    """

    weight: Weight = 3.0
    temperature: Temperature = 4.0
    heads: Heads = None


class FeaturePair(ConfigRecord):
    """A block of the student learns the features of a block of the teacher, behind a 1x1 convolution.

    That layer is only there in training. It is saved with checkpoints, and left out of the model that a run gives.

    Args:
        student: A block of `model`, or a submodule of its backbone, such as `layer3.1`.
        teacher: A block or submodule of the teacher's backbone.
        weight: A factor of this term.
        measure: `squared_error` of all values, `cosine` of the vectors at each position, or `channel_wise`: as the key
            of that name, of features.
        temperature: Of `channel_wise`.
    """

    student: Text
    teacher: Text
    weight: Weight = 1.0
    measure: Literal["squared_error", "cosine", "channel_wise"] = "squared_error"
    temperature: Temperature = 4.0


class TeacherLabels(ConfigRecord):
    """The student learns the classes that the teacher chooses, by cross entropy.

    The sum is divided by the number of pixels (images) that might count, whether the teacher was sure or not.

    Args:
        weight: A factor of this term.
        threshold: The least probability with which the teacher must have chosen a class for it to count.
        where: `ignored`: only where the label is ignored or there is none. `everywhere`: in addition to the labels.
        heads: The student's heads that learn. null: the main head.
    """

    weight: Weight = 1.0
    threshold: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    where: Literal["ignored", "everywhere"] = "ignored"
    heads: Heads = None


class TeacherConfig(ConfigRecord):
    """A trained model to learn from, and what of it is learnt: one term or more.

    It sees the same images as the student, normalised as in its own training. It is in eval mode, gets no gradients,
    and is saved nowhere: a checkpoint has a hash of it, and a run is resumed with the same teacher only.

    Args:
        weights: The folder of a run, a checkpoint or a model, as `classyseg predict` takes it. The classes must be
            those of the data. When a run is resumed, it may lie elsewhere.
        soft_targets: The teacher's probabilities; see key `soft_targets`. null: none.
        channel_wise: Where each class is strong; see key `channel_wise`. null: none.
        features: Pairs of blocks; see key `features`.
        labels: The teacher's classes as labels; see key `labels`. null: none.
    """

    weights: Annotated[Text, Field(min_length=1)]
    soft_targets: SoftTargets | None = SoftTargets()
    channel_wise: ChannelWise | None = None
    features: Annotated[tuple[FeaturePair, ...], Field(max_length=100)] = ()
    labels: TeacherLabels | None = None

    @property
    def reads_logits(self) -> bool:
        return any((self.soft_targets, self.channel_wise, self.labels))

    def of_heads(self) -> Iterator[tuple[str, SoftTargets | ChannelWise | TeacherLabels]]:
        """The terms that read heads, with their keys."""
        for key in ("soft_targets", "channel_wise", "labels"):
            term = getattr(self, key)
            if term is not None:
                yield key, term


@TASKS.register("distillation")
class DistillationTask(ClassyTask):
    """Trains a model on labels and on what a trained model, the teacher, makes of the same images.

    For masks and for whole images, as `dataset.train` is. The loss is `label_weight` x `loss`, of the labels, plus the
    terms of `teacher`. Each term is divided by its own count in the whole job. Evaluation, checkpoints of the model,
    predictions and exports see the student alone, and `loss` of a val record is that of the labels.

    Args:
        teacher: The trained model, and what is learnt from it; see key `teacher`.
        label_weight: A factor of `loss` in training; 0 learns from the teacher alone.
    """

    may_lack_masks = frozenset({"train"})
    whole_images = None
    takes_clips = None
    free_on_resume = (*ClassyTask.free_on_resume, WEIGHTS)

    def __init__(
        self,
        *,
        num_epochs: Annotated[int, Field(ge=0, le=10_000_000)] | None = None,
        num_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None,
        batch_size: Annotated[int, Field(ge=1, le=1_000_000)],
        dataset: DatasetsConfig,
        model: ModelConfig,
        teacher: TeacherConfig,
        loss: LossConfig,
        label_weight: Annotated[float, Field(ge=0, le=1e9)] = 1.0,
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
        self.teaching = TeacherConfig.model_validate(teacher)
        self.label_weight = label_weight
        super().__init__(
            {"teacher": self.teaching},
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
        self.teacher: Teacher | None = self.added
        """None in a task that only measures."""
        self._cross_entropy = CrossEntropyLoss(self.loss.ignore_index)

    @classmethod
    def add_own(cls, spec: TaskSpec, model: ClassyModel, facts: DataFacts, *, real: bool) -> Teacher | None:
        teaching: TeacherConfig = spec.own["teacher"]
        if not spec.trains:
            return None
        if not teaching.features and not teaching.reads_logits:
            raise ConfigError("teacher", "found no term; give soft_targets, channel_wise, features or labels")
        terms = dict(teaching.of_heads())
        reads_labelled = [getattr(term, "where", "everywhere") == "labelled" for term in terms.values()]
        if facts.has_masks is False and all(reads_labelled) and not teaching.features:
            raise ConfigError(
                "dataset.train",
                "has images alone, and every term of teacher reads labelled pixels; set teacher.soft_targets.where: "
                "everywhere, or give it labels or features",
            )
        for key, term in terms.items():
            with within(f"teacher.{key}"):
                _check_heads(term.heads, model)
            if facts.multi_label:
                raise ConfigError(
                    f"teacher.{key}",
                    "found for images of several classes each, whose probabilities do not add up to 1; take features "
                    "alone, with soft_targets: null",
                )
        if facts.whole_images and teaching.channel_wise is not None:
            raise ConfigError("teacher.channel_wise", "found for whole images, whose logits have no positions")
        if facts.gives_clips and teaching.features:
            raise ConfigError(FEATURES, "found for clips; accepted for images: a map of frames has no adapter")
        teacher = (Teacher.loaded(teaching.weights, spec.runtime)) if real else Teacher.on_meta(teaching.weights)
        if teacher is not None:
            teacher.check(facts, reads_logits=teaching.reads_logits)
            if real:
                seed_everything(spec.seed, ADAPTERS)
            _attach_adapters(model, teacher, teaching.features)
        return teacher

    # -- what a batch means ------------------------------------------------------------------------------------------

    def outputs(self, batch: Sample) -> Mapping[str, Tensor]:
        """The student's outputs; in training also the teacher's, whose names begin with `MARK`."""
        own = super().outputs(batch)
        if self.teacher is None or not self.model.training:
            return own
        head, features = self.teacher.outputs(batch.image)
        if self.teaching.reads_logits:
            own = {**own, TEACHER_LOGITS: head[LOGITS]}
        return {**own, **{f"{MARK}{pair.teacher}": features[pair.teacher] for pair in self.teaching.features}}

    def terms(self, outputs: Mapping[str, Tensor], batch: Sample) -> Terms:
        labels = super().terms(_of_student(outputs), batch)
        if self.teacher is None or not self.model.training:
            return labels
        sums, counts = self._taught_sums(outputs, batch.target), self._taught_counts(outputs, batch.target)
        taught = Terms.of([*zip(sums, counts, strict=True)], batch.target.device, self._taught_weights)
        return Terms.joined([labels, taught], [self.label_weight, 1.0])

    @property
    def is_additive(self) -> bool:
        own, here = type(self), DistillationTask
        return self.loss.is_additive and (own.terms, own.counts, own.compute) == (here.terms, here.counts, here.compute)

    def counts(self, outputs: Mapping[str, Tensor], batch: Sample) -> Tensor:
        labels = super().counts(_of_student(outputs), batch)
        if self.teacher is None or not self.model.training:
            return labels
        return torch.cat([labels, torch.stack(self._taught_counts(outputs, batch.target)).double()])

    # -- the teacher's terms, in one order: those of heads, each for each head, then those of features ---------------

    def _heads(self, term: SoftTargets | ChannelWise | TeacherLabels) -> tuple[str, ...]:
        return (self.model.main_head,) if term.heads is None else term.heads

    @cached_property
    def _taught_weights(self) -> tuple[float, ...]:
        of_heads = [term.weight for _, term in self.teaching.of_heads() for _ in self._heads(term)]
        return (*of_heads, *(pair.weight for pair in self.teaching.features))

    def _taught_sums(self, outputs: Mapping[str, Tensor], target: Tensor) -> list[Tensor]:
        sums = []
        for _, term in self.teaching.of_heads():
            teacher = outputs[TEACHER_LOGITS]
            students = [outputs[name] for name in self._heads(term)]
            if isinstance(term, SoftTargets):
                counted = self._counted(term.where, target)
                sums += [soft_target_sum(student, teacher, counted, term.temperature) for student in students]
            elif isinstance(term, ChannelWise):
                sums += [channel_wise_sum(student, teacher, term.temperature) for student in students]
            else:
                labels = self._labels_of_teacher(term, teacher, target)
                sums += [self._cross_entropy.total(student, labels) for student in students]
        for i, pair in enumerate(self.teaching.features):
            student, teacher = outputs[output_name(adapter_name(i), ADAPTED)], outputs[f"{MARK}{pair.teacher}"]
            if pair.measure == "channel_wise":
                sums.append(channel_wise_sum(student, teacher, pair.temperature))
            else:
                sums.append((cosine_sum if pair.measure == "cosine" else squared_error_sum)(student, teacher))
        return sums

    def _taught_counts(self, outputs: Mapping[str, Tensor], target: Tensor) -> list[Tensor]:
        """What the sums are divided by. Of `outputs`, which may be those of fewer images, only the shapes matter."""
        counts = []
        for _, term in self.teaching.of_heads():
            if isinstance(term, ChannelWise):
                count = _number(len(target) * outputs[TEACHER_LOGITS].shape[1], target)
            else:
                count = self._counted(term.where, target).sum()
            counts += [count.double()] * len(self._heads(term))
        for pair in self.teaching.features:
            found = outputs[f"{MARK}{pair.teacher}"]
            axis = 1 if found.dim() == 4 else 2
            per_image = {
                "squared_error": found[0].numel(),
                "cosine": found[0].numel() // found.shape[axis],
                "channel_wise": found.shape[axis],
            }
            counts.append(_number(len(target) * per_image[pair.measure], target))
        return counts

    def _counted(self, where: str, target: Tensor) -> Tensor:
        """Which pixels (N, H, W), or images (N,), a term reads."""
        soft = target.is_floating_point()
        if where == "everywhere":
            return torch.ones_like(target[:, 0] if soft else target, dtype=torch.bool)
        labelled = target != self.loss.ignore_index
        labelled = labelled.any(1) if soft else labelled
        return labelled if where == "labelled" else ~labelled

    def _labels_of_teacher(self, term: TeacherLabels, teacher: Tensor, target: Tensor) -> Tensor:
        """The classes that the teacher chooses, (N, H, W) or (N,); the ignored label where none counts."""
        counted = self._counted(term.where, target)
        if teacher.dim() == 4:
            labels, confidence = confident_classes_at(teacher, counted.shape[1:])
        else:
            confidence, labels = teacher.float().softmax(1).max(1)
        return labels.where(counted & (confidence >= term.threshold), self.loss.ignore_index)

    # -- the life of a run -------------------------------------------------------------------------------------------

    def place(self) -> None:
        super().place()
        if self.teacher is not None:
            self.teacher.place(self.engine.device, self.runtime, self.normalizer)

    def checkpoint_state(self) -> dict[str, Any]:
        state = super().checkpoint_state()
        if self.teacher is None:
            return state
        return {**state, "teacher": {"weights": self.teaching.weights, "sha256": self._fingerprint}}

    @cached_property
    def _fingerprint(self) -> str:
        return "" if self.teacher is None else self.teacher.fingerprint()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes a checkpoint. Raises: `ConfigError`, also for one of a run with another teacher."""
        saved = checkpoint.state.get("teacher")
        found = saved.get("sha256") if isinstance(saved, Mapping) else None
        if self.teacher is not None and found != self._fingerprint:
            named = saved.get("weights") if isinstance(saved, Mapping) else None
            raise ConfigError(
                WEIGHTS,
                f"{self.teaching.weights}: is not the teacher of the run of {checkpoint.folder}, which was "
                f"{shown(named)} with the hash {shown(found, 20)}; this one has {self._fingerprint[:16]}. Give that "
                "teacher again (its newer or better checkpoint is another one), or begin a new run",
            )
        super().restore(checkpoint)


def adapter_name(i: int) -> str:
    """The name of the head that adapts the student's features of pair number `i` of `teacher.features`."""
    return f"adapter{i}"


def _of_student(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs that a loss of labels may read: neither the teacher's nor those of adapters."""
    return {name: x for name, x in outputs.items() if not name.startswith(MARK) and not name.endswith(f".{ADAPTED}")}


def _number(value: int, like: Tensor) -> Tensor:
    return torch.full((), value, dtype=torch.float64, device=like.device)  # filled there: nothing waits for the device


def _check_heads(names: tuple[str, ...] | None, model: ClassyModel) -> None:
    """Raises: `ConfigError` for heads that cannot learn a teacher's logits."""
    for i, name in enumerate((model.main_head,) if names is None else names):
        place = "" if names is None else f"heads[{i}]"
        if name not in model.heads:
            raise ConfigError(place, f"{shown(name)}: {unknown('head', name, model.heads)}")
        if LOGITS not in model.head(name).output_names:
            raise ConfigError(place, f"the head '{name}' gives no logits; name heads that do, or leave this term out")


def _attach_adapters(model: ClassyModel, teacher: Teacher, pairs: Sequence[FeaturePair]) -> None:
    """Gives `model` a head for each pair of blocks. Raises: `ConfigError` for blocks that do not fit each other."""
    blocks = teacher.watch([pair.teacher for pair in pairs], [f"{FEATURES}[{i}].teacher" for i in range(len(pairs))])
    for i, (pair, block) in enumerate(zip(pairs, blocks, strict=True)):
        with moving("blocks", f"{FEATURES}[{i}].student"):
            own: BlockInfo = model.block(pair.student)
        if bool(own.stride) != bool(block.stride):
            kinds = ["vectors", "a map"]
            raise ConfigError(
                f"{FEATURES}[{i}]",
                f"'{pair.student}' of the student is {kinds[bool(own.stride)]}, '{pair.teacher}' of the teacher "
                f"{kinds[bool(block.stride)]}; accepted: blocks of one kind",
            )
        if not block.stride and pair.measure == "channel_wise":
            raise ConfigError(f"{FEATURES}[{i}].measure", "found channel_wise for vectors, which have no positions")
        if adapter_name(i) in model.heads:
            raise ConfigError(
                f"model.heads.{adapter_name(i)}",
                f"has the name of the layer that adapts {FEATURES}[{i}]; give this head another name",
            )
        model.attach_head(adapter_name(i), FeatureAdapter([own], block.channels), train_only=True)
