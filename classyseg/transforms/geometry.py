"""Transforms that move the pixels of a whole image and its mask: flips, sizes, borders, rotation."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field

from classyseg.errors import ConfigError
from classyseg.registry import TRANSFORMS
from classyseg.rng import randint, uniform
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import ClassyTransform, Region
from classyseg.transforms.fitting import Box, Fitting, Positive, scaled
from classyseg.transforms.pixels import (
    Grey,
    Interpolation,
    Share,
    Side,
    height_and_width,
    in_order,
    mirrored,
    pad_sample,
    require_aligned,
    resize_image,
    resize_mask,
    warp_sample,
)


class _Flip(ClassyTransform):
    keeps_size = True
    takes_flags = True
    keeps_type = True
    axis: int

    def __init__(self, ignore_index: int = 255, *, probability: Share = 0.5) -> None:
        super().__init__(ignore_index)
        self.probability = probability

    def region_of(self, size: tuple[int, int], after: tuple[int, int]) -> Region | None:
        return None

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        if uniform(generator, 0, 1) >= self.probability:
            return sample
        return mirrored(sample, self.axis)


@TRANSFORMS.register("horizontal_flip")
class HorizontalFlip(_Flip):
    """Mirrors left and right with a probability.

    Args:
        probability: Of mirroring left and right.
    """

    axis = -1


@TRANSFORMS.register("vertical_flip")
class VerticalFlip(_Flip):
    """Mirrors top and bottom with a probability: for images without an upright, from above or from a microscope.

    Args:
        probability: Of mirroring top and bottom.
    """

    axis = -2


@TRANSFORMS.register("resize")
class Resize(ClassyTransform):
    """The image, and unless `image_only` the mask, at another size; give one form of it.

    With `image_only`, evaluation counts at the mask's original size, which is what published figures mean; transforms
    that crop or pad must come before it.

    Give exactly one of `size`, `fit`, and `shorter_side` or `longer_side` (or both of these).

    Args:
        size: Height and width, whatever the ratio of the image.
        shorter_side: The length of the shorter side; the ratio stays.
        longer_side: The length of the longer side. With `shorter_side`: the largest size whose sides are not
            longer than told.
        fit: A height and a width which the image fills in one direction; the ratio stays. With `pad` to the same size,
            a letter box.
        interpolation: Of the image; or `bicubic`. Masks get the nearest label.
        image_only: Leaves the mask as it is. For `val`; see Evaluation. Crops and pads must come before it.
    """

    keeps_type = True
    takes_flags = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        size: Box | None = None,
        shorter_side: Side | None = None,
        longer_side: Side | None = None,
        fit: Box | None = None,
        interpolation: Interpolation = "bilinear",
        image_only: bool = False,
    ) -> None:
        super().__init__(ignore_index)
        self.size = None if size is None else height_and_width(size)
        self.fitting = Fitting(fit, shorter_side, longer_side)
        if (self.size is None) == (not self.fitting):
            raise ConfigError(
                "size", "give one of 'size', 'fit', and 'shorter_side' or 'longer_side' (or both of them)"
            )
        self.interpolation: Interpolation = interpolation
        self.image_only = image_only

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        return self.size

    def region_of(self, size: tuple[int, int], after: tuple[int, int]) -> Region | None:
        return Region(0, 0, *after)

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        height, width = sample.image.shape[-2:]
        size = self.size or scaled(height, width, self.fitting.factor(height, width))
        target = sample.target if self.image_only else resize_mask(sample.target, size)
        return sample.replace(image=resize_image(sample.image, size, self.interpolation), target=target)


@TRANSFORMS.register("random_resize")
class RandomResize(ClassyTransform):
    """Image and mask at a random size, the ratio kept: times a factor from `scale`, or by one of several lengths.

    `scale` is a factor of the image's own size or, where `fit`, `shorter_side` or `longer_side` is given (as in
    `resize`), of the size after that. `shorter_side` may be a list: one is drawn, and `scale` may be left out.

    For a range of factors, `random_scale_crop` is faster: it resizes only a window.

    Args:
        scale: The range of a random factor, of the image's own size or of the fitted one. Needed unless `shorter_side`
            is a list.
        shorter_side: The image is fitted as by `resize`: the length of its shorter side, or a list of lengths; one of
            them is drawn.
        longer_side: The length of its longer side. With `shorter_side`: neither side is longer.
        fit: A height and a width which it fills in one direction.
        interpolation: Of the image; or `bicubic`. Masks get the nearest label.
    """

    keeps_type = True
    takes_flags = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        scale: tuple[Positive, Positive] | None = None,
        shorter_side: Side | tuple[Side, ...] | None = None,
        longer_side: Side | None = None,
        fit: Box | None = None,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        super().__init__(ignore_index)
        lengths = (shorter_side,) if shorter_side is None or isinstance(shorter_side, int) else tuple(shorter_side)
        if scale is None and len(lengths) < 2:
            raise ConfigError("scale", "give a range of factors, or a list of two or more for 'shorter_side'")
        if not lengths:
            raise ConfigError("shorter_side", "found an empty list; accepted are a length, or a list of them")
        self.scale = None if scale is None else in_order("scale", scale)
        self.fittings = [Fitting(fit, length, longer_side) for length in lengths]
        self.interpolation: Interpolation = interpolation

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        require_aligned(sample, "random_resize")
        height, width = sample.target.shape[-2:]
        factor = self.fittings[randint(generator, 0, len(self.fittings) - 1)].factor(height, width)
        if self.scale is not None:
            factor *= uniform(generator, *self.scale)
        size = scaled(height, width, factor)
        image = resize_image(sample.image, size, self.interpolation)
        return sample.replace(image=image, target=resize_mask(sample.target, size))


@TRANSFORMS.register("pad")
class Pad(ClassyTransform):
    """Adds a border below and to the right, up to `size` (height, width) or to the next multiple of `multiple`.

    The border is `fill` in the image and ignored in the mask. An image larger than `size` is left as it is.

    Give exactly one of `size` and `multiple`.

    Args:
        size: At least this height and width.
        multiple: To the next multiple of it.
        fill: The border in the image.
    """

    keeps_type = True
    takes_flags = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        size: Box | None = None,
        multiple: Side | None = None,
        fill: Grey = 0,
    ) -> None:
        super().__init__(ignore_index)
        if (size is None) == (multiple is None):
            raise ConfigError("give one of 'size' and 'multiple'")
        self.size = None if size is None else height_and_width(size)
        self.multiple = multiple
        self.fill = fill

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is None:
            return None
        if self.multiple is not None:
            return size[0] + -size[0] % self.multiple, size[1] + -size[1] % self.multiple
        wanted = self.size or size
        return max(size[0], wanted[0]), max(size[1], wanted[1])

    def region_of(self, size: tuple[int, int], after: tuple[int, int]) -> Region | None:
        return Region(0, 0, *size)

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        require_aligned(sample, "pad")
        height, width = sample.image.shape[-2:]
        if self.multiple is not None:
            bottom, right = -height % self.multiple, -width % self.multiple
        else:
            wanted = self.size or (height, width)
            bottom, right = max(0, wanted[0] - height), max(0, wanted[1] - width)
        return pad_sample(sample, 0, 0, right, bottom, self.fill, self.ignore_index)


Degrees = Annotated[float, Field(ge=-180, le=180)]


@TRANSFORMS.register("random_rotation")
class RandomRotation(ClassyTransform):
    """Turns the image about its centre by a random angle, anticlockwise where it is positive; the size stays.

    What comes from outside is `fill` in the image and ignored in the mask.

    Args:
        degrees: The range of the angle, -180 to 180; positive turns anticlockwise.
        probability: Of turning at all.
        fill: What comes from outside, in the image.
    """

    keeps_size = True
    keeps_type = True
    takes_flags = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        degrees: tuple[Degrees, Degrees] = (-10.0, 10.0),
        probability: Share = 0.5,
        fill: Grey = 0,
    ) -> None:
        super().__init__(ignore_index)
        self.degrees = in_order("degrees", degrees)
        self.probability = probability
        self.fill = fill

    def region_of(self, size: tuple[int, int], after: tuple[int, int]) -> Region | None:
        return None

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        require_aligned(sample, "random_rotation")
        if uniform(generator, 0, 1) >= self.probability:
            return sample
        angle = math.radians(uniform(generator, *self.degrees))
        cos, sin = math.cos(angle), math.sin(angle)
        return warp_sample(sample, (cos, -sin, sin, cos), (0.0, 0.0), self.fill, self.ignore_index)
