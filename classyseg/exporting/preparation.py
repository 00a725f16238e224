"""The transforms of a preparation as operations of a graph: for every size, to the bit, what the transforms give.

A graph knows sizes only as symbols. So a resize is a product with matrices that are made of the sizes, and a size is
computed with whole numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from classyseg.exporting.resizing import resized
from classyseg.inference.exported.contract import RefusedError
from classyseg.registry import TRANSFORMS
from classyseg.transforms import CenterCrop, Pad, Resize, TorchvisionTransform
from classyseg.transforms.classy_transform import ClassyTransform, PairTransform

if TYPE_CHECKING:
    from classyseg.inference import Preparation

Size = tuple[int, int]
"""Height and width; within a trace, symbols."""


SMALLEST, LARGEST = 2, 2**20
"""The lengths of sides that a graph is made for."""


class Step(nn.Module, ABC):
    """A transform within a graph, of images (N, C, H, W)."""

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Size | None]:
        """The images after it, and their new size where the ratio of the pixels' places changed; else None."""


class SizeRule:
    """The size that a resize gives: `size` itself, or the ratio kept, and sides as long as told."""

    def __init__(
        self,
        size: Size | None = None,
        box: Size | None = None,
        shorter: int | None = None,
        longer: int | None = None,
        *,
        cuts: bool = False,
    ) -> None:
        self.size, self.box, self.shorter, self.longer, self.cuts = size, box, shorter, longer, cuts

    def after(self, size: Size, device: torch.device) -> Size:
        if self.size is not None:
            return self.size
        height, width = as_numbers(size, device)
        if self.box is not None:
            pairs = [(self.box[0], height), (self.box[1], width)]
        else:
            sides = [(self.shorter, torch.minimum(height, width)), (self.longer, torch.maximum(height, width))]
            pairs = [(side, length) for side, length in sides if side is not None]
        return self._scaled(height, pairs), self._scaled(width, pairs)

    def _scaled(self, length: Tensor, pairs: Sequence[tuple[int, Tensor]]) -> int:
        """`length` times the smallest of the ratios, in the floating point of `Fitting.factor` and `scaled`."""
        if self.cuts:  # torchvision multiplies first, and cuts fractions off
            found = torch.stack([(side * length / of).floor() for side, of in pairs]).amin(0)
        else:
            found = (length * torch.stack([side / of for side, of in pairs]).amin(0)).round()
        return as_length(found.clamp(min=1))


def as_length(value: Tensor) -> int:
    """A computed number as a length of its own. torch's reasoning about how it comes from others would never end."""
    length = cast(int, value.long().item())
    torch._check(length >= SMALLEST)
    torch._check(length <= LARGEST)
    return length


def as_numbers(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Height and width in floating point, which has every length exactly."""
    return tuple(torch.scalar_tensor(side, dtype=torch.float64, device=device) for side in size)  # type: ignore[return-value]


class ResizeStep(Step):
    def __init__(self, rule: SizeRule, cubic: bool) -> None:
        super().__init__()
        self.rule, self.cubic = rule, cubic

    def forward(self, images: Tensor) -> tuple[Tensor, Size | None]:
        size = self.rule.after((images.shape[-2], images.shape[-1]), images.device)
        return resized(images, size, self.cubic), size


class PadStep(Step):
    def __init__(self, size: Size | None, multiple: int | None, fill: int) -> None:
        super().__init__()
        self.size, self.multiple, self.fill = size, multiple or 1, fill

    def forward(self, images: Tensor) -> tuple[Tensor, Size | None]:
        for i, length in enumerate(as_numbers((images.shape[-2], images.shape[-1]), images.device)):
            if self.size is not None:
                after = as_length(length.clamp(min=self.size[i]))
            else:
                after = as_length((length / self.multiple).ceil() * self.multiple)
            nothing = torch.zeros((), dtype=torch.int64, device=images.device)
            images = _placed(images, 2 + i, nothing, length.long(), nothing, after, self.fill)
        return images, None


class CenterCropStep(Step):
    """For classes of whole images alone, which have no place."""

    def __init__(self, size: Size, fill: int) -> None:
        super().__init__()
        self.size, self.fill = size, fill

    def forward(self, images: Tensor) -> tuple[Tensor, Size | None]:
        for i, length in enumerate(as_numbers((images.shape[-2], images.shape[-1]), images.device)):
            inner = length.clamp(max=self.size[i])
            start, before = ((length - inner) / 2).round(), ((self.size[i] - inner) / 2).floor()
            images = _placed(images, 2 + i, start.long(), inner.long(), before.long(), self.size[i], self.fill)
        return images, self.size


def _placed(images: Tensor, axis: int, start: Tensor, count: Tensor, before: Tensor, length: int, fill: int) -> Tensor:
    """Along `axis`: `count` positions from `start` on, at `before` of `length`; the rest is `fill`."""
    position = torch.arange(length, device=images.device) - before
    taken = images.index_select(axis, (position + start).clamp(min=0, max=images.shape[axis] - 1))
    inside = (position >= 0) & (position < count)
    inside = inside if axis == 3 else inside[:, None]
    return torch.where(inside, taken, torch.full((), fill, dtype=images.dtype, device=images.device))


def steps_of(preparation: Preparation, *, whole_images: bool) -> list[Step]:
    """The steps of a preparation. Raises: `RefusedError` for a transform that has no form in a graph, by its name."""
    steps: list[Step] = []
    for i, given in enumerate(preparation.transforms):
        step = given if whole_images else _uncropped(given)
        if step is None or isinstance(step, PairTransform):
            continue
        made = _step_of(step)
        name = TRANSFORMS.name_of(type(given)) or type(given).__name__
        if made is None or (isinstance(made, ResizeStep) and any(isinstance(each, PadStep) for each in steps)):
            why = "has no form in a graph" if made is None else "resizes a border"
            raise RefusedError(
                f"preparation.transforms[{i}]",
                f"'{name}' {why}; take --input-kind prepared, and give the file images that are transformed before",
            )
        steps.append(made)
    return steps


def _uncropped(step: ClassyTransform) -> ClassyTransform | None:
    """What `Preparation.apply` uses for maps."""
    size = step.size_after((64, 64)) or (64, 64)
    return step if step.region_of((64, 64), size) is not None else step.uncropped()


def _step_of(step: ClassyTransform) -> Step | None:
    # Exact types: a subclass may do something else.
    if type(step) is Resize:
        return _resize(step)
    if type(step) is Pad:
        return PadStep(step.size, step.multiple, step.fill)
    if type(step) is CenterCrop:
        return CenterCropStep(step.size, step.fill)
    if type(step) is TorchvisionTransform and step.transform_name == "Resize":
        return _torchvision_resize(step)
    return None


def _resize(step: Resize) -> Step:
    fitting = step.fitting
    rule = SizeRule(step.size, fitting.box, fitting.shorter_side, fitting.longer_side)
    return ResizeStep(rule, step.interpolation == "bicubic")


def _torchvision_resize(step: TorchvisionTransform) -> Step | None:
    """torchvision's own, which cuts fractions of a pixel off. Only as its defaults are."""
    found = step.transform
    size, mode = found.size, str(getattr(found.interpolation, "value", found.interpolation))
    if mode not in ("bilinear", "bicubic") or found.antialias is not True or found.max_size is not None:
        return None
    if size is None or (len(size) not in (1, 2)):
        return None
    pair = None if len(size) == 1 else (int(size[0]), int(size[1]))
    shorter = int(size[0]) if len(size) == 1 else None
    return ResizeStep(SizeRule(pair, shorter=shorter, cuts=True), mode == "bicubic")
