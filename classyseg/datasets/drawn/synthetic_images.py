"""Noise of two colours: ClassyVision's data set that needs no download, to try classification on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from classyseg.config import MAX_SIDE
from classyseg.datasets.classification_dataset import ClassificationDataset
from classyseg.datasets.drawn.synthetic_shapes import MAX_SAMPLES, SPLITS, drawn_facts
from classyseg.datasets.facts import DataFacts
from classyseg.datasets.files.arrays import image_tensor
from classyseg.errors import ConfigError
from classyseg.registry import DATASETS, TransformConfig
from classyseg.rng import derived_seed
from classyseg.structures import Sample

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Size = tuple[Side, Side]


@DATASETS.register("synthetic_image")
class SyntheticImage(ClassificationDataset):
    """Noise in the blue channel, and in the red or the green one, which is the class.

    `class_ratio` is the share of green images. Sample `index` of a `split` is drawn from `(split, index)`: nothing is
    stored.

    Args:
        split: `train` or `test`: different images.
        num_samples: How many.
        size: Height and width.
        class_ratio: The share of green ones.
        transforms: Transforms.
    """

    classes = ("red", "green")
    channels = 3
    image_size: tuple[int, int]

    def __init__(
        self,
        *,
        split: Literal["train", "test"],
        num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 512,
        size: Size = (64, 64),
        class_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        super().__init__(transforms)
        self.split = split
        self.num_samples = num_samples
        self.image_size = size
        self.class_ratio = class_ratio

    @classmethod
    def facts_of(cls, config: Any) -> DataFacts:
        return drawn_facts(config, super().facts_of(config))

    def __len__(self) -> int:
        return self.num_samples

    def load(self, index: int) -> Sample:
        random = np.random.default_rng(derived_seed(SPLITS[self.split], index))
        label = int(random.uniform() < self.class_ratio)
        image = np.zeros((*self.image_size, 3), np.uint8)
        image[..., [label, 2]] = random.integers(0, 256, (*self.image_size, 2))
        return Sample(image_tensor(image), torch.tensor(label), f"{self.split} {index}")


@DATASETS.register("synthetic_image_streaming")
class SyntheticImageStreaming(SyntheticImage):
    """`synthetic_image` as a stream of `length` images, again and again: each epoch takes the next `num_samples`.

    Without a `length`, the stream is one epoch long, as in ClassyVision. An evaluation takes the first ones.

    Args:
        split: `train` or `test`: different images.
        num_samples: How many in one epoch.
        length: How many in all; null: as many as in one epoch.
        size: Height and width.
        class_ratio: The share of green ones.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        split: Literal["train", "test"],
        num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 512,
        length: Annotated[int, Field(ge=1)] | None = None,
        size: Size = (64, 64),
        class_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        super().__init__(
            split=split, num_samples=num_samples, size=size, class_ratio=class_ratio, transforms=transforms
        )
        self.length = num_samples if length is None else length
        if self.length < num_samples:
            raise ConfigError("length", f"found {length}; accepted: {num_samples} (num_samples) and more")

    def draw(self, index: int, epoch: int) -> Sample:
        return self.load((epoch * self.num_samples + index) % self.length)
