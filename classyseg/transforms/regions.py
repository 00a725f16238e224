"""Regions of a mask, the connected pixels of one label: their sizes, and those that are too small to learn from."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from classyseg.config import MAX_SIDE
from classyseg.registry import TRANSFORMS
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import ClassyTransform
from classyseg.transforms.pixels import Label, require_aligned

Numbers = npt.NDArray[np.int64]


def regions_of(mask: npt.NDArray[np.generic]) -> tuple[Numbers, Numbers]:
    """The number of each pixel's region in `mask` (H, W), from 0 on in the order of their first pixels, and the sizes.

    Pixels of one label that touch, by a side or a corner, are one region.
    """
    height, width = mask.shape
    begins = np.ones((height, width), dtype=bool)  # runs of one label within a row; a run never ends behind its row
    begins[:, 1:] = mask[:, 1:] != mask[:, :-1]
    run_of = np.cumsum(begins).reshape(height, width) - 1
    regions = _joined(_touching(mask, run_of), int(run_of[-1, -1]) + 1) if mask.size else np.zeros(0, dtype=np.int64)
    numbers = regions[run_of]
    return numbers, np.bincount(numbers.ravel())


def _touching(mask: npt.NDArray[np.generic], run_of: Numbers) -> Numbers:
    """Pairs (P, 2) of runs in neighbouring rows that touch and have the same label."""
    above, below = mask[:-1], mask[1:]
    pairs = []
    for shift in (-1, 0, 1):
        one = (slice(None), slice(max(0, -shift), mask.shape[1] - max(0, shift)))
        other = (slice(None), slice(max(0, shift), mask.shape[1] - max(0, -shift)))
        same = above[one] == below[other]
        pairs.append(np.stack([run_of[:-1][one][same], run_of[1:][other][same]], axis=1))
    found = np.concatenate(pairs)
    # Most pairs come again and again along a border, one after the other.
    fresh = np.ones(len(found), dtype=bool)
    fresh[1:] = (found[1:] != found[:-1]).any(axis=1)
    return found[fresh]


def _joined(pairs: Numbers, count: int) -> Numbers:
    """For each of `count` runs the number of its region: `pairs` are joined, and what hangs together is one.

    Every run points to a lower one of its region, at last to the lowest. Chains are halved until none is left.
    """
    lowest = np.arange(count)
    while len(pairs):
        ends = lowest[pairs]
        low, high = ends.min(axis=1), ends.max(axis=1)
        differ = low < high
        if not differ.any():
            break
        pairs, low, high = pairs[differ], low[differ], high[differ]
        np.minimum.at(lowest, high, low)
        while True:
            further = lowest[lowest]
            if np.array_equal(further, lowest):
                break
            lowest = further
    is_first = lowest == np.arange(count)
    return (np.cumsum(is_first) - 1)[lowest]


@TRANSFORMS.register("ignore_small_regions")
class IgnoreSmallRegions(ClassyTransform):
    """Ignores regions of a mask with fewer than `min_pixels` pixels: specks of an annotation that nobody meant.

    A region is what pixels of one label form that touch by a side or a corner. The image stays as it is. mmdetection
    leaves out objects so (`min_gt_mask_area`). Before a crop it counts pixels of the file, after it those of the
    window, where it also ignores what a border has cut off.

    Args:
        min_pixels: Smaller regions are ignored.
        labels: Only regions of these labels; by default of all.
    """

    keeps_size = True
    keeps_type = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        min_pixels: Annotated[int, Field(ge=1, le=MAX_SIDE**2)],
        labels: Annotated[tuple[Label, ...], Field(min_length=1)] | None = None,
    ) -> None:
        super().__init__(ignore_index)
        self.min_pixels, self.labels = min_pixels, labels

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        require_aligned(sample, "ignore_small_regions")
        mask = sample.target.numpy()
        numbers, sizes = regions_of(mask)
        small = (sizes < self.min_pixels)[numbers]
        if self.labels is not None:
            small &= np.isin(mask, self.labels)
        return sample.replace(target=sample.target.masked_fill(torch.from_numpy(small), self.ignore_index))
