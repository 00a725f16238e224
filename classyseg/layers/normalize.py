"""From uint8 images to what a network expects, on the device."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import ConfigError, ConfigRecord, Float

Positive = Annotated[Float, Field(gt=0)]


class NormalizeConfig(ConfigRecord):
    """Mean and standard deviation per channel, of images scaled to 0..1; the default is ImageNet's."""

    mean: tuple[Float, ...] = (0.485, 0.456, 0.406)
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)


class ImageNormalizer(nn.Module):
    """Maps uint8 images (N, C, H, W) to `(image / 255 - mean) / std`; images in floating point pass as they are.

    Raises: `ConfigError` when the images have another number of channels than `mean` and `std`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, normalize: NormalizeConfig) -> None:
        super().__init__()
        if len(normalize.mean) != len(normalize.std):
            raise ConfigError(
                f"normalize: found {len(normalize.mean)} means and {len(normalize.std)} standard deviations"
            )
        self.register_buffer("mean", 255 * torch.tensor(normalize.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(normalize.std).view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if image.is_floating_point():
            return image
        if image.shape[1] != len(self.mean):
            raise ConfigError(
                f"normalize: found images of {image.shape[1]} channels and {len(self.mean)} means; "
                "give `normalize` (and the model's in_channels) one mean and one std per channel"
            )
        return image.float().sub_(self.mean).div_(self.std)
