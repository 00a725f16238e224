"""Random erasing and cutout: rectangles of the image without content."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field

from classyseg.errors import ConfigError
from classyseg.registry import TRANSFORMS
from classyseg.rng import randint, uniform
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import ClassyTransform
from classyseg.transforms.fitting import Positive
from classyseg.transforms.pixels import Grey, Share, fill_of, in_order, require_aligned


@TRANSFORMS.register("random_erasing")
class RandomErasing(ClassyTransform):
    """Fills `count` rectangles of the image, each with a random share `area` of it and ratio of height to width.

    `fill` is a grey level, or `noise`. With `ignore`, the mask is ignored there; else the labels stay, for the model to
    guess what was there from what is around it.

    Source: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020; the variant `cutout` (one grey square): DeVries
    and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.

    Args:
        probability: Of erasing anything.
        count: How many rectangles.
        area: The range of a rectangle's share of the image.
        ratio: The range of its height divided by its width.
        fill: A grey level, or `noise`.
        ignore: Whether the mask is ignored there; else the labels stay.
    """

    keeps_size = True
    keeps_type = True
    takes_flags = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        probability: Share = 0.5,
        count: Annotated[int, Field(ge=1, le=1000)] = 1,
        area: tuple[Share, Share] = (0.02, 0.33),
        ratio: tuple[Positive, Positive] = (0.3, 3.3),
        fill: Grey | Literal["noise"] = "noise",
        ignore: bool = False,
    ) -> None:
        super().__init__(ignore_index)
        self.probability = probability
        self.count = count
        self.area = in_order("area", area)
        self.ratio = in_order("ratio", ratio)
        self.noise = isinstance(fill, str)
        self.fill = 0 if isinstance(fill, str) else fill
        self.ignore = ignore

    def refusal_of_numbers(self) -> str:
        if self.noise:
            return "fills with noise of all grey levels, which nobody knows of them; write fill: 0"
        return super().refusal_of_numbers()

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        require_aligned(sample, "random_erasing")
        if uniform(generator, 0, 1) >= self.probability:
            return sample
        if self.noise and sample.image.is_floating_point():
            raise ConfigError(f"{sample.name}: 'random_erasing' found a normalised image; put it before 'normalize'")
        image, mask = sample.image.clone(), sample.target.clone()
        levels = 65536 if image.dtype == torch.uint16 else 256
        for _ in range(self.count):
            rows, columns = self._rectangle(generator, *mask.shape[-2:])
            erased = image[:, rows, columns]
            if self.noise:
                erased.copy_(torch.randint(0, levels, erased.shape, generator=generator))
            else:
                erased.fill_(fill_of(sample, self.fill))
            if self.ignore:
                mask[..., rows, columns] = self.ignore_index
        return sample.replace(image=image, target=mask)

    def _rectangle(self, generator: torch.Generator, height: int, width: int) -> tuple[slice, slice]:
        pixels = uniform(generator, *self.area) * height * width
        ratio = math.exp(uniform(generator, *map(math.log, self.ratio)))
        rows = min(height, round(math.sqrt(pixels * ratio)))
        columns = min(width, round(math.sqrt(pixels / ratio)))
        top, left = randint(generator, 0, height - rows), randint(generator, 0, width - columns)
        return slice(top, top + rows), slice(left, left + columns)


TRANSFORMS.variants(RandomErasing, {"cutout": {"area": (0.05, 0.25), "ratio": (1.0, 1.0), "fill": 128}})
