"""The parts of transforms: resizing, padding and warping of images and masks. Labels are never mixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from classyseg.config import MAX_SIDE
from classyseg.errors import ConfigError
from classyseg.structures import Sample

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Grey = Annotated[int, Field(ge=0, le=255)]
Share = Annotated[float, Field(ge=0, le=1)]
Label = Annotated[int, Field(ge=0)]
MinPixels = Annotated[int, Field(ge=0, le=MAX_SIDE**2)]
Interpolation = Literal["bilinear", "bicubic"]
Indices = npt.NDArray[np.int64]
Matrix = tuple[float, float, float, float]


def height_and_width(size: Sequence[int], place: str = "size") -> tuple[int, int]:
    """`size` as a pair, whichever sequence a Python caller passed; configs were checked before.

    Raises: `ConfigError` for anything but two whole numbers above 0.
    """
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int) and side >= 1 for side in size):
        return size[0], size[1]
    raise ConfigError(place, f"found {size!r}; accepted are a height and a width, whole numbers above 0")


def in_order(place: str, bounds: tuple[float, float]) -> tuple[float, float]:
    """`bounds`. Raises: `ConfigError` where the first is larger than the second."""
    if bounds[0] > bounds[1]:
        raise ConfigError(place, f"found {list(bounds)}; the first must not be larger than the second")
    return bounds


def require_aligned(sample: Sample, transform: str) -> None:
    """Raises: `ConfigError` when pixels of image and mask do not correspond, which `transform` needs."""
    height, width = sample.image.shape[-2:]
    if (height, width) != tuple(sample.target.shape[-2:]):
        raise ConfigError(
            f"{sample.name}: '{transform}' found an image of {height} x {width} and a mask of "
            f"{sample.target.shape[-2]} x {sample.target.shape[-1]} pixels; put the `image_only` resize last"
        )


def resize_image(image: Tensor, size: tuple[int, int], interpolation: Interpolation = "bilinear") -> Tensor:
    """(C, H, W) at `size`, smoothed when it shrinks."""
    if size == tuple(image.shape[-2:]):
        return image
    if image.dtype != torch.uint8 or size == (1, 1):  # torch's kernel for bytes fails with some of these
        values = image[None].float()
        resized = interpolate(values, size, mode=interpolation, antialias=True)[0]
        if image.is_floating_point():
            return resized.to(image.dtype)
        limits = torch.iinfo(image.dtype)
        return resized.round_().clamp_(limits.min, limits.max).to(image.dtype)  # bicubic overshoots
    pixels = image[None].contiguous(memory_format=torch.channels_last)  # half the time for bytes of three channels
    return interpolate(pixels, size, mode=interpolation, antialias=True)[0].contiguous()


def blurred(image: Tensor, sigma: float) -> Tensor:
    """(C, H, W) in floating point after a Gaussian of the standard deviation `sigma`, in pixels; borders go on."""
    radius = max(1, math.ceil(3 * sigma))
    kernel = torch.arange(-radius, radius + 1).div(sigma).square().mul(-0.5).exp()
    kernel /= kernel.sum()
    image = pad(image, [radius] * 4, mode="replicate")
    for axis in (1, 2):
        length = image.shape[axis] - 2 * radius
        image = sum(image.narrow(axis, i, length) * weight for i, weight in enumerate(kernel.tolist()))  # type: ignore[assignment]
    return image


def mirrored(sample: Sample, axis: int) -> Sample:
    """`sample` with the order along `axis`, -1 or -2, turned round."""
    image = same_bits(sample.image).flip(axis).view(sample.image.dtype)
    return sample.replace(image=image, target=sample.target.flip(axis))


def same_bits(image: Tensor) -> Tensor:
    """uint16 viewed as int16, other types as they are: older torch cannot move uint16."""
    return image.view(torch.int16) if image.dtype == torch.uint16 else image


def nearest_indices(length: int, out_length: int) -> Indices:
    """For each of `out_length` pixels, which of `length` lies at its centre: Pillow's choice, rounding included."""
    step = length / out_length
    centres = np.full(out_length, step)
    centres[0] = step * 0.5
    return np.minimum(centres.cumsum().astype(np.int64), length - 1)


