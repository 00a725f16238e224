"""Transforms of the image's values alone."""

from __future__ import annotations

from collections.abc import Callable
from threading import local
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from classyseg.errors import ConfigError
from classyseg.layers import NormalizeConfig
from classyseg.registry import TRANSFORMS
from classyseg.rng import randint, uniform
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import ClassyTransform
from classyseg.transforms.pixels import Share, blurred, in_order

GREY = (0.299, 0.587, 0.114)
"""How much of red, green and blue makes grey (ITU-R BT.601)."""

Factor = Annotated[float, Field(ge=0, le=1000)]


def require_color(sample: Sample, transform: str) -> None:
    """Raises: `ConfigError` for images that are normalised or have other than three channels of bytes."""
    image = sample.image
    if image.is_floating_point():
        raise ConfigError(f"{sample.name}: '{transform}' found a normalised image; put it before 'normalize'")
    if len(image) != 3 or image.dtype != torch.uint8:
        raise ConfigError(
            f"{sample.name}: '{transform}' found an image of {len(image)} channels of {image.dtype}; it takes three "
            "channels of 8 bits: leave it out for such images"
        )


def color_values(sample: Sample, transform: str) -> Tensor:
    """The image (3, H, W) as a new float tensor of values 0..255. Raises: `ConfigError` as `require_color` does."""
    require_color(sample, transform)
    return sample.image.contiguous().float()  # whole planes: torch is slow at strided ones


def as_bytes(values: Tensor) -> Tensor:
    """Float values in 0..255, rounded to bytes in place. numpy takes a fifth of torch's time."""
    return torch.from_numpy(values.add_(0.5).numpy().astype(np.uint8))


def grey_of(image: Tensor) -> Tensor:
    """(H, W) of (3, H, W)."""
    red, green, blue = image
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """`factor` times the image. This and the following functions work in place on floats 0..255."""
    return _cut_off(image.mul_(factor), factor)


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """`factor` times the distance to the image's mean grey."""
    mean = torch.dot(image.flatten(1).mean(1), torch.tensor(GREY))
    return _cut_off(image.lerp_(mean, 1 - factor), factor)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """`factor` times the distance of each pixel to its grey."""
    return _cut_off(image.lerp_(grey_of(image), 1 - factor), factor)


def _cut_off(image: Tensor, factor: float) -> Tensor:
    """The image clipped to 0..255; only factors above 1 can leave that range."""
    return image.clamp_(0, 255) if factor > 1 else image


def adjust_hue(image: Tensor, turns: float) -> Tensor:
    """Every hue (of hue, saturation, value) shifted by `turns` of the colour wheel."""
    return adjust_hue_and_saturation(image, turns, 1.0)


def adjust_hue_and_saturation(image: Tensor, turns: float, factor: float) -> Tensor:
    """Shifts the hue and multiplies the saturation of each pixel (in hue, saturation, value) by `factor`."""
    red, green, blue = image
    value, chroma, scale, weight, hue, other = _planes(6, red.shape)
    torch.amax(image, 0, out=value)
    torch.sub(value, torch.amin(image, 0, out=chroma), out=chroma)
    if turns == 0:
        torch.clamp(chroma, min=1e-6, out=scale).reciprocal_()
        return torch.lerp(value, image, torch.mul(value, scale, out=other).clamp_(max=factor), out=image)
    torch.mul(chroma, 6, out=scale).clamp_(min=1e-5).reciprocal_()

    def is_highest(channel: Tensor) -> Tensor:
        # Weights of 0 and 1 replace comparisons and choices: those take torch many times as long.
        return torch.sub(channel, value, out=weight).sign_().add_(1)

    torch.sub(red, green, out=hue).add_(chroma, alpha=4)
    hue.lerp_(torch.sub(blue, red, out=other).add_(chroma, alpha=2), is_highest(green))
    hue.lerp_(torch.sub(green, blue, out=other), is_highest(red)).mul_(scale).add_(turns + 1).frac_()
    if factor != 1:
        torch.minimum(chroma.mul_(factor), value, out=chroma)
    # Green and blue fall from `value` by `chroma` between 1/6 and 1/3 of a turn away from their own hue. Red's hue is
    # both 0 and 1: it rises in the same way from the opposite hue.
    torch.add(value, chroma, out=scale)
    torch.addcmul(value.sub_(chroma, alpha=2), chroma, _distance(hue, 1 / 2, out=other), value=6, out=red)
    torch.addcmul(scale, chroma, _distance(hue, 1 / 3, out=other), value=-6, out=green)
    torch.addcmul(scale, chroma, _distance(hue, 2 / 3, out=other), value=-6, out=blue)
    return image


