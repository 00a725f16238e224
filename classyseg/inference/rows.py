"""Maps that exist a few rows at a time: how images and classes of any size pass through little memory.

Everything here is for one image. Rows are asked for from top to bottom. The numbers of a row do not depend on how many
rows are asked for at once. So a budget of memory may choose the height of the bands, and the result stays the same to
the bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from classyseg.heads.classy_head import LOGITS, ClassyHead
from classyseg.layers.resize import neighbours

Size = tuple[int, int]
FLOAT = 4
"""Bytes of a number in float32, which all of these are."""
BAND_BYTES = 24_000_000
"""What a band of rows takes where no budget is smaller. It is small, so that a band stays in the processor's cache."""


LANES = 64
"""How many numbers a row is padded to a multiple of: more than any processor takes at once. See `aligned`."""


class Cost(NamedTuple):
    """Bytes in addition to the rows of maps: `kept` outputs of forward passes, and one pass that is `running`."""

    kept: int
    running: int


class Rows(ABC):
    """A map (channels, height, width) by rows."""

    def __init__(self, channels: int, size: Size) -> None:
        self.channels = channels
        self.size = size

    @abstractmethod
    def rows(self, first: int, stop: int) -> Tensor:
        """The rows [first, stop), (channels, stop - first, width). From call to call, `first` never decreases."""

    def bytes_for(self, count: int) -> int:
        """How many bytes a call for `count` rows takes, its result included."""
        return count * self.channels * self.size[1] * FLOAT


class TensorRows(Rows):
    """A tensor (channels, height, width) that is there."""

    def __init__(self, values: Tensor) -> None:
        super().__init__(len(values), (values.shape[1], values.shape[2]))
        self.values = values

    def rows(self, first: int, stop: int) -> Tensor:
        return self.values[:, first:stop].float()


