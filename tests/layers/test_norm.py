"""Norms by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from classyseg.config import ConfigError
from classyseg.layers import NormConfig, build_norm


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