def _distance(hue: Tensor, middle: float, *, out: Tensor) -> Tensor:
    """The distance to the hue `middle` in turns, clipped to 1/6..1/3."""
    return torch.sub(hue, middle, out=out).abs_().clamp_(1 / 6, 1 / 3)


_kept = local()
LARGEST_KEPT = 2**20
"""Memory is kept for images of up to so many pixels: 24 MB."""


def _planes(count: int, shape: tuple[int, ...]) -> Tensor:
    """Memory for `count` planes, the same at every call: getting fresh memory takes longer than filling it."""
    planes: Tensor | None = getattr(_kept, "planes", None)
    if planes is None or planes.shape != (count, *shape):
        planes = torch.empty(count, *shape)
        if planes[0].numel() <= LARGEST_KEPT:
            _kept.planes = planes
    return planes


@TRANSFORMS.register("color_jitter")
class ColorJitter(ClassyTransform):
    """Brightness, contrast and saturation by factors from [1 - s, 1 + s], hue by a shift from [-s, s], in random order.

    Hue is in turns of the colour wheel. A strength of 0 leaves that property alone. For images of three channels,
    before they are normalised.

    Args:
        brightness: 0 to 1; 0 leaves it alone.
        contrast: 0 to 1.
        saturation: 0 to 1.
        hue: 0 to 0.5.
    """

    keeps_size = True
    keeps_type = True
    takes_flags = True
    needs_color = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        brightness: Share = 0.4,
        contrast: Share = 0.4,
        saturation: Share = 0.4,
        hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
    ) -> None:
        super().__init__(ignore_index)
        adjustments: list[tuple[Callable[[Tensor, float], Tensor], float, float]] = [
            (adjust_brightness, 1.0, brightness),
            (adjust_contrast, 1.0, contrast),
            (adjust_saturation, 1.0, saturation),
            (adjust_hue, 0.0, hue),
        ]
        self.adjustments = [adjustment for adjustment in adjustments if adjustment[2] > 0]

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        image = color_values(sample, "color_jitter")
        for i in torch.randperm(len(self.adjustments), generator=generator).tolist():
            adjust, middle, strength = self.adjustments[i]
            adjust(image, uniform(generator, middle - strength, middle + strength))
        return sample.replace(image=as_bytes(image))


@TRANSFORMS.register("photometric_distortion")
class PhotometricDistortion(ClassyTransform):
    """SSD's distortion, as mmsegmentation has it: brightness, contrast, saturation and hue, each in half of the cases.

    `brightness` is added, from -x to x grey levels; `contrast` multiplies the values, before the colours change or
    after, with equal chances; `saturation` multiplies that of hue, saturation and value, and `hue` shifts it from -x to
    x turns of the colour wheel. Values are cut off at 0 and 255 after each.

    Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016.

    Args:
        brightness: Up to so many grey levels are added or taken away.
        contrast: The range of a factor of all values, before the colours change or after.
        saturation: The range of a factor of the saturation.
        hue: The largest shift in turns of the colour wheel, 0 to 0.5.
    """

    keeps_size = True
    keeps_type = True
    takes_flags = True
    needs_color = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        brightness: Annotated[float, Field(ge=0, le=255)] = 32.0,
        contrast: tuple[Factor, Factor] = (0.5, 1.5),
        saturation: tuple[Factor, Factor] = (0.5, 1.5),
        hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1,
    ) -> None:
        super().__init__(ignore_index)
        self.brightness, self.hue = brightness, hue
        self.contrast = in_order("contrast", contrast)
        self.saturation = in_order("saturation", saturation)

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        image = color_values(sample, "photometric_distortion")

        def sometimes(low: float, high: float, otherwise: float) -> float:
            return uniform(generator, low, high) if randint(generator, 0, 1) else otherwise

        added = sometimes(-self.brightness, self.brightness, 0.0)
        early = randint(generator, 0, 1) == 1
        contrast = sometimes(*self.contrast, 1.0)
        saturation = sometimes(*self.saturation, 1.0)
        turns = sometimes(-self.hue, self.hue, 0.0)
        if added:
            image.add_(added).clamp_(0, 255)
        if early and contrast != 1:
            adjust_brightness(image, contrast)
        if turns or saturation != 1:
            adjust_hue_and_saturation(image, turns, saturation)
        if not early and contrast != 1:
            adjust_brightness(image, contrast)
        return sample.replace(image=as_bytes(image))