class Resized(Rows):
    """Another map at `size`, bilinear. Rows are mixed first, then columns, so that any band can be made alone."""

    def __init__(self, source: Rows, size: Size, *, align_corners: bool = False) -> None:
        super().__init__(source.channels, size)
        self.source = source
        self.align_corners = align_corners
        self.low, self.high, self.share = neighbours(source.size[0], size[0], align_corners)

    def rows(self, first: int, stop: int) -> Tensor:
        start = int(self.low[first])
        x = self.source.rows(start, int(self.high[stop - 1]) + 1)
        if self.size[0] != self.source.size[0]:
            share = self.share[first:stop, None].to(x)
            low, high = ((side[first:stop] - start).to(x.device) for side in (self.low, self.high))
            x = torch.lerp(x.index_select(1, low), x.index_select(1, high), share)
        if self.size[1] == self.source.size[1]:
            return x
        return functional.interpolate(x, self.size[1], mode="linear", align_corners=self.align_corners)

    def bytes_for(self, count: int) -> int:
        read = min(self.source.size[0], -(-count * self.source.size[0] // self.size[0]) + 2)
        mixed = 3 * count * self.channels * self.source.size[1] * FLOAT
        return self.source.bytes_for(read) + mixed + super().bytes_for(count)


class Flipped(Rows):
    """Another map, left for right."""

    def __init__(self, source: Rows) -> None:
        super().__init__(source.channels, source.size)
        self.source = source

    def rows(self, first: int, stop: int) -> Tensor:
        return self.source.rows(first, stop).flip(-1)

    def bytes_for(self, count: int) -> int:
        return self.source.bytes_for(count) + super().bytes_for(count)


class Padded(Rows):
    """Another map with a border of `value` (channels,) below and to the right, up to `size`."""

    def __init__(self, source: Rows, size: Size, value: Tensor) -> None:
        super().__init__(source.channels, size)
        self.source = source
        self.value = value

    def rows(self, first: int, stop: int) -> Tensor:
        height, width = self.source.size
        result = self.value.view(-1, 1, 1).expand(-1, stop - first, self.size[1]).contiguous()
        if first < height:
            result[:, : min(stop, height) - first, :width] = self.source.rows(first, min(stop, height))
        return result

    def bytes_for(self, count: int) -> int:
        return self.source.bytes_for(count) + super().bytes_for(count)


class Cropped(Rows):
    """The upper left part of another map."""

    def __init__(self, source: Rows, size: Size) -> None:
        super().__init__(source.channels, size)
        self.source = source

    def rows(self, first: int, stop: int) -> Tensor:
        return self.source.rows(first, stop)[..., : self.size[1]]

    def bytes_for(self, count: int) -> int:
        return self.source.bytes_for(count)


class Mean(Rows):
    """The mean of maps, or their sum."""

    def __init__(self, sources: Sequence[Rows], *, is_sum: bool = False) -> None:
        super().__init__(sources[0].channels, sources[0].size)
        self.sources = sources
        self.is_sum = is_sum

    def rows(self, first: int, stop: int) -> Tensor:
        if len(self.sources) == 1:
            return self.sources[0].rows(first, stop)
        total = torch.zeros(0)
        for i, source in enumerate(self.sources):
            found = source.rows(first, stop)
            total = found.clone() if i == 0 else total.add_(found)
        return total if self.is_sum else total.div_(len(self.sources))

    def bytes_for(self, count: int) -> int:
        return max(source.bytes_for(count) for source in self.sources) + super().bytes_for(count)


class Exponential(Rows):
    """`exp` of the sum of maps of logits."""

    def __init__(self, sources: Sequence[Rows]) -> None:
        super().__init__(sources[0].channels, sources[0].size)
        self.sum = Mean(sources, is_sum=True)

    def rows(self, first: int, stop: int) -> Tensor:
        return aligned(self.sum.rows(first, stop)).exp()[..., : self.size[1]]

    def bytes_for(self, count: int) -> int:
        return self.sum.bytes_for(count) + 2 * aligned_bytes(self, count)


def aligned(values: Tensor) -> Tensor:
    """Rows (channels, rows, width) with zeros at their ends, up to a multiple of `LANES`.

    `exp` rounds the last numbers of a tensor differently, where they do not fill a register. Without this, the value of
    a pixel would depend on its place in a band.
    """
    rest = -values.shape[-1] % LANES
    return functional.pad(values, (0, rest)) if rest else values


def aligned_bytes(maps: Rows, count: int) -> int:
    return count * maps.channels * (maps.size[1] + -maps.size[1] % LANES) * FLOAT


def scores_of(head: ClassyHead, logits: Tensor) -> Tensor:
    """The scores of rows of logits (channels, rows, width) that are at their final size."""
    x = aligned(logits)[None]
    return head.scores({LOGITS: x}, (x.shape[2], x.shape[3]))[0, ..., : logits.shape[-1]]


class ScoresOfLogits(Rows):
    """What a head makes of logits that are at their final size already."""

    def __init__(self, head: ClassyHead, logits: Rows) -> None:
        super().__init__(logits.channels, logits.size)
        self.head = head
        self.logits = logits

    def rows(self, first: int, stop: int) -> Tensor:
        return scores_of(self.head, self.logits.rows(first, stop))

    def bytes_for(self, count: int) -> int:
        return self.logits.bytes_for(count) + 3 * aligned_bytes(self, count)


class ScoresOfHead(Rows):
    """The scores of a head with a rule of its own. The rule makes all rows at once, and again for every call."""

    def __init__(self, head: ClassyHead, outputs: Mapping[str, Tensor], size: Size, channels: int) -> None:
        super().__init__(channels, size)
        self.head = head
        self.outputs = outputs

    def rows(self, first: int, stop: int) -> Tensor:
        return self.head.scores(self.outputs, self.size)[0, :, first:stop].float()

    def bytes_for(self, count: int) -> int:
        return 3 * super().bytes_for(self.size[0])


class Deferred(Rows):
    """A map that `make` gives when its first row is asked for; its channels, size and `bytes_for` are known before."""

    def __init__(self, channels: int, size: Size, make: Callable[[], Rows], cost: Callable[[int], int]) -> None:
        super().__init__(channels, size)
        self.make = make
        self.cost = cost
        self.made: Rows | None = None

    def rows(self, first: int, stop: int) -> Tensor:
        if self.made is None:
            self.made = self.make()
        return self.made.rows(first, stop)

    def bytes_for(self, count: int) -> int:
        return self.cost(count)


class Windows(Rows):
    """The weighted mean of maps of windows. Each is made when its first row is asked for.

    Windows begin at `tops` and `lefts`. `run(top, first)` gives the maps of the windows that begin at `top`, in the
    order of `lefts`; rows above `first` are not asked for again. A window may reach beyond the map. `weights` are those
    of a window's rows and columns. `part_bytes(count)` is the memory of `count` rows of a window.
    """

    def __init__(
        self,
        channels: int,
        size: Size,
        tops: Sequence[int],
        lefts: Sequence[int],
        weights: tuple[Tensor, Tensor],
        run: Callable[[int, int], list[Rows]],
        part_bytes: Callable[[int], int],
        device: torch.device,
    ) -> None:
        super().__init__(channels, size)
        self.device = device
        self.tops, self.lefts, self.weights = tops, lefts, weights
        self.run = run
        self.part_bytes = part_bytes
        self.is_flat = all(bool((axis == 1).all()) for axis in weights)
        self.totals = [
            _total(length, starts, axis) for length, starts, axis in zip(size, (tops, lefts), weights, strict=True)
        ]

    def rows(self, first: int, stop: int) -> Tensor:
        height = len(self.weights[0])
        touched = [top for top in self.tops if top < stop and top + height > first]
        # Windows run before memory is taken for the sum, so that the two peaks do not add up.
        found = [(top, self.run(top, first)) for top in touched]
        result = torch.zeros(self.channels, stop - first, self.size[1], device=self.device)
        for top, windows in found:
            start, end = max(first, top), min(stop, top + height)
            for left, window in zip(self.lefts, windows, strict=True):
                part = window.rows(start - top, end - top)
                width = min(part.shape[2], self.size[1] - left)
                part = part[..., :width]
                if not self.is_flat:
                    rows, columns = self.weights
                    part = part * (rows[start - top : end - top, None] * columns[:width]).to(part)
                result[:, start - first : end - first, left : left + width] += part
        rows, columns = self.totals
        return result.div_((rows[first:stop, None] * columns).to(result))

    def bytes_for(self, count: int) -> int:
        weighted = 0 if self.is_flat else count * self.channels * len(self.weights[1]) * FLOAT
        return super().bytes_for(count) + self.part_bytes(min(count, len(self.weights[0]))) + weighted


def _total(length: int, starts: Sequence[int], weights: Tensor) -> Tensor:
    """The sum of the weights at each position of an axis."""
    total = torch.zeros(length, dtype=weights.dtype)
    for start in starts:
        end = min(length, start + len(weights))
        total[start:end] += weights[: end - start]
    return total


def bands(height: int, count: int) -> Iterator[tuple[int, int]]:
    """The rows [first, stop) of bands of `count` rows, from top to bottom."""
    for first in range(0, height, count):
        yield first, min(height, first + count)


def rows_within(sources: Sequence[Rows], room: int, each: int = 0) -> int:
    """How many rows fit into `room` bytes, one of `sources` at a time and `each` bytes a row in addition; perhaps 0."""

    def taken(count: int) -> int:
        return max(source.bytes_for(count) for source in sources) + each * count

    if taken(1) > room:
        return 0
    low, high = 1, sources[0].size[0]
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if taken(middle) <= room else (low, middle - 1)
    return low
