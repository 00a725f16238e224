"""From images of 8 or 16 bits to what a network expects, on the device."""

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
    """Maps images (N, C, H, W) or clips (N, C, T, H, W) to `(image / 255 - mean) / std`; uint16 is divided by 65535.

    Images in floating point pass as they are.

    Raises: `ConfigError` when the images have another number of channels than `mean` and `std`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, normalize: NormalizeConfig) -> None:
        super().__init__()
        if len(normalize.mean) != len(normalize.std):
            raise ConfigError(
                f"normalize: found {len(normalize.mean)} means and {len(normalize.std)} standard deviations"
            )
        self.register_buffer("mean", 255 * torch.tensor(normalize.mean), persistent=False)
        scale = 1 / (255 * torch.tensor(normalize.std, dtype=torch.float64))
        self.register_buffer("scale", scale.float(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if image.is_floating_point():
            return image
        if image.shape[1] != len(self.mean):
            raise ConfigError(
                f"normalize: found images of {image.shape[1]} channels and {len(self.mean)} means; "
                "give `normalize` (and the model's in_channels) one mean and one std per channel"
            )
        values = image.float()
        if image.dtype == torch.uint16:
            values /= 257  # 65535 / 255
        shape = (-1, *[1] * (image.dim() - 2))  # channels are the second axis, whatever follows it
        return values.sub_(self.mean.view(shape)).mul_(self.scale.view(shape))  # in half the time of a division
