"""Atrous spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from classyseg.layers.conv import ConvNormAct, separable_conv
from classyseg.layers.dropout import build_dropout
from classyseg.layers.norm import NormConfig
from classyseg.layers.pool import ImageMean


class ASPP(nn.Module):
    """A 1x1 convolution, a dilated 3x3 one per rate, and the image's mean, concatenated and projected.

    (N, in_channels, H, W) to (N, channels, H, W). `separable` makes each dilated convolution a depthwise and a
    pointwise one. `dropout` follows the projection; with `drop_channels` it drops whole channels. The image's mean has
    a norm only with `norm_image` (see `ImageMean`). The projection is a 1x1 convolution, or one of `projection_kernel`.

    Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv 1706.05587; separable:
    Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        rates: Sequence[int],
        dropout: float,
        norm: NormConfig,
        *,
        separable: bool = False,
        drop_channels: bool = False,
        norm_image: bool = False,
        projection_kernel: int = 1,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNormAct(in_channels, channels, kernel=1, norm=norm)])
        conv = separable_conv if separable else ConvNormAct
        self.branches.extend(conv(in_channels, channels, dilation=rate, norm=norm) for rate in rates)
        self.image_branch = ImageMean(in_channels, channels, norm if norm_image else None)
        self.project = ConvNormAct(channels * (len(rates) + 2), channels, kernel=projection_kernel, norm=norm)
        self.dropout = build_dropout(dropout, drop_channels)

    def from_image_first(self, key: str, tensor: Tensor) -> Tensor:
        """The `tensor` of a projection whose first input is the image's mean, as in mmsegmentation; here it is last."""
        if not key.endswith("aspp.project.0.weight"):
            return tensor
        first = tensor.shape[1] // (len(self.branches) + 1)
        return torch.cat([tensor[:, first:], tensor[:, :first]], 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [*(branch(x) for branch in self.branches), self.image_branch(x)]
        return self.dropout(self.project(torch.cat(maps, 1)))