def take(mask: Tensor, rows: Indices, columns: Indices) -> Tensor:
    """The mask (..., H, W) at `rows` and `columns`, which rise and lie inside, in a third of torch's time."""
    window = mask.numpy()[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    rows, columns = rows - rows[0], columns - columns[0]
    if window.shape[-2] < len(rows):  # taking columns costs more than taking rows
        return torch.from_numpy(window.take(columns, -1, mode="clip")[..., rows, :])
    return torch.from_numpy(window[..., rows, :].take(columns, -1, mode="clip"))


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., H, W) at `size`, each pixel the label nearest to its centre, as Pillow finds it."""
    if size == tuple(mask.shape[-2:]):
        return mask
    return take(mask, nearest_indices(mask.shape[-2], size[0]), nearest_indices(mask.shape[-1], size[1]))


def fill_of(sample: Sample, fill: int) -> int:
    """The grey level `fill`, of 8 bits, as a value of the image.

    Raises: `ConfigError` for a normalised image, which has no grey levels, unless `fill` is 0.
    """
    if fill and sample.image.is_floating_point():
        raise ConfigError(f"{sample.name}: found a normalised image, and 'fill' of {fill}; put 'normalize' last")
    return 257 * fill if sample.image.dtype == torch.uint16 else fill


def pad_sample(sample: Sample, left: int, top: int, right: int, bottom: int, fill: int, ignore_index: int) -> Sample:
    """`sample` with a border: `fill` in the image, `ignore_index` in the mask."""
    from torchvision.transforms.v2 import functional  # whose import takes a second

    if not (left or top or right or bottom):
        return sample
    border = [left, top, right, bottom]
    return sample.replace(
        image=functional.pad(sample.image, border, fill=fill_of(sample, fill)),
        target=functional.pad(sample.target[None], border, fill=ignore_index)[0],
    )


def crop_sample(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """The window of `sample`, which must lie inside."""
    return sample.replace(
        image=sample.image[:, top : top + height, left : left + width],
        target=sample.target[..., top : top + height, left : left + width],
    )


def warp_sample(sample: Sample, matrix: Matrix, shift: tuple[float, float], fill: int, ignore_index: int) -> Sample:
    """`sample` moved by an affine map about its centre: bilinear image, nearest mask.

    The output pixel at (x, y) from the centre shows the source at (a x + b y + dx, c x + d y + dy) for `matrix`
    (a, b, c, d) and `shift` (dx, dy) in pixels. Pixels from outside are `fill` and ignored; other pixels are not mixed
    with `fill`.
    """
    height, width = sample.target.shape[-2:]
    y = torch.arange(height, dtype=torch.float32)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float32)[None] - (width - 1) / 2
    a, b, c, d = matrix
    column = a * x + b * y + (shift[0] + (width - 1) / 2)
    row = c * x + d * y + (shift[1] + (height - 1) / 2)
    nearest_column, nearest_row = (column + 0.5).floor().long(), (row + 0.5).floor().long()
    outside = (nearest_column < 0) | (nearest_column >= width) | (nearest_row < 0) | (nearest_row >= height)
    mask = sample.target[..., nearest_row.clamp_(0, height - 1), nearest_column.clamp_(0, width - 1)]
    grid = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dim=-1)[None]
    image = sample.image
    moved = grid_sample(image[None].float(), grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    if not image.is_floating_point():
        moved = moved.round_()
    moved = moved.masked_fill_(outside, fill_of(sample, fill)).to(image.dtype)
    return sample.replace(image=moved, target=mask.masked_fill(outside, ignore_index))
