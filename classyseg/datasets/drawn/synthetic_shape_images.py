"""Drawn shapes with the class of each image, to try classification on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from classyseg.datasets.classification_dataset import ClassificationDataset
from classyseg.datasets.drawn.synthetic_shapes import MAX_SAMPLES, Side, SyntheticShapes, drawn_facts
from classyseg.datasets.facts import DataFacts
from classyseg.errors import ConfigError
from classyseg.registry import DATASETS, TransformConfig
from classyseg.structures import Sample


@DATASETS.register("synthetic_shape_images")
class SyntheticShapeImages(ClassificationDataset):
    """The scenes of `synthetic_shapes` for classification: each has one shape, whose kind is the class.

    With `multi_label`, scenes have up to `max_shapes` shapes, and their classes are the kinds that can be seen. Sample
    `index` of a `split` is drawn from `(split, index)`: nothing is stored.

    Args:
        split: `train` or `test`: different scenes.
        num_samples: How many.
        size: Height and width, 16 or more.
        multi_label: Images have a flag for each class, not one class.
        max_shapes: With `multi_label`, each scene has 1 to so many; null: 3.
        odd_colors: Share of shapes whose colour says nothing about their class.
        transforms: Transforms.
    """

    classes = SyntheticShapes.classes[1:]
    palette = SyntheticShapes.palette[1:]
    channels = 3
    image_size: tuple[int, int]

    def __init__(
        self,
        *,
        split: Literal["train", "test"],
        num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 512,
        size: tuple[Side, Side] = (64, 64),
        multi_label: bool = False,
        max_shapes: Annotated[int, Field(ge=1, le=1000)] | None = None,
        odd_colors: Annotated[float, Field(ge=0, le=1)] = 0.02,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        if max_shapes is not None and not multi_label:
            raise ConfigError("max_shapes", f"found {max_shapes}; an image of one class has one shape: leave it out")
        self.multi_label = multi_label
        super().__init__(transforms)
        self.image_size = size
        shapes = (max_shapes or 3) if multi_label else 1
        self.scenes = SyntheticShapes(
            split=split, num_samples=num_samples, size=size, max_shapes=shapes, border=0, odd_colors=odd_colors
        )

    @classmethod
    def facts_of(cls, config: Any) -> DataFacts:
        return drawn_facts(config, super().facts_of(config))

    def __len__(self) -> int:
        return len(self.scenes)

    def load(self, index: int) -> Sample:
        scene = self.scenes.load(index)
        pixels = torch.bincount(scene.target.flatten(), minlength=len(self.scenes.classes))[1:]
        return scene.replace(target=(pixels > 0).float() if self.multi_label else pixels.argmax())
