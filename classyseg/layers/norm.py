"""Normalisation layers by name, as one option that backbones and heads share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict
from torch import nn

from classyseg.config import ConfigError, ConfigRecord


class NormConfig(ConfigRecord):
    """Which normalisation follows each convolution.

    `batch` depends on the other images of the batch, in several processes on those that `synchronize_batch_norm`
    joins; `group` and `instance` do not. `groups` is used by `group` alone; `momentum` (torch's: the share of the
    new value) by `batch`.
    """

    name: Literal["batch", "group", "instance"] = "batch"
    groups: Annotated[int, Strict(), Field(ge=1)] = 32
    eps: Annotated[float, Strict(), Field(gt=0)] = 1e-5
    momentum: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.1


def build_norm(norm: NormConfig, channels: int, *, dims: Literal[1, 2] = 2) -> nn.Module:
    """The layer that `norm` describes for feature maps (N, channels, H, W), or with one of `dims`, (N, channels, L).

    Raises: `ConfigError` when `channels` cannot be split into `norm.groups`.
    """
    if norm.name == "batch":
        batch_norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
        return batch_norm(channels, eps=norm.eps, momentum=norm.momentum)
    if norm.name == "instance":
        instance_norm = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm1d
        return instance_norm(channels, eps=norm.eps, affine=True)
    if channels % norm.groups:
        raise ConfigError(f"norm.groups: found {norm.groups}, which does not divide {channels} channels")
    return nn.GroupNorm(norm.groups, channels, eps=norm.eps)
