"""PyTorch-Encoding's crops for training and validation, equal to the pixel."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from classyseg.registry import TRANSFORMS
from classyseg.rng import randint, uniform
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import ClassyTransform
from classyseg.transforms.fitting import Positive
from classyseg.transforms.geometry import Resize
from classyseg.transforms.pixels import (
    Grey,
    Interpolation,
    Side,
    in_order,
    mirrored,
    nearest_indices,
    pad_sample,
    require_aligned,
    take,
)


class Draws(Protocol):
    """The source of randomness of the training crop: a `random.Random`, or the generator of a sample."""

    def random(self) -> float: ...

    def randint(self, a: int, b: int) -> int: ...


class _GeneratorDraws:
    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def random(self) -> float:
        return uniform(self.generator, 0, 1)

    def randint(self, a: int, b: int) -> int:
        return randint(self.generator, a, b)


@TRANSFORMS.register("sync_resize_crop")
class SyncResizeCrop(ClassyTransform):
    """PyTorch-Encoding's training crop: a flip, a random longer side around `base_size`, a border, a random square.

    A flip in half of the cases; the longer side becomes a random whole number from `scale` times `base_size`; a border
    below and to the right where a side is shorter than `crop_size`; a random square of `crop_size`. It is slower than
    `random_scale_crop`, as all of the image is resized. `crop(sample, random.Random(seed))` gives the same as
    PyTorch-Encoding after `random.seed(seed)`, except for the mask's border: 0 there, `ignore_index` here.

    `random_scale_crop` with `longer_side` and a flip does nearly the same in a fraction of the time.

    Source: zhanghang1989/PyTorch-Encoding, the data sets' `_sync_transform`.

    Args:
        base_size: What `scale` is a factor of.
        crop_size: The side of the square.
        scale: The longer side is a random whole number between these multiples of `base_size` (for ADE20K up to 2.5).
        interpolation: Of the image; or `bicubic`.
        fill: The border in the image.
    """

    keeps_type = True
    takes_flags = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        base_size: Side = 520,
        crop_size: Side = 480,
        scale: tuple[Positive, Positive] = (0.5, 2.0),
        interpolation: Interpolation = "bilinear",
        fill: Grey = 0,
    ) -> None:
        super().__init__(ignore_index)
        self.base_size, self.crop_size = base_size, crop_size
        self.scale = in_order("scale", scale)
        self.interpolation: Interpolation = interpolation
        self.fill = fill

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        return self.crop_size, self.crop_size

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        return self.crop(sample, _GeneratorDraws(generator))

    def crop(self, sample: Sample, draws: Draws) -> Sample:
        """The crop of `sample` with the numbers that `draws` gives, in the reference's order."""
        require_aligned(sample, "sync_resize_crop")
        if draws.random() < 0.5:
            sample = mirrored(sample, -1)
        shortest, longest = (max(1, int(self.base_size * factor)) for factor in self.scale)
        longer = draws.randint(shortest, longest)
        height, width = sample.target.shape[-2:]
        if height > width:
            size = (longer, max(1, int(width * longer / height + 0.5)))
        else:
            size = (max(1, int(height * longer / width + 0.5)), longer)
        left = draws.randint(0, max(0, size[1] - self.crop_size))
        top = draws.randint(0, max(0, size[0] - self.crop_size))
        window = _resized_window(sample, size, top, left, self.crop_size, self.interpolation)
        bottom, right = (self.crop_size - side for side in window.target.shape[-2:])
        return pad_sample(window, 0, 0, right, bottom, self.fill, self.ignore_index)


@TRANSFORMS.register("resize_center_crop")
class ResizeCenterCrop(ClassyTransform):
    """PyTorch-Encoding's validation crop: the shorter side at `crop_size`, and the square in the middle.

    What lies outside the square is not measured: for figures that others can compare, use `resize` with `image_only`.

    Source: zhanghang1989/PyTorch-Encoding, the data sets' `_val_sync_transform`.

    Args:
        crop_size: The side of the square.
        interpolation: Of the image; or `bicubic`.
    """

    keeps_type = True
    takes_flags = True

    def __init__(
        self, ignore_index: int = 255, *, crop_size: Side = 480, interpolation: Interpolation = "bilinear"
    ) -> None:
        super().__init__(ignore_index)
        self.crop_size = crop_size
        self.interpolation: Interpolation = interpolation

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        return self.crop_size, self.crop_size

    def uncropped(self) -> ClassyTransform:
        return Resize(self.ignore_index, shorter_side=self.crop_size, interpolation=self.interpolation)

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        require_aligned(sample, "resize_center_crop")
        height, width = sample.target.shape[-2:]
        if width > height:
            size = (self.crop_size, int(width * self.crop_size / height))
        else:
            size = (int(height * self.crop_size / width), self.crop_size)
        top, left = (round((side - self.crop_size) / 2) for side in size)
        return _resized_window(sample, size, top, left, self.crop_size, self.interpolation)


def _resized_window(
    sample: Sample, size: tuple[int, int], top: int, left: int, side: int, interpolation: Interpolation
) -> Sample:
    """Up to `side` rows and columns, from (top, left) on, of `sample` resized to `size` by Pillow's rules.

    All of the image is resized: resizing only a box would round differently in Pillow.
    """
    height, width = sample.target.shape[-2:]
    rows, columns = slice(top, top + side), slice(left, left + side)
    mask = take(sample.target, nearest_indices(height, size[0])[rows], nearest_indices(width, size[1])[columns])
    image = torch.stack([_resized(channel, size, interpolation)[rows, columns] for channel in sample.image])
    return sample.replace(image=image, target=mask)


def _resized(channel: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    array: Any = channel.numpy() if channel.dtype == torch.uint8 else channel.float().numpy()
    resized = np.array(Image.fromarray(array).resize((size[1], size[0]), Image.Resampling[interpolation.upper()]))
    if resized.dtype != np.uint8 and not channel.is_floating_point():
        limits = torch.iinfo(channel.dtype)
        resized = resized.round().clip(limits.min, limits.max)  # bicubic overshoots: bytes would wrap around
    return torch.from_numpy(resized).to(channel.dtype)