@TRANSFORMS.register("lighting")
class Lighting(ClassyTransform):
    """AlexNet's noise of the light: adds ImageNet's principal colours times normal numbers of deviation `std`.

    Source: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012; the numbers
    are those that facebook's fb.resnet.torch published.

    Args:
        std: The standard deviation of the multiples.
    """

    keeps_size = True
    keeps_type = True
    takes_flags = True
    needs_color = True

    VALUES = (0.2175, 0.0188, 0.0045)
    VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

    def __init__(self, ignore_index: int = 255, *, std: Factor = 0.1) -> None:
        super().__init__(ignore_index)
        self.std = std
        self.colors = 255 * torch.tensor(self.VECTORS) * torch.tensor(self.VALUES)

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        image = color_values(sample, "lighting")
        added = self.colors @ (self.std * torch.randn(3, generator=generator))
        return sample.replace(image=as_bytes(image.add_(added[:, None, None]).clamp_(0, 255)))


@TRANSFORMS.register("gaussian_blur")
class GaussianBlur(ClassyTransform):
    """Blurs with a random standard deviation in pixels, with a probability.

    Args:
        sigma: The range of the standard deviation in pixels.
        probability: Of blurring at all.
    """

    keeps_size = True
    keeps_type = True
    takes_flags = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        sigma: tuple[Annotated[float, Field(gt=0, le=100)], Annotated[float, Field(gt=0, le=100)]] = (0.1, 2.0),
        probability: Share = 0.5,
    ) -> None:
        super().__init__(ignore_index)
        self.sigma = in_order("sigma", sigma)
        self.probability = probability

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        if uniform(generator, 0, 1) >= self.probability:
            return sample
        sigma = uniform(generator, *self.sigma)
        image = blurred(sample.image.float(), sigma)
        if not sample.image.is_floating_point():
            image.round_()
        return sample.replace(image=image.to(sample.image.dtype))


@TRANSFORMS.register("normalize")
class Normalize(ClassyTransform):
    """Makes the image floating point: `(image / 255 - mean) / std`, ImageNet's by default; uint16 is divided by 65535.

    Seldom needed: the task does the same on the device, where it is faster and a quarter of the bytes travel.

    Not together with the task's own `normalize`, after `color_jitter`, and with the same values in `train` and `val`.

    Args:
        mean: One per channel.
        std: One per channel.
    """

    keeps_size = True
    takes_flags = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[Annotated[float, Field(gt=0)], ...] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__(ignore_index)
        if len(mean) != len(std):
            raise ConfigError("mean", f"found {len(mean)} means and {len(std)} standard deviations")
        self.normalize = NormalizeConfig(mean=mean, std=std)
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)

    def refusal_of_numbers(self) -> str:
        return "divides by 255; leave it out, and give the task a `normalize` in the unit of the images"

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        if sample.image.is_floating_point():
            raise ConfigError(f"{sample.name}: normalised already; use the transform 'normalize' once")
        if len(sample.image) != len(self.mean):
            raise ConfigError(
                f"{sample.name}: has {len(sample.image)} channels; 'normalize' has {len(self.mean)} means"
            )
        largest = 65535 if sample.image.dtype == torch.uint16 else 255
        return sample.replace(image=(sample.image / largest - self.mean) / self.std)
