"""Transforms of the image's values alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional

from classyseg.config import ConfigError
from classyseg.layers import NormalizeConfig
from classyseg.registry import TRANSFORMS
from classyseg.rng import uniform
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import ClassyTransform

Strength = Annotated[float, Field(ge=0, le=1)]


@TRANSFORMS.register("color_jitter")
class ColorJitter(ClassyTransform):
    """Brightness, contrast and saturation by factors from [1 - s, 1 + s], hue by a shift from [-s, s], in random order.

    Hue is in turns of the colour wheel. A strength of 0 leaves that property alone. For images of three channels,
    before they are normalised.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        brightness: Strength = 0.4,
        contrast: Strength = 0.4,
        saturation: Strength = 0.4,
        hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
    ) -> None:
        super().__init__(ignore_index)
        adjustments: list[tuple[Callable[[Tensor, float], Tensor], float, float]] = [
            (functional.adjust_brightness, 1.0, brightness),
            (functional.adjust_contrast, 1.0, contrast),
            (functional.adjust_saturation, 1.0, saturation),
            (functional.adjust_hue, 0.0, hue),
        ]
        self.adjustments = [adjustment for adjustment in adjustments if adjustment[2] > 0]

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        image = sample.image
        if image.is_floating_point():
            raise ConfigError(f"{sample.name}: 'color_jitter' found a normalised image; put it before 'normalize'")
        for i in torch.randperm(len(self.adjustments), generator=generator).tolist():
            adjust, middle, strength = self.adjustments[i]
            image = adjust(image, uniform(generator, middle - strength, middle + strength))
        return sample.replace(image=image)


@TRANSFORMS.register("normalize")
class Normalize(ClassyTransform):
    """Makes the image floating point: `(image / 255 - mean) / std`, ImageNet's by default.

    Seldom needed: the task does the same on the device, where it is faster and a quarter of the bytes travel.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[Annotated[float, Field(gt=0)], ...] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__(ignore_index)
        if len(mean) != len(std):
            raise ConfigError(f"mean: found {len(mean)} means and {len(std)} standard deviations")
        self.normalize = NormalizeConfig(mean=mean, std=std)
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        if sample.image.is_floating_point():
            raise ConfigError(f"{sample.name}: normalised already; use the transform 'normalize' once")
        if len(sample.image) != len(self.mean):
            raise ConfigError(
                f"{sample.name}: has {len(sample.image)} channels; 'normalize' has {len(self.mean)} means"
            )
        return sample.replace(image=(sample.image / 255 - self.mean) / self.std)
