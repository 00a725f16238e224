"""Norms by name, and images made ready on the device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from classyseg.config import ConfigError
from classyseg.layers import ImageNormalizer, NormalizeConfig, NormConfig, build_norm


@pytest.mark.parametrize(
    ("name", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), ("instance", nn.InstanceNorm2d)]
)
def test_a_norm_is_built_by_name(name: str, kind: type[nn.Module]) -> None:
    norm = build_norm(NormConfig(name=name, groups=4, eps=1e-3), 8)  # type: ignore[arg-type]
    assert isinstance(norm, kind)
    assert norm.eps == 1e-3
    assert norm(torch.randn(2, 8, 3, 3)).shape == (2, 8, 3, 3)


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ConfigError, match=r"norm.groups: found 32, which does not divide 48 channels"):
        build_norm(NormConfig(name="group"), 48)


def test_uint8_images_are_scaled_shifted_and_divided() -> None:
    normalizer = ImageNormalizer(NormalizeConfig(mean=(0.5, 0.0), std=(0.5, 0.25)))
    found = normalizer(torch.full((1, 2, 1, 1), 255, dtype=torch.uint8))
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 4.0]))


def test_images_in_floating_point_pass_as_they_are() -> None:
    image = torch.randn(1, 3, 2, 2)
    assert ImageNormalizer(NormalizeConfig())(image) is image


def test_another_number_of_channels_is_an_error() -> None:
    with pytest.raises(ConfigError, match="found images of 4 channels and 3 means"):
        ImageNormalizer(NormalizeConfig())(torch.zeros(1, 4, 2, 2, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="found 2 means and 3 standard deviations"):
        ImageNormalizer(NormalizeConfig(mean=(0.5, 0.5)))
