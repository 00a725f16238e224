"""Images as tiles: where the tiles of each image lie, and which of their pixels count."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, Strict

from classyseg.config import MAX_SIDE, ConfigRecord
from classyseg.datasets.files.rasters import Window
from classyseg.errors import ConfigError
from classyseg.rng import randint

Side = Annotated[int, Strict(), Field(ge=1, le=MAX_SIDE)]


class TilesConfig(ConfigRecord):
    """How large images become samples: in tiles of `size`, without holding an image whole.

    Where a model is measured, each pixel counts in exactly one tile; the others hold it as context. Where a model is
    trained, a tile lies near that place, drawn anew in every epoch, and all of its pixels count.

    Args:
        size: Height and width of a tile, or one number for both. A smaller image is one tile.
        overlap: Pixels of context on each side of those that count, so that none of these is predicted at a border.
        nodata: The number that marks pixels without data, which are then ignored: `file` takes GDAL's tag of each TIFF.
            A pixel has no data if all of its bands are that number; with `bits: 32`, if one is.
    """

    size: Side | tuple[Side, Side]
    overlap: Annotated[int, Strict(), Field(ge=0)] = 0
    nodata: Literal["file"] | Annotated[float, Field(allow_inf_nan=False)] | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def check(self) -> None:
        """Raises: `ConfigError` if no pixel of a tile would count."""
        if 2 * self.overlap >= min(self.sides):
            raise ConfigError(
                "tiles.overlap",
                f"found {self.overlap}; a tile of {self.sides[0]} x {self.sides[1]} with so much on each side has no "
                f"pixel that counts; accepted are up to {(min(self.sides) - 1) // 2}",
            )


class Span(NamedTuple):
    """A tile on one axis: it covers [start, stop), and [first, last) counts."""

    start: int
    stop: int
    first: int
    last: int


def spans(length: int, side: int, overlap: int) -> list[Span]:
    """The fewest tiles of `side` pixels that cover an axis; the last one is moved back to lie inside.

    What counts in them covers the axis once. It has `overlap` pixels on each side, except at the ends of the axis.
    """
    if length <= side:
        return [Span(0, length, 0, length)]
    starts = [*range(0, length - side, side - 2 * overlap), length - side]
    bounds = [0, *(start + side - overlap for start in starts[:-1]), length]
    return [Span(start, start + side, *bounds[i : i + 2]) for i, start in enumerate(starts)]


class Tile(NamedTuple):
    """A tile of the image `number`: its `window` there, and `counted`, the window within the tile that counts."""

    number: int
    window: Window
    counted: Window


class Tiles:
    """The tiles of images of these `sizes` (height, width): one image after the other, row by row."""

    def __init__(self, config: TilesConfig, sizes: Sequence[tuple[int, int]]) -> None:
        self.config, self.sizes = config, list(sizes)
        self.ends = list(accumulate(len(rows) * len(columns) for rows, columns in map(self._spans, self.sizes)))

    def _spans(self, size: tuple[int, int]) -> tuple[list[Span], list[Span]]:
        height, width = self.config.sides
        return spans(size[0], height, self.config.overlap), spans(size[1], width, self.config.overlap)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def number_of(self, index: int) -> int:
        """The number of the image of tile `index`."""
        return bisect_right(self.ends, index)

    def tile(self, index: int) -> Tile:
        """The tile `index` of the grid."""
        number = self.number_of(index)
        rows, columns = self._spans(self.sizes[number])
        row, column = divmod(index - (self.ends[number - 1] if number else 0), len(columns))
        (top, bottom, first, last), (left, right, start, end) = rows[row], columns[column]
        return Tile(
            number,
            Window(top, left, bottom - top, right - left),
            Window(first - top, start - left, last - first, end - start),
        )

    def drawn(self, index: int, generator: torch.Generator) -> Tile:
        """A tile up to half a step away from tile `index` of the grid; all of it counts.

        So an epoch sees every part of an image, at other places than the epoch before.
        """
        number, window, _ = self.tile(index)
        height, width = self.sizes[number]
        steps = [max(1, side - 2 * self.config.overlap) for side in self.config.sides]
        top, left = (
            min(max(0, start + randint(generator, -(step // 2), step // 2)), length - side)
            for start, step, length, side in (
                (window.top, steps[0], height, window.height),
                (window.left, steps[1], width, window.width),
            )
        )
        moved = Window(top, left, window.height, window.width)
        return Tile(number, moved, Window(0, 0, window.height, window.width))
