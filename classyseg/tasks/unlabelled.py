"""Images without labels: how a config says what is learnt from them, and the batches that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from classyseg.averaging import AveragingConfig
from classyseg.config import ConfigRecord, Float, Int
from classyseg.errors import ConfigError
from classyseg.hooks import ClassyHook, averaging_of
from classyseg.registry import DatasetConfig, TransformConfig
from classyseg.structures import Sample
from classyseg.tasks.data import DatasetsConfig

UNLABELLED = "unlabelled"
Share = Annotated[Float, Field(ge=0, le=1)]


class UnlabelledDatasets(DatasetsConfig):
    """As `DatasetsConfig`, and the images without labels, for a task that trains.

    Args:
        unlabelled: Any data set of images of the same channels. Labels that it has are left aside. Its `transforms`
            make the weak view: geometry, crops to one size, and what all views share.
    """

    without_labels: ClassVar[frozenset[str]] = frozenset({UNLABELLED})

    unlabelled: DatasetConfig | None = None


class UnlabelledConfig(ConfigRecord):
    """How images without labels are learnt from: as in FixMatch, with UniMatch's strong views and feature dropout.

    A teacher looks at the weak view. Where it is sure of a class, the student must choose the same class in each strong
    view: cross entropy, summed over these pixels (images), and divided by the number of all pixels of unlabelled images
    in the job's batch, without the borders that transforms added. The teacher is in eval mode and gets no gradients.

    Sources: Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS
    2020; Yang et al., "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation" (UniMatch), CVPR
    2023.

    Args:
        batch_size: Unlabelled images of a step, of the whole job. null: as many as `batch_size` of the task.
        strong: Transforms of colours that make a strong view of a weak one.
        num_strong: Strong views of each image: 1 as in FixMatch, 2 as in UniMatch.
        cut_mix: With this probability, a rectangle of a strong view comes from another image of the batch, and so do
            the classes that the teacher found there. null: 0.5 for masks, 0 for whole images, which have no rectangles.
        feature_dropout: The share of channels that are set to 0 in the features of one more view, the weak one. It
            gets half of the weight, the strong views the other half. null: no such view.
        threshold: The least probability with which the teacher must have chosen a class.
        teacher: `average`: the moving average of the student's weights, which is also what is measured and saved; or
            `student`: the weights themselves.
        average: How the weights are averaged; see key `average`. null: as the hook `ema` says, else `decay: 0.996`.
        weight: A factor of the unlabelled term, beside the loss of the labels.
        ramp_up_steps: The steps over which the factor grows from nearly 0: exp(-5 (1 - t)^2), t from 0 to 1.
        ramp_up_epochs: The same in epochs of the labelled images; give one of the two.
    """

    batch_size: Annotated[Int, Field(ge=1, le=1_000_000)] | None = None
    strong: Annotated[tuple[TransformConfig, ...], Field(min_length=1, max_length=100)]
    num_strong: Annotated[Int, Field(ge=1, le=16)] = 1
    cut_mix: Share | None = None
    feature_dropout: Annotated[Float, Field(gt=0, lt=1)] | None = None
    threshold: Annotated[Float, Field(ge=0, lt=1)] = 0.95
    teacher: Literal["average", "student"] = "average"
    average: AveragingConfig | None = None
    weight: Annotated[Float, Field(gt=0, le=1e9)] = 1.0
    ramp_up_steps: Annotated[Int, Field(ge=0, le=1_000_000_000)] = 0
    ramp_up_epochs: Annotated[Float, Field(ge=0, le=1e6)] = 0.0

    def cut_mix_of(self, *, whole_images: bool) -> float:
        """The probability of cut-mix, for masks or for whole images."""
        return self.cut_mix if self.cut_mix is not None else 0.0 if whole_images else 0.5

    @classmethod
    def instead_of(cls, key: object, value: object) -> str:
        return "it is a transform of dataset.unlabelled" if key in ("weak", "transforms") else ""


def average_of(learning: UnlabelledConfig, hooks: Sequence[ClassyHook]) -> AveragingConfig | None:
    """How the weights are averaged. Raises: `ConfigError` where both the task and a hook say it."""
    of_hooks = averaging_of(hooks)
    if learning.teacher == "student":
        return of_hooks
    if of_hooks is not None and learning.average is not None:
        raise ConfigError(
            f"{UNLABELLED}.average", "found together with a hook that averages the weights; keep one of them"
        )
    return of_hooks or learning.average or AveragingConfig(decay=0.996)


@dataclass(frozen=True)
class UnlabelledSample(Sample):
    """A batch with labels, and one without: its views, and once the teacher has seen them, what it found.

    `views` is (M, 1 + num_strong, C, H, W), the weak view first, as the data set stores pixels. `valid` (M, H, W) is 0
    for pixels of the images. `found` (M, views, ...) has the teacher's classes for each view that is learnt, with the
    ignored label where it was not sure; `counted`, of the same shape, says which of them divide the loss.
    `unlabelled_name` is as `name`.
    """

    views: Tensor = field(default_factory=lambda: torch.empty(0))
    valid: Tensor = field(default_factory=lambda: torch.empty(0))
    found: Tensor | None = None
    counted: Tensor | None = None
    unlabelled_name: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*super().names, *(f"{UNLABELLED}: {name}" for name in self.unlabelled_name))

    def chunk(self, num_parts: int) -> list[Self]:
        own = super().chunk(num_parts)
        if num_parts == 1:
            return own
        size = -(-len(self.views) // num_parts)
        keys = [key for key in ("views", "valid", "found", "counted") if getattr(self, key) is not None]
        return [
            replace(part, **{key: getattr(self, key)[i * size : (i + 1) * size] for key in keys})
            for i, part in enumerate(own)
        ]

    def to(self, device: torch.device, *, channels_last: bool = False) -> Self:
        moved = super().to(device, channels_last=channels_last)
        return replace(
            moved,
            views=self.views.to(device, non_blocking=True),
            valid=self.valid.to(device, non_blocking=True),
        )


class FeatureDropout:
    """Sets whole channels of what heads read to 0, of some images of a batch, while `of_images` says so.

    It is called before each head, as torch's forward hooks are: so the pass stays one, whatever wraps the model.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.first: int | None = None
        """The number of the first image of which channels are left out; None for none."""

    @contextmanager
    def of_images(self, first: int) -> Iterator[None]:
        """Within it, channels of the images from number `first` on are left out."""
        self.first = first
        try:
            yield
        finally:
            self.first = None

    def __call__(self, head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.first is None:
            return None
        return ([torch.cat([x[: self.first], self._dropped(x[self.first :])]) for x in inputs[0]], *inputs[1:])

    def _dropped(self, x: Tensor) -> Tensor:
        if x.dim() == 3:  # vectors (N, count, C)
            return functional.dropout1d(x.transpose(1, 2), self.share).transpose(1, 2)
        return functional.dropout2d(x, self.share)
