"""Joint pyramid upsampling: a fine map with wide context, made from an undilated backbone's maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from classyseg.layers.conv import ConvNormAct
from classyseg.layers.norm import NormConfig, build_norm
from classyseg.layers.resize import resize_logits

DILATIONS = (1, 2, 4, 8)


class JPU(nn.Module):
    """Maps of several strides, finest first, to one (N, 4 * channels, h, w) of the finest one's size.

    Each map passes a 3x3 convolution to `channels` and is resized; side by side, they are read by four dilated
    separable convolutions to `channels` each (depthwise with a norm, pointwise with a norm and a ReLU).

    Source: Wu et al., "FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation", arXiv
    1903.11816.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, norm: NormConfig) -> None:
        super().__init__()
        self.out_channels = channels * len(DILATIONS)
        self.convs = nn.ModuleList(ConvNormAct(width, channels, norm=norm) for width in in_channels)
        width = channels * len(in_channels)
        self.dilated = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width, bias=False),
                build_norm(norm, width),
                ConvNormAct(width, channels, kernel=1, norm=norm),
            )
            for dilation in DILATIONS
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        x = torch.cat([resize_logits(conv(x), size) for conv, x in zip(self.convs, features, strict=True)], 1)
        return torch.cat([dilated(x) for dilated in self.dilated], 1)
