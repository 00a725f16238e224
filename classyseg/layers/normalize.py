"""From images of 8, 16 or 32 bits to what a network expects, on the device."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import ConfigRecord, Float
from classyseg.errors import ConfigError

Deviation = Annotated[Float, Field(ge=1e-30)]
"""A division by less would overflow float32."""


class NormalizeConfig(ConfigRecord):
    """Mean and standard deviation per channel; the default is ImageNet's.

    They are for images scaled to 0..1; with `bits: 32`, for the stored numbers.

    Images reach the device as bytes; there they become `(image / 255 - mean) / std`, and those of 16 bits `(image /
    65535 - mean) / std`. Those of a data set of `bits: 32` are in a unit of their own and become `(image - mean) /
    std`: there is no default for them, so `normalize` is required, with `mean` and `std` in that unit. `classyseg data
    stats CONFIG` prints the line.

    Args:
        mean: One per channel of the image, for images scaled to 0..1; with `bits: 32`, in the unit of the image.
        std: As many, above 0.
    """

    mean: tuple[Float, ...] = (0.485, 0.456, 0.406)
    std: tuple[Deviation, ...] = (0.229, 0.224, 0.225)


class ImageNormalizer(nn.Module):
    """Maps images (N, C, H, W) or clips (N, C, T, H, W) to `(image / 255 - mean) / std`; uint16 is divided by 65535.

    Images in floating point pass as they are. With `own_unit`, those of a data set of `bits: 32`, they become
    `(image - mean) / std`.

    Raises: `ConfigError` when the images have another number of channels than `mean` and `std`, or are bytes where
    numbers in their `own_unit` are expected.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, normalize: NormalizeConfig, *, own_unit: bool = False) -> None:
        super().__init__()
        self.own_unit = own_unit
        if len(normalize.mean) != len(normalize.std):
            raise ConfigError(
                "normalize", f"found {len(normalize.mean)} means and {len(normalize.std)} standard deviations"
            )
        white = 1 if own_unit else 255
        self.register_buffer("mean", white * torch.tensor(normalize.mean), persistent=False)
        scale = 1 / (white * torch.tensor(normalize.std, dtype=torch.float64))
        self.register_buffer("scale", scale.float(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if image.is_floating_point() and not self.own_unit:
            return image
        if self.own_unit and not image.is_floating_point():
            raise ConfigError("normalize", f"found images of {image.dtype}, where the data set says `bits: 32`")
        if image.shape[1] != len(self.mean):
            raise ConfigError(
                "normalize",
                f"found images of {image.shape[1]} channels and {len(self.mean)} means; "
                "give `normalize` (and the model's in_channels) one mean and one std per channel",
            )
        shape = (-1, *[1] * (image.dim() - 2))  # channels are axis 1, for images and clips
        values = image.float()
        if self.own_unit:
            return values.sub(self.mean.view(shape)).mul_(self.scale.view(shape))  # the batch itself stays as it is
        if image.dtype == torch.uint16:
            values /= 257  # 65535 / 255
        return values.sub_(self.mean.view(shape)).mul_(self.scale.view(shape))  # takes half the time of a division
