"""Images reach the network scaled, centred and divided, once."""

from __future__ import annotations

import pytest
import torch

from classyseg.config import ConfigError
from classyseg.layers import ImageNormalizer, NormalizeConfig


def test_uint8_images_are_scaled_centred_and_divided() -> None:
    normalizer = ImageNormalizer(NormalizeConfig(mean=(0.0, 0.5, 0.2), std=(1.0, 0.5, 0.1)))
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    expected = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    torch.testing.assert_close(normalizer(image), expected, rtol=0, atol=1e-6)


def test_the_default_is_imagenets() -> None:
    image = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = (image / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    torch.testing.assert_close(ImageNormalizer(NormalizeConfig())(image), expected, rtol=0, atol=1e-6)


def test_images_in_floating_point_pass_as_they_are() -> None:
    image = torch.rand(1, 3, 4, 4)
    assert ImageNormalizer(NormalizeConfig())(image) is image


def test_another_number_of_channels_is_an_error_that_says_both() -> None:
    with pytest.raises(ConfigError, match=r"images of 1 channels and 3 means"):
        ImageNormalizer(NormalizeConfig())(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))


def test_means_and_deviations_must_be_as_many() -> None:
    with pytest.raises(ConfigError, match=r"normalize: found 1 means and 3 standard deviations"):
        ImageNormalizer(NormalizeConfig(mean=(0.5,)))


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_a_deviation_is_positive(std: float) -> None:
    with pytest.raises(ValueError, match="std"):
        NormalizeConfig(mean=(0.5,), std=(std,))


def test_the_normalizer_adds_nothing_to_a_state_dict() -> None:
    assert ImageNormalizer(NormalizeConfig()).state_dict() == {}
