"""AutoAugment and RandAugment: lists of operations. Those that move pixels move the mask in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from classyseg.errors import ConfigError
from classyseg.registry import TRANSFORMS
from classyseg.rng import randint, uniform
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import ClassyTransform, Region
from classyseg.transforms.color import require_color
from classyseg.transforms.pixels import Grey, Matrix, require_aligned, warp_sample

Step = tuple[str, float, int]
"""An operation, how probable it is, and its strength from 0 to 9."""

# fmt: off
POLICIES: dict[str, tuple[tuple[Step, Step], ...]] = {
    "imagenet": (
        (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
        (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
        (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
        (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
        (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
        (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
        (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
        (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
        (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
        (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
        (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
        (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
        (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
        (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
        (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
        (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
        (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
        (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
        (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    ),
    "cifar10": (
        (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
        (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
        (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
        (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
        (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
        (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
        (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
        (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
        (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
        (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
        (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
        (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
        (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
        (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
        (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
        (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
        (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
        (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
        (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
        (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
        (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
        (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
        (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
    ),
    "svhn": (
        (("ShearX", 0.9, 4), ("Invert", 0.2, 0)),
        (("ShearY", 0.9, 8), ("Invert", 0.7, 0)),
        (("Equalize", 0.6, 0), ("Solarize", 0.6, 6)),
        (("Invert", 0.9, 0), ("Equalize", 0.6, 0)),
        (("Equalize", 0.6, 0), ("Rotate", 0.9, 3)),
        (("ShearX", 0.9, 4), ("AutoContrast", 0.8, 0)),
        (("ShearY", 0.9, 8), ("Invert", 0.4, 0)),
        (("ShearY", 0.9, 5), ("Solarize", 0.2, 6)),
        (("Invert", 0.9, 0), ("AutoContrast", 0.8, 0)),
        (("Equalize", 0.6, 0), ("Rotate", 0.9, 3)),
        (("ShearX", 0.9, 4), ("Solarize", 0.3, 3)),
        (("ShearY", 0.8, 8), ("Invert", 0.7, 0)),
        (("Equalize", 0.9, 0), ("TranslateY", 0.6, 6)),
        (("Invert", 0.9, 0), ("Equalize", 0.6, 0)),
        (("Contrast", 0.3, 3), ("Rotate", 0.8, 4)),
        (("Invert", 0.8, 0), ("TranslateY", 0.0, 2)),
        (("ShearY", 0.7, 6), ("Solarize", 0.4, 8)),
        (("Invert", 0.6, 0), ("Rotate", 0.8, 4)),
        (("ShearY", 0.3, 7), ("TranslateX", 0.9, 3)),
        (("ShearX", 0.1, 6), ("Invert", 0.6, 0)),
        (("Solarize", 0.7, 2), ("TranslateY", 0.6, 7)),
        (("ShearY", 0.8, 4), ("Invert", 0.8, 0)),
        (("ShearX", 0.7, 9), ("TranslateY", 0.8, 3)),
        (("ShearY", 0.8, 5), ("AutoContrast", 0.7, 0)),
        (("ShearX", 0.7, 2), ("Invert", 0.1, 0)),
    ),
}
# fmt: on
POLICY_LEVELS = 10


def _functional() -> Any:
    from torchvision.transforms.v2 import functional  # whose import takes a second

    return functional


VALUES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "AutoContrast": lambda image, level: _functional().autocontrast(image),
    "Brightness": lambda image, level: _functional().adjust_brightness(image, 1 + level),
    "Color": lambda image, level: _functional().adjust_saturation(image, 1 + level),
    "Contrast": lambda image, level: _functional().adjust_contrast(image, 1 + level),
    "Equalize": lambda image, level: _functional().equalize(image),
    "Identity": lambda image, level: image,
    "Invert": lambda image, level: _functional().invert(image),
    "Posterize": lambda image, level: _functional().posterize(image, int(level)),
    "Sharpness": lambda image, level: _functional().adjust_sharpness(image, 1 + level),
    "Solarize": lambda image, level: _functional().solarize(image, 255 * level),
}
MOVES: dict[str, Callable[[float, int, int], tuple[Matrix, tuple[float, float]]]] = {
    "Rotate": lambda level, height, width: (_rotation(level), (0.0, 0.0)),
    "ShearX": lambda level, height, width: ((1.0, level, 0.0, 1.0), (level * height / 2, 0.0)),
    "ShearY": lambda level, height, width: ((1.0, 0.0, level, 1.0), (0.0, level * width / 2)),
    "TranslateX": lambda level, height, width: ((1.0, 0.0, 0.0, 1.0), (-int(level * width), 0.0)),
    "TranslateY": lambda level, height, width: ((1.0, 0.0, 0.0, 1.0), (0.0, -int(level * height))),
}
"""A function of a strength and the image's size that gives the matrix and the shift for `warp_sample`."""

