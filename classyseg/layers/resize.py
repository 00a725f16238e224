"""Bilinear resizing, decided once: how maps reach other strides, and logits the size of the mask, never held whole."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

ALIGN_CORNERS = False
"""Whether the corner pixels' centres coincide, for every resize of features and logits in classyseg."""

ARGMAX_BYTES = 32_000_000
"""About how much memory `argmax_at` holds beside its result."""


def resize_logits(logits: Tensor, size: Sequence[int], *, align_corners: bool = ALIGN_CORNERS) -> Tensor:
    """`logits` (N, C, h, w) at `size` (H, W), bilinear; the input itself where it has that size.

    While a graph is traced it asks nothing of the sizes, so that an export leaves them free. `align_corners` is for
    heads that were trained with it elsewhere.
    """
    if not torch.compiler.is_compiling() and tuple(logits.shape[2:]) == tuple(size):
        return logits
    return functional.interpolate(logits, tuple(size), mode="bilinear", align_corners=align_corners)


def resample(x: Tensor, stride: int, target: int, size: Sequence[int]) -> Tensor:
    """A map (N, C, h, w) of `stride` at another stride `target`, where an image has `size` (height, width) positions.

    Bilinear on the exact grid of the target, so that pixels keep their places; behind a mean over whole steps where the
    target is coarser. Beyond its bottom and right a map goes on as at the border. No parameters; sizes may be symbolic.
    """
    if target == stride:
        return x
    steps = max(1, target // stride)
    ratio = target / (stride * steps)
    for axis, length in zip((2, 3), size, strict=True):
        num_means = length if ratio == 1 else -(-x.shape[axis] // steps)
        if steps > 1:
            index = torch.arange(num_means * steps, device=x.device).clamp(max=x.shape[axis] - 1)
            x = x.index_select(axis, index).unflatten(axis, (num_means, steps)).mean(axis + 1)
        if ratio != 1:
            position = ((torch.arange(length, device=x.device) + 0.5) * ratio - 0.5).clamp(0, num_means - 1)
            low = position.floor().long()
            high = (low + 1).clamp(max=num_means - 1)
            share = (position - low).to(x.dtype)
            share = share if axis == 3 else share[:, None]
            x = torch.lerp(x.index_select(axis, low), x.index_select(axis, high), share)
    return x


def argmax_at(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The class of each pixel, (N, H, W) int64, of logits (N, C, h, w) resized to `size` (H, W).

    Equal, bit for bit, to `resize_logits(logits, size).argmax(1)`, but resizes a few classes at a time and keeps the
    best.
    """
    logits = logits.detach().contiguous()
    num_images, num_classes = logits.shape[:2]
    height, width = int(size[0]), int(size[1])
    best_class = torch.zeros(num_images, height, width, dtype=torch.int64, device=logits.device)
    chunk = max(1, ARGMAX_BYTES // (4 * height * width))
    for i in range(num_images):
        best: Tensor | None = None
        for first in range(0, num_classes, chunk):
            value, index = resize_logits(logits[i : i + 1, first : first + chunk], size)[0].max(0)
            if best is None:
                best, best_class[i] = value, index
                continue
            better = value > best
            best = torch.where(better, value, best)
            best_class[i] = torch.where(better, index + first, best_class[i])
    return best_class


@lru_cache(maxsize=64)
def _taps(in_size: int, out_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each output position: the two input positions that it mixes, and the share of the second (float64)."""
    position = (torch.arange(out_size, dtype=torch.float64) + 0.5) * (in_size / out_size) - 0.5
    position = position.clamp(0, in_size - 1)
    low = position.floor().long()
    return low, (low + 1).clamp(max=in_size - 1), position - low


def interpolation_matrix(in_size: int, out_size: int, like: Tensor) -> Tensor:
    """The (out_size, in_size) matrix of a bilinear resize along one axis, in `like`'s type and device.

    Its transpose is the resize's gradient.
    """
    low, high, share = _taps(in_size, out_size)
    matrix = torch.zeros(out_size, in_size, dtype=torch.float64)
    rows = torch.arange(out_size)
    matrix[rows, low] += 1 - share
    matrix[rows, high] += share
    return matrix.to(like)


def row_tap_range(in_size: int, out_size: int, start: int, stop: int) -> tuple[int, int]:
    """The input positions [first, last) that the output positions [start, stop) mix."""
    low, high, _ = _taps(in_size, out_size)
    return int(low[start]), int(high[stop - 1]) + 1
