"""Norms by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from classyseg.config import ConfigError
from classyseg.layers import NormConfig, build_norm


@pytest.mark.parametrize(
    ("name", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), ("instance", nn.GroupNorm)]
)
def test_a_norm_is_built_by_name(name: str, kind: type[nn.Module]) -> None:
    norm = build_norm(NormConfig(name=name, groups=4, eps=1e-3), 8)  # type: ignore[arg-type]
    assert isinstance(norm, kind)
    assert norm.eps == 1e-3
    assert norm(torch.randn(2, 8, 3, 3)).shape == (2, 8, 3, 3)


def test_an_instance_norm_has_torchs_values_and_keys() -> None:
    norm, theirs = build_norm(NormConfig(name="instance"), 6), nn.InstanceNorm2d(6, affine=True)
    assert list(norm.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(norm(x), theirs(x))


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (48, 16), (24, 8), (19, 1)])
def test_groups_by_default_are_as_many_as_divide_32_and_the_channels(channels: int, groups: int) -> None:
    norm = build_norm(NormConfig(name="group"), channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


def test_groups_that_are_asked_for_must_divide_the_channels() -> None:
    with pytest.raises(ConfigError, match=r"norm.groups.*32.*48 channels"):
        build_norm(NormConfig(name="group", groups=32), 48)


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 8, 1, 1), (1, 8, 1)])
@pytest.mark.parametrize("name", ["group", "instance"])
def test_a_group_of_one_value_passes_with_weight_and_bias(name: str, shape: tuple[int, ...]) -> None:
    norm = build_norm(NormConfig(name=name), 8)  # type: ignore[arg-type]
    nn.init.constant_(norm.weight, 3)  # type: ignore[arg-type]
    nn.init.constant_(norm.bias, 1)  # type: ignore[arg-type]
    x = torch.randn(shape)
    torch.testing.assert_close(norm(x), 3 * x + 1)
