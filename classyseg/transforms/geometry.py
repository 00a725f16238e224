"""Transforms that move pixels: image and mask alike, masks without ever mixing labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from classyseg.config import ConfigError
from classyseg.registry import TRANSFORMS
from classyseg.rng import randint, uniform
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import ClassyTransform

Side = Annotated[int, Field(ge=1)]
Grey = Annotated[int, Field(ge=0, le=255)]


def height_and_width(size: Sequence[int]) -> tuple[int, int]:
    """`size` as a pair, whichever sequence a Python caller passed; configs were checked before.

    Raises: `ConfigError` for anything but two whole numbers above 0.
    """
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int) and side >= 1 for side in size):
        return size[0], size[1]
    raise ConfigError(f"size: found {size!r}; accepted are a height and a width, whole numbers above 0")


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) at `size`, bilinear, smoothed when it shrinks."""
    if size == (1, 1) and not image.is_floating_point():  # torch's kernel for bytes fails there for some inputs
        return resize_image(image.float(), size).round().to(image.dtype)
    return functional.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) at `size`, each pixel the label nearest to its centre."""
    return functional.resize(mask[None], list(size), InterpolationMode.NEAREST_EXACT)[0]


def require_aligned(sample: Sample, transform: str) -> None:
    """Raises: `ConfigError` when pixels of image and mask do not correspond, which `transform` needs."""
    height, width = sample.image.shape[-2:]
    if (height, width) != tuple(sample.target.shape):
        raise ConfigError(
            f"{sample.name}: '{transform}' found an image of {height} x {width} and a mask of "
            f"{sample.target.shape[0]} x {sample.target.shape[1]} pixels; put the `image_only` resize last"
        )


def pad_sample(sample: Sample, left: int, top: int, right: int, bottom: int, fill: int, ignore_index: int) -> Sample:
    """`sample` with a border: `fill` in the image, `ignore_index` in the mask."""
    if not (left or top or right or bottom):
        return sample
    border = [left, top, right, bottom]
    return sample.replace(
        image=functional.pad(sample.image, border, fill=fill),
        target=functional.pad(sample.target[None], border, fill=ignore_index)[0],
    )


@TRANSFORMS.register("random_scale_crop")
class RandomScaleCrop(ClassyTransform):
    """A window of the image scaled by a random factor, as (C, *size): the usual augmentation of segmentation.

    The window is drawn first and only its pixels are resized, which gives the crops of scaling everything and then
    cropping at a fraction of the cost. Where the scaled image is smaller than `size`, it lies at a random place in a
    border of `fill` and ignored labels.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        size: tuple[Side, Side],
        scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 2.0),
        fill: Grey = 0,
    ) -> None:
        super().__init__(ignore_index)
        if scale[0] > scale[1]:
            raise ConfigError(f"scale: found {list(scale)}; the first must not be larger than the second")
        self.size = height_and_width(size)
        self.scale = scale
        self.fill = fill

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        require_aligned(sample, "random_scale_crop")
        scale = uniform(generator, *self.scale)
        height, width = sample.target.shape
        rows = _Window(generator, height, self.size[0], scale)
        columns = _Window(generator, width, self.size[1], scale)
        image = sample.image[:, rows.start : rows.stop, columns.start : columns.stop]
        mask = sample.target[rows.start : rows.stop, columns.start : columns.stop]
        size = (rows.out_size, columns.out_size)
        cropped = sample.replace(image=resize_image(image, size), target=resize_mask(mask, size))
        right = self.size[1] - columns.out_size - columns.before
        bottom = self.size[0] - rows.out_size - rows.before
        return pad_sample(cropped, columns.before, rows.before, right, bottom, self.fill, self.ignore_index)


class _Window:
    """Along one axis: the source pixels [start, stop), how many output pixels they become, the border before them."""

    def __init__(self, generator: torch.Generator, length: int, out_length: int, scale: float) -> None:
        wanted = max(1, round(out_length / scale))
        offset = randint(generator, min(0, length - wanted), max(0, length - wanted))
        self.start, self.stop = max(0, offset), min(length, offset + wanted)
        if wanted <= length:
            self.out_size, self.before = out_length, 0
        else:
            self.out_size = min(out_length, max(1, round(length * out_length / wanted)))
            self.before = min(out_length - self.out_size, round(-offset * out_length / wanted))


@TRANSFORMS.register("horizontal_flip")
class HorizontalFlip(ClassyTransform):
    """Mirrors left and right with a probability."""

    def __init__(self, ignore_index: int = 255, *, probability: Annotated[float, Field(ge=0, le=1)] = 0.5) -> None:
        super().__init__(ignore_index)
        self.probability = probability

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        if uniform(generator, 0, 1) >= self.probability:
            return sample
        return sample.replace(image=sample.image.flip(-1), target=sample.target.flip(-1))


@TRANSFORMS.register("resize")
class Resize(ClassyTransform):
    """The image, and unless `image_only` the mask, at `size` (height, width).

    With `image_only`, evaluation counts at the mask's original size, which is what published figures mean; transforms
    that crop or pad must come before it.
    """

    def __init__(self, ignore_index: int = 255, *, size: tuple[Side, Side], image_only: bool = False) -> None:
        super().__init__(ignore_index)
        self.size = height_and_width(size)
        self.image_only = image_only

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        target = sample.target if self.image_only else resize_mask(sample.target, self.size)
        return sample.replace(image=resize_image(sample.image, self.size), target=target)


@TRANSFORMS.register("pad")
class Pad(ClassyTransform):
    """Adds a border below and to the right, up to `size` (height, width) or to the next multiple of `multiple`.

    The border is `fill` in the image and ignored in the mask. An image larger than `size` is left as it is.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        size: tuple[Side, Side] | None = None,
        multiple: Side | None = None,
        fill: Grey = 0,
    ) -> None:
        super().__init__(ignore_index)
        if (size is None) == (multiple is None):
            raise ConfigError("give one of 'size' and 'multiple'")
        self.size = None if size is None else height_and_width(size)
        self.multiple = multiple
        self.fill = fill

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        require_aligned(sample, "pad")
        height, width = sample.image.shape[-2:]
        if self.multiple is not None:
            bottom, right = -height % self.multiple, -width % self.multiple
        else:
            wanted = self.size or (height, width)
            bottom, right = max(0, wanted[0] - height), max(0, wanted[1] - width)
        return pad_sample(sample, 0, 0, right, bottom, self.fill, self.ignore_index)
