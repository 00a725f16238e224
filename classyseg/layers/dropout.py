"""Dropout of single values or of whole channels, by one option that heads share."""

from __future__ import annotations

from torch import nn


def build_dropout(share: float, drop_channels: bool) -> nn.Module:
    """Dropout of `share` of the values of maps (N, C, H, W); with `drop_channels` of that share of the channels."""
    return nn.Dropout2d(share) if drop_channels else nn.Dropout(share)
