"""Values of maps at points. Coordinates go from 0 to 1 over the image's width and height."""

from __future__ import annotations

import torch
from torch import Tensor

from classyseg.layers.resize import div_mod


def values_at(x: Tensor, coordinates: Tensor) -> Tensor:
    """Bilinear values (N, C, P) of a map (N, C, h, w) at `coordinates` (N, P, 2): (x, y), from 0 to 1 across the map.

    As in `resize_logits`, the border is repeated beyond the outermost centres. Differentiable in `x`.
    """
    channels, height, width = x.shape[1:]
    column = (coordinates[..., 0] * width - 0.5).clamp(0, width - 1)
    row = (coordinates[..., 1] * height - 0.5).clamp(0, height - 1)
    left, top = column.floor().long(), row.floor().long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    pixels = x.flatten(2)

    def picked(row: Tensor, column: Tensor) -> Tensor:
        return pixels.gather(2, (row * width + column)[:, None].expand(-1, channels, -1))

    across, down = (share.to(x.dtype)[:, None] for share in (column - left, row - top))
    upper = torch.lerp(picked(top, left), picked(top, right), across)
    lower = torch.lerp(picked(bottom, left), picked(bottom, right), across)
    return torch.lerp(upper, lower, down)


def pixels_at(mask: Tensor, coordinates: Tensor) -> Tensor:
    """The values of the pixels of `mask` (N, H, W) in which the points `coordinates` (N, P, 2) lie: (N, P)."""
    height, width = mask.shape[1:]
    column = (coordinates[..., 0] * width).long().clamp(0, width - 1)
    row = (coordinates[..., 1] * height).long().clamp(0, height - 1)
    return mask.flatten(1).gather(1, row * width + column)


def cell_centres(index: Tensor, height: int, width: int) -> Tensor:
    """The coordinates (N, P, 2) of the centres of the cells `index` (N, P) of a map of `height` rows, row by row."""
    row, column = div_mod(index, width)
    return torch.stack([(column.float() + 0.5) / width, (row.float() + 0.5) / height], 2)


def spread_points(count: int, device: torch.device) -> Tensor:
    """`count` points (count, 2), (x, y) from 0 to 1, that cover the square evenly: always the same ones.

    Source: Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018; its sequence R2, in integers, so
    that all devices make the same points.
    """
    index = torch.arange(1, count + 1, device=device)
    steps = [round(0.7548776662466927 * 2**24), round(0.5698402909980532 * 2**24)]
    return torch.stack([(index * step) % 2**24 for step in steps], 1).float() / 2**24
