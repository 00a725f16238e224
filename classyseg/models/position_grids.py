"""Fits learned position embeddings of another grid. The file or the user tells the grid, else it must be plain."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from classyseg.checkpoint import MAX_STATE, STATE
from classyseg.run_folder import MODEL_CONFIG
from classyseg.structures import PositionGrid

Grid = tuple[int, int]
TELL = "tell it: grid: [rows, columns], next to the name of the file"


class UnknownGridError(ValueError):
    """The grid of a file's position embeddings is not known. The message says what to do."""


def on_own_grid(
    name: str, tensor: Tensor, shape: tuple[int, ...], own: PositionGrid, told: Grid | None
) -> tuple[Tensor, str]:
    """The file's position embeddings `tensor` in `shape` on the grid `own`, and a sentence about what was assumed.

    `tensor` is (1, extra + rows x columns, C), with or without a place for the class token, or a map (1, rows,
    columns, C) or (1, C, rows, columns), which tells its grid. `told` is the grid that the user or a run's config
    names. Without it, as many positions as `own` has mean the same grid, and a square number means a square. If the two
    rules contradict (the model has a square number on an oblong grid), the tensor is refused.

    Raises: `UnknownGridError` where no rule gives a grid.
    """
    if tensor.dim() == 4 and (tensor.shape[3] == shape[2]) != (tensor.shape[1] == shape[2]):
        maps = tensor if tensor.shape[3] == shape[2] else tensor.permute(0, 2, 3, 1)
        tensor, told = maps.flatten(1, 2), (maps.shape[1], maps.shape[2])
    if tensor.dim() != 3 or tensor.shape[::2] != (1, shape[2]):
        return tensor, ""
    grid, num_extra = _grid(name, tensor.shape[1], own, told)
    if num_extra < own.num_extra:  # in such files the class token has no position
        missing = own.num_extra - num_extra
        tensor = torch.cat([torch.zeros_like(tensor[:, :1]).expand(-1, missing, -1), tensor[:, num_extra:]], 1)
    is_own = grid == (own.rows, own.columns)
    if is_own and (told or own.rows == own.columns):
        return tensor, ""
    assumed = (
        f"the {math.prod(grid)} position embeddings '{name}' are taken for a grid of {grid[0]} x {grid[1]}, "
        f"{'as this model has' if is_own else f'and resized to {own.rows} x {own.columns}'}; "
        f"if theirs is another grid, {TELL}"
    )
    if is_own:  # 12 x 24 and 24 x 12 have the same number: only assumed
        return tensor, assumed
    return resized_positions(tensor, own.num_extra, grid, (own.rows, own.columns)), "" if told else assumed


def _grid(name: str, count: int, own: PositionGrid, told: Grid | None) -> tuple[Grid, int]:
    """The grid of `count` positions, and how many positions come before it."""
    same = (own.rows, own.columns)
    for num_extra in dict.fromkeys((own.num_extra, 0)):
        num = count - num_extra
        if told is not None:
            if math.prod(told) == num:
                return told, num_extra
            continue
        side = math.isqrt(max(num, 0))
        is_square, is_own = num > 0 and side * side == num, num == math.prod(same)
        if is_square and is_own and same[0] != same[1]:
            raise UnknownGridError(
                f"'{name}' has {num} positions, on a grid of {same[0]} x {same[1]}, as this model's, or of {side} x "
                f"{side}; {TELL}"
            )
        if is_square or is_own:
            return same if is_own else (side, side), num_extra
    if told is not None:
        raise UnknownGridError(
            f"grid: found [{told[0]}, {told[1]}], {math.prod(told)} positions; '{name}' has {_either(count, own)}"
        )
    raise UnknownGridError(
        f"'{name}' has {_either(count, own)}, no square number; {TELL}, such as "
        f"{_example(count - own.num_extra, count)}"
    )


def _either(count: int, own: PositionGrid) -> str:
    """The number of positions in words, with and without those before the grid."""
    bare = f" ({count - own.num_extra} without the class token's)" if own.num_extra else ""
    return f"{count} positions{bare}"


def _example(*counts: int) -> str:
    """A grid of one of `counts` positions, as near to a square as possible."""
    grids = [(rows, num // rows) for num in counts for rows in range(1, math.isqrt(max(num, 0)) + 1) if num % rows == 0]
    return str(list(max(grids, default=(1, 1))))


def image_size_of_run(folder: Path) -> Grid | None:
    """The size of a model's images, as a checkpoint's folder or a model's folder tells it; None if it does not."""
    path = folder / STATE if (folder / STATE).exists() else folder / MODEL_CONFIG
    try:
        if not path.is_file() or path.stat().st_size > MAX_STATE:  # reading a pipe would wait for ever
            return None
        told = json.loads(path.read_text(encoding="utf-8"))
        size = (told["config"] if path.name == STATE else told)["model"]["image_size"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    return (height, width) if type(height) is int and type(width) is int and height > 0 and width > 0 else None


def grid_of(image_size: Grid | None, own: PositionGrid, tensor: Tensor) -> Grid | None:
    """The grid of the position embeddings `tensor` of our model for images of that size; None if unknown."""
    if image_size is None or tensor.dim() != 3 or tensor.shape[1] <= own.num_extra:
        return None
    height, width = image_size
    patch = round(math.sqrt(height * width / (tensor.shape[1] - own.num_extra)))
    return None if not patch or height % patch or width % patch else (height // patch, width // patch)


def resized_positions(positions: Tensor, num_extra: int, grid: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Position embeddings (1, num_extra + rows * columns, C) of `grid`, resized to a grid of `size`.

    Bicubic, with aligned corners, as torchvision and ClassyVision do when they load a file.
    """
    if not torch.compiler.is_compiling() and tuple(size) == tuple(grid):
        return positions
    extra, patches = positions[:, :num_extra], positions[:, num_extra:]
    patches = patches.transpose(1, 2).unflatten(2, grid)
    patches = F.interpolate(patches, tuple(size), mode="bicubic", align_corners=True)
    return torch.cat([extra, patches.flatten(2).transpose(1, 2)], 1)
