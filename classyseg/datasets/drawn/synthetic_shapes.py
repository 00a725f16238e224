"""Drawn scenes of shapes: a data set that needs no download, to try everything on."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from classyseg.config import MAX_SIDE
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.facts import DataFacts, told
from classyseg.datasets.files.arrays import image_tensor
from classyseg.registry import DATASETS, TransformConfig
from classyseg.rng import derived_seed
from classyseg.structures import Sample

Array = npt.NDArray[Any]
Side = Annotated[int, Field(ge=16, le=MAX_SIDE)]
MAX_SAMPLES = 100_000_000
SPLITS = {"train": 0, "test": 1}


HUES = {1: 0.0, 2: 0.33, 3: 0.6}
"""The usual hue of each shape, in turns of the colour wheel."""


def drawn_facts(config: Any, facts: DataFacts) -> DataFacts:
    """`facts`, and what the config of a drawn data set tells in addition: the size and the number of its images."""
    return replace(facts, size=told(config, "size", tuple), num_samples=told(config, "num_samples", int))


@DATASETS.register("synthetic_shapes")
class SyntheticShapes(ClassyDataset):
    """Discs, squares and triangles of any place, size and turn, before a noisy background crossed by coloured lines.

    A shape's hue hints at its class, but `odd_colors` of them have any hue, as the lines do; shapes hide each other; a
    line of `border` pixels around each is ignored, as in Pascal VOC. Sample `index` of a `split` is drawn from `(split,
    index)`: nothing is stored.

    Args:
        split: `train` or `test`: different scenes.
        num_samples: How many.
        size: Height and width, 16 or more.
        max_shapes: Each scene has 1 to so many.
        border: Width in pixels of the ignored line around each shape.
        odd_colors: Share of shapes whose colour says nothing about their class.
        transforms: Transforms.
    """

    classes = ("background", "disc", "square", "triangle")
    channels = 3
    image_size: tuple[int, int]
    palette = ((0, 0, 0), (220, 60, 60), (60, 180, 75), (0, 110, 220))

    def __init__(
        self,
        *,
        split: Literal["train", "test"],
        num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 512,
        size: tuple[Side, Side] = (64, 64),
        max_shapes: Annotated[int, Field(ge=1, le=1000)] = 3,
        border: Annotated[int, Field(ge=0, le=MAX_SIDE)] = 3,
        odd_colors: Annotated[float, Field(ge=0, le=1)] = 0.02,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        super().__init__(transforms)
        self.split = split
        self.num_samples = num_samples
        self.image_size = size
        self.max_shapes = max_shapes
        self.border = border
        self.odd_colors = odd_colors

    @classmethod
    def facts_of(cls, config: Any) -> DataFacts:
        return drawn_facts(config, super().facts_of(config))

    def __len__(self) -> int:
        return self.num_samples

    def load(self, index: int) -> Sample:
        random = np.random.default_rng(derived_seed(SPLITS[self.split], index))
        height, width = self.image_size
        y, x = np.mgrid[:height, :width].astype(np.float32)
        share = _slope(random, x, y)[..., None]
        image = _color(random, random.uniform(), (0, 0.3)) * share + _color(random, random.uniform(), (0, 0.3)) * (
            1 - share
        )
        mask = np.zeros(self.image_size, np.int64)
        for _ in range(2):
            line = _slope(random, x, y)
            image[abs(line - random.uniform()) < 0.02] = _color(random, random.uniform(), (0.4, 1))
        for _ in range(random.integers(1, self.max_shapes + 1)):
            self._draw(random, image, mask, x, y)
        image += random.normal(0, 12, image.shape)
        return Sample(
            image_tensor(image.clip(0, 255).astype(np.uint8)), torch.from_numpy(mask), f"{self.split} {index}"
        )

    def _draw(self, random: np.random.Generator, image: Array, mask: Array, x: Array, y: Array) -> None:
        """Draws one shape over what is there."""
        kind = int(random.integers(1, 4))
        radius = random.uniform(0.16, 0.30) * min(self.image_size)
        turn = random.uniform(0, 2 * np.pi)
        dx, dy = x - random.uniform(0, self.image_size[1]), y - random.uniform(0, self.image_size[0])
        u, v = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
        if kind == 1:
            distance = np.hypot(u, v) - radius
        elif kind == 2:
            distance = np.maximum(abs(u), abs(v)) - 0.886 * radius  # the disc's area
        else:
            edges = [np.cos(a) * u + np.sin(a) * v for a in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
            distance = np.max(edges, axis=0) - 0.777 * radius  # likewise
        odd = random.uniform() < self.odd_colors
        hue = random.uniform() if odd else HUES[kind] + random.normal(0, 0.06)
        image[distance <= 0] = _color(random, hue, (0.45, 1))
        mask[distance <= 0] = kind
        mask[abs(distance) < self.border / 2] = self.ignore_index


def _slope(random: np.random.Generator, x: Array, y: Array) -> Array:
    """A plane that rises from 0 to 1 in a random direction."""
    angle = random.uniform(0, 2 * np.pi)
    plane = np.cos(angle) * x + np.sin(angle) * y
    return (plane - plane.min()) / np.ptp(plane)


def _color(random: np.random.Generator, hue: float, saturation: tuple[float, float]) -> Array:
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, random.uniform(*saturation), random.uniform(0.35, 1)))