SIGNED = {
    "Brightness": 0.9,
    "Color": 0.9,
    "Contrast": 0.9,
    "Rotate": 30.0,
    "Sharpness": 0.9,
    "ShearX": 0.3,
    "ShearY": 0.3,
    "TranslateX": 150 / 331,
    "TranslateY": 150 / 331,
}
"""The largest strength of operations that have two directions; one is drawn."""

RANDOM_OPERATIONS = tuple(sorted({*VALUES, *MOVES} - {"Invert"}))


def _rotation(degrees: float) -> Matrix:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cos, -sin, sin, cos


def strength(operation: str, share: float) -> float:
    """The strength at `share`, 0 to 1, of an operation's range: in degrees, shares of the image, bits, ..."""
    if operation == "Posterize":
        return round(8 - 4 * share)
    if operation == "Solarize":
        return 1 - share
    return SIGNED.get(operation, 0.0) * share


def apply_operation(sample: Sample, operation: str, level: float, fill: int, ignore_index: int) -> Sample:
    """`sample` after one operation of strength `level`; what comes from outside is `fill` and ignored."""
    if operation in VALUES:
        return sample.replace(image=VALUES[operation](sample.image, level))
    height, width = sample.target.shape[-2:]
    return warp_sample(sample, *MOVES[operation](level, height, width), fill, ignore_index)


class _Policy(ClassyTransform):
    keeps_size = True
    keeps_type = True
    takes_flags = True
    needs_color = True

    def __init__(self, ignore_index: int, name: str, fill: int) -> None:
        super().__init__(ignore_index)
        self.name, self.fill = name, fill

    def region_of(self, size: tuple[int, int], after: tuple[int, int]) -> Region | None:
        return None

    def check(self, sample: Sample) -> None:
        require_aligned(sample, self.name)
        require_color(sample, self.name)

    def operate(self, sample: Sample, operation: str, share: float, generator: torch.Generator) -> Sample:
        level = strength(operation, share)
        if operation in SIGNED and randint(generator, 0, 1):
            level = -level
        return apply_operation(sample, operation, level, self.fill, self.ignore_index)


@TRANSFORMS.register("auto_augment")
class AutoAugment(_Policy):
    """One of 25 pairs of operations, each with its own probability and strength, which a search found.

    Turns, shears and shifts move the mask alike; what they bring from outside is ignored.

    Source: Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019.

    Args:
        policy: On what the pairs were searched: or `cifar10`, `svhn`.
        fill: What comes from outside, in the image.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet",
        fill: Grey = 128,
    ) -> None:
        super().__init__(ignore_index, "auto_augment", fill)
        self.policy = POLICIES[policy]

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        self.check(sample)
        for operation, probability, level in self.policy[randint(generator, 0, len(self.policy) - 1)]:
            if uniform(generator, 0, 1) < probability:
                sample = self.operate(sample, operation, level / (POLICY_LEVELS - 1), generator)
        return sample


@TRANSFORMS.register("rand_augment")
class RandAugment(_Policy):
    """`num_operations` of 14 operations, drawn anew for each image, all of one strength.

    Source: Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", 2020.

    Args:
        num_operations: How many.
        magnitude: The strength, from 0 to `num_levels` - 1.
        num_levels: What the strength counts in.
        fill: What comes from outside, in the image.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        num_operations: Annotated[int, Field(ge=0, le=100)] = 2,
        magnitude: Annotated[int, Field(ge=0)] = 9,
        num_levels: Annotated[int, Field(ge=2, le=10_000)] = 31,
        fill: Grey = 128,
    ) -> None:
        super().__init__(ignore_index, "rand_augment", fill)
        if magnitude >= num_levels:
            raise ConfigError("magnitude", f"found {magnitude}; accepted are 0 to {num_levels - 1} (num_levels - 1)")
        self.num_operations = num_operations
        self.share = magnitude / (num_levels - 1)

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        self.check(sample)
        for _ in range(self.num_operations):
            operation = RANDOM_OPERATIONS[randint(generator, 0, len(RANDOM_OPERATIONS) - 1)]
            sample = self.operate(sample, operation, self.share, generator)
        return sample
