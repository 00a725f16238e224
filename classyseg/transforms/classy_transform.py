"""The contract of transforms: image and mask together, randomness from the generator that is passed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from classyseg.registry import Configurable
from classyseg.structures import Sample


class ClassyTransform(Configurable, ABC):
    """Built as `Transform(ignore_index, *, options)`: the label of pixels that a transform adds to a mask."""

    def __init__(self, ignore_index: int = 255) -> None:
        self.ignore_index = ignore_index

    @abstractmethod
    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """The transformed `sample`: image (C, H, W) uint8, mask (H, W) int64.

        Whatever is random is drawn from `generator`, which depends on (seed, epoch, index) alone, and from nothing
        else.
        """
