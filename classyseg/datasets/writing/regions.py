"""The connected regions of a mask as COCO's run lengths, which draw back to the same pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Region(NamedTuple):
    """Pixels of one label that touch each other by their sides.

    `counts` are run lengths, column by column, the first one of other pixels. `box` is left, top, width and height.
    """

    label: int
    counts: list[int]
    box: tuple[int, int, int, int]
    area: int


def regions_of(mask: npt.NDArray[Any]) -> Iterator[Region]:
    """The regions of a mask (H, W), by their first pixel in the order of columns."""
    height = len(mask)
    if not mask.size:
        return
    columns = np.ascontiguousarray(mask.T)
    begins = np.ones(columns.shape, dtype=bool)
    begins[:, 1:] = columns[:, 1:] != columns[:, :-1]
    starts = np.flatnonzero(begins)
    run = begins.ravel().cumsum().reshape(columns.shape) - 1
    touching = columns[:-1] == columns[1:]
    pairs = np.stack([run[:-1][touching], run[1:][touching]], axis=1)
    new = np.ones(len(pairs), dtype=bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    region = _joined(len(starts), pairs[new])
    lengths = np.diff(starts, append=mask.size)
    order = np.argsort(region, kind="stable")
    ends = [*(np.flatnonzero(np.diff(region[order])) + 1), len(order)]
    labels = columns.ravel()[starts]
    first = 0
    for end in ends:
        runs = order[first:end]
        yield _region(int(labels[runs[0]]), starts[runs], lengths[runs], height, mask.size)
        first = end


def _joined(count: int, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each of `count` runs the smallest one that it is connected to by `pairs`."""
    root = np.arange(count)
    while True:
        one, two = root[pairs[:, 0]], root[pairs[:, 1]]
        if np.array_equal(one, two):
            return root
        np.minimum.at(root, np.maximum(one, two), np.minimum(one, two))
        while not np.array_equal(root[root], root):
            root = root[root]


def _region(label: int, starts: npt.NDArray[Any], lengths: npt.NDArray[Any], height: int, size: int) -> Region:
    ends = starts + lengths
    left, right = int(starts[0]) // height, int(ends[-1] - 1) // height
    top, bottom = int((starts % height).min()), int(((ends - 1) % height).max())
    box = (left, top, right - left + 1, bottom - top + 1)
    apart = starts[1:] != ends[:-1]  # a run at the top of a column goes on with one at the bottom of the last
    edges = np.stack([starts[np.append(True, apart)], ends[np.append(apart, True)]], axis=1).ravel()
    counts = np.diff(edges, prepend=0).tolist()
    if edges[-1] < size:
        counts.append(size - int(edges[-1]))
    return Region(label, counts, box, int(lengths.sum()))


def coded_counts(counts: Sequence[int]) -> str:
    """Run lengths as COCO's text: see `files.outlines.decoded_counts`."""
    text = []
    for i, count in enumerate(counts):
        value, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            text.append(chr(48 + bits + (0x20 if more else 0)))
    return "".join(text)
