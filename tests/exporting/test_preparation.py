"""The transforms in a graph give what the transforms give, to the bit, for any size."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from classyseg.errors import ConfigError
from classyseg.exporting.preparation import steps_of
from classyseg.inference import Preparation

OF_MAPS: list[list[Any]] = [
    [{"name": "resize", "size": [60, 90]}],
    [{"name": "resize", "shorter_side": 70}],
    [{"name": "resize", "shorter_side": 50, "longer_side": 64}, {"name": "pad", "multiple": 32}],
    [{"name": "resize", "fit": [80, 100], "interpolation": "bicubic"}, {"name": "pad", "size": [80, 100], "fill": 7}],
    [{"name": "resize_center_crop", "crop_size": 48}, {"name": "horizontal_flip"}],
    [{"name": "pad", "multiple": 14}],
]
OF_IMAGES: list[list[Any]] = [
    [{"name": "resize", "shorter_side": 64, "interpolation": "bicubic"}, {"name": "center_crop", "size": [56, 80]}],
    [
        {"name": "torchvision", "transform": "Resize", "arguments": {"size": 50}},
        {"name": "center_crop", "size": [44, 61], "fill": 3},
    ],
]


@pytest.mark.parametrize(
    ("transforms", "whole_images"),
    [*((each, False) for each in OF_MAPS), *((each, True) for each in OF_IMAGES)],
    ids=str,
)
def test_steps_give_the_transforms_own_bytes_at_every_size(transforms: list[Any], whole_images: bool) -> None:
    preparation = Preparation(transforms)
    steps = steps_of(preparation, whole_images=whole_images)
    sizes = random.Random(0)
    for _ in range(15):
        image = torch.randint(0, 256, (3, sizes.randint(16, 260), sizes.randint(16, 260)), dtype=torch.uint8)
        found = image[None]
        for step in steps:
            found, _ = step(found)
        expected = preparation.apply(image, whole_images=whole_images).image
        assert torch.equal(found[0], expected), tuple(image.shape)


def test_a_size_that_lies_in_the_middle_is_rounded_as_the_transform_does() -> None:
    """393 * (500 / 24) is 8187.5, and a little less in floating point."""
    preparation = Preparation([{"name": "resize", "shorter_side": 500}])
    (step,) = steps_of(preparation, whole_images=False)
    image = torch.zeros(3, 24, 393, dtype=torch.uint8)
    assert step(image[None])[0].shape[2:] == preparation.apply(image).image.shape[1:] == (500, 8187)


@pytest.mark.parametrize(
    ("transforms", "name"),
    [
        ([{"name": "gaussian_blur"}], "gaussian_blur"),
        ([{"name": "torchvision", "transform": "Grayscale", "arguments": {"num_output_channels": 3}}], "torchvision"),
        ([{"name": "pad", "multiple": 8}, {"name": "resize", "size": [40, 40]}], "resize"),
    ],
)
def test_a_transform_without_a_form_is_refused_by_name(transforms: list[Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'.*--input-kind prepared"):
        steps_of(Preparation(transforms), whole_images=False)
