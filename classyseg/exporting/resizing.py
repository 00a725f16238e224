"""Resizing in a graph of free sizes: torch's anti-aliased resize of bytes, to the bit, as products of matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST = 2**15
MOST_BITS = 22
"""torch keeps the weights of a resize of bytes as integers below `LARGEST`, of at most so many binary places."""


def resized(images: Tensor, size: Sequence[int], cubic: bool) -> Tensor:
    """Images (N, C, H, W) at `size` (height, width), smoothed when they shrink, as `interpolate(antialias=True)`.

    For bytes the numbers are torch's own: it rounds weights to integers, resizes along rows, rounds to bytes, and then
    resizes along columns. Each sum is a whole number below 2**53, so float64 has it exactly, in any order.
    """
    is_bytes = not images.is_floating_point()
    values = images.double()
    for axis, length in ((3, size[1]), (2, size[0])):
        weights = _weights(images.shape[axis], length, cubic, images.device)
        unit = torch.ones((), dtype=torch.float64, device=images.device)
        if is_bytes:
            weights, unit = _whole(weights)
        values = values @ weights.T if axis == 3 else weights @ values
        if is_bytes:
            values = ((values + unit / 2) / unit).floor().clamp(0, 255)
    return values.to(images.dtype)


def _weights(in_size: int, out_size: int, cubic: bool, device: torch.device) -> Tensor:
    """The weights (out_size, in_size) of a resize along one axis, float64: Pillow's, which torch took over."""
    kind = torch.float64
    old, new = (torch.scalar_tensor(length, dtype=kind, device=device) for length in (in_size, out_size))
    scale = old / new
    wider = scale.clamp(min=1)
    support = (2.0 if cubic else 1.0) * wider
    center = scale * (torch.arange(out_size, dtype=kind, device=device)[:, None] + 0.5)
    first = (center - support + 0.5).floor().clamp(min=0)
    stop = torch.minimum(torch.minimum((center + support + 0.5).floor(), old), first + 2 * support.ceil() + 1)
    position = torch.arange(in_size, dtype=kind, device=device)
    x = ((position - center + 0.5) * (1 / wider)).abs()
    weights = _cubic(x) if cubic else (1 - x).clamp(min=0)
    weights = torch.where((position >= first) & (position < stop), weights, torch.zeros_like(weights))
    return weights / weights.sum(1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _whole(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weights as whole numbers, and what stands for 1: the largest power of 2 that keeps them below `LARGEST`."""
    powers = 2.0 ** torch.arange(1, MOST_BITS + 1, dtype=weights.dtype, device=weights.device)
    fits = (0.5 + weights.max() * powers).floor() < LARGEST
    unit = torch.where(fits, powers, torch.ones_like(powers)).max()
    scaled = weights * unit
    return torch.where(scaled < 0, -(0.5 - scaled).floor(), (0.5 + scaled).floor()), unit
