"""Normalisation layers by name, as one option that backbones and heads share."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS, ConfigRecord, same_word
from classyseg.errors import ConfigError

NUM_GROUPS = 32


NAMES = {
    "batch": ("bn", "batch_norm", "batch_norm_2d", "bn2d", "sync_bn", "sync_batch_norm", "inplace_abn"),
    "group": ("gn", "group_norm", "ln", "layer_norm"),
    "instance": ("in", "instance_norm", "instance_norm_2d", "in2d"),
}
"""What other libraries call the norms."""


def _known_norm(name: object) -> object:
    """`name` as it is. Raises: pydantic's error for another library's name, with our name."""
    for ours, theirs in NAMES.items():
        if name != ours and same_word(name, (ours, *theirs)):
            more = "; runtime.sync_batch_norm joins the statistics of processes" if ours == "batch" else ""
            raise PydanticCustomError("foreign_norm", f"did you mean '{ours}'? Accepted: {', '.join(NAMES)}{more}")
    return name


class NormConfig(ConfigRecord):
    """Which normalisation follows each convolution.

    `batch` depends on the other images of the batch; in several processes, also on those that `synchronize_batch_norm`
    joins.

    Args:
        name: `batch`, `group` or `instance`. The latter two do not depend on the other images of a batch. A group of
            one value, as `instance` has in maps of 1x1 positions, passes with only weight and bias.
        groups: Of `group`; null: as many as divide both 32 and the channels, layer by layer.
        eps: Added to the variance.
        momentum: Of `batch`: the share of the new value in the running statistics.
    """

    name: Annotated[Literal["batch", "group", "instance"], BeforeValidator(_known_norm)] = "batch"
    groups: Annotated[int, Strict(), Field(ge=1, le=MAX_CHANNELS)] | None = None
    eps: Annotated[float, Strict(), Field(gt=0, le=1)] = 1e-5
    momentum: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.1


class GroupNorm(nn.GroupNorm):
    """torch's, except that a group of a single value, which has no variance, passes with only weight and bias.

    An instance norm has such groups in a map of 1x1 positions.
    """

    def forward(self, x: Tensor) -> Tensor:
        if math.prod(x.shape[1:]) > self.num_groups:
            return super().forward(x)
        shape = (-1, *[1] * (x.dim() - 2))
        return x * self.weight.view(shape) + self.bias.view(shape)


def build_norm(norm: NormConfig, channels: int, *, dims: Literal[1, 2] = 2) -> nn.Module:
    """The layer that `norm` describes, for feature maps (N, channels, H, W), or with `dims` 1 for (N, channels, L).

    Raises: `ConfigError` when `channels` cannot be split into the `norm.groups` that were asked for.
    """
    if norm.name == "batch":
        batch_norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
        return batch_norm(channels, eps=norm.eps, momentum=norm.momentum)
    if norm.name == "instance":
        return GroupNorm(channels, channels, eps=norm.eps)
    groups = norm.groups or math.gcd(channels, NUM_GROUPS)
    if channels % groups:
        raise ConfigError(
            "norm.groups", f"found {groups}, which does not divide {channels} channels; leave it out, for as many as do"
        )
    return GroupNorm(groups, channels, eps=norm.eps)
