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


def smaller(*lengths: int) -> int:
    """The smallest length, also of symbols."""
    return cast(int, torch.sym_min(*lengths))  # type: ignore[call-arg]


def larger(*lengths: int) -> int:
    return cast(int, torch.sym_max(*lengths))  # type: ignore[call-arg]


class Step(nn.Module, ABC):
    """A transform within a graph, of images (N, C, H, W)."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor: ...

    def region(self, before: Size, region: Size) -> Size:
        """How much of the result, from the top left on, the image of a user takes; `region` is how much it took."""
        raise NotImplementedError


class SizeRule:
    """The size that a resize gives: `size` itself, or the ratio kept and sides as long as told."""

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

    def after(self, size: Size) -> Size:
        if self.size is not None:
            return self.size
        height, width = size
        if self.box is not None:
            pairs = [(self.box[0], height), (self.box[1], width)]
        else:
            sides = [
                (self.shorter, smaller(height, width)),
                (self.longer, larger(height, width)),
            ]
            pairs = [(side, length) for side, length in sides if side is not None]
        return self._scaled(height, pairs), self._scaled(width, pairs)

    def _scaled(self, length: int, pairs: Sequence[tuple[int, int]]) -> int:
        """`length` times the smallest of the ratios; rounding keeps their order, so the smallest result is that."""
        results = [length * side // of if self.cuts else rounded(length * side, of) for side, of in pairs]
        smallest = results[0] if len(results) == 1 else smaller(*results)
        return larger(smallest, 1)


def rounded(number: int, divisor: int) -> int:
    """`number / divisor` to the nearest whole number, to the even one from the middle, as Python rounds."""
    twice, whole = 2 * number + divisor, 2 * divisor
    up = twice // whole
    is_middle = 1 - smaller(twice - up * whole, 1)
    return up - is_middle * (up - up // 2 * 2)


class ResizeStep(Step):
    def __init__(self, rule: SizeRule, cubic: bool) -> None:
        super().__init__()
        self.rule, self.cubic = rule, cubic

    def forward(self, images: Tensor) -> Tensor:
        return resized(images, self.rule.after((images.shape[-2], images.shape[-1])), self.cubic)

    def region(self, before: Size, region: Size) -> Size:
        return self.rule.after(before)


class PadStep(Step):
    def __init__(self, size: Size | None, multiple: int | None, fill: int) -> None:
        super().__init__()
        self.size, self.multiple, self.fill = size, multiple, fill

    def forward(self, images: Tensor) -> Tensor:
        for i, axis in enumerate((2, 3)):
            length = images.shape[axis]
            after = (
                larger(length, self.size[i])
                if self.size is not None
                else -(-length // (self.multiple or 1)) * (self.multiple or 1)
            )
            images = _placed(images, axis, 0, length, 0, after, self.fill)
        return images

    def region(self, before: Size, region: Size) -> Size:
        return region


class CenterCropStep(Step):
    """For classes of whole images alone, which have no place."""

    def __init__(self, size: Size, fill: int) -> None:
        super().__init__()
        self.size, self.fill = size, fill

    def forward(self, images: Tensor) -> Tensor:
        for side, axis in zip(self.size, (2, 3), strict=True):
            length = images.shape[axis]
            inner = smaller(length, side)
            start = rounded(length - inner, 2)
            images = _placed(images, axis, start, inner, (side - inner) // 2, side, self.fill)
        return images


def _placed(images: Tensor, axis: int, start: int, count: int, before: int, length: int, fill: int) -> Tensor:
    """Along `axis`: `count` positions from `start` on, at `before` of `length`; the rest is `fill`."""
    position = torch.arange(length, device=images.device) - before
    taken = images.index_select(axis, (position + start).clamp(min=0, max=images.shape[axis] - 1))
    inside = (position >= 0) & (position < count)
    inside = inside if axis == 3 else inside[:, None]
    return torch.where(inside, taken, torch.full_like(taken[:1, :1, :1, :1], fill))


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
    size, mode = found.size, str(found.interpolation.value)
    if mode not in ("bilinear", "bicubic") or found.antialias is not True or found.max_size is not None:
        return None
    if size is None or (len(size) not in (1, 2)):
        return None
    pair = None if len(size) == 1 else (int(size[0]), int(size[1]))
    shorter = int(size[0]) if len(size) == 1 else None
    return ResizeStep(SizeRule(pair, shorter=shorter, cuts=True), mode == "bicubic")
