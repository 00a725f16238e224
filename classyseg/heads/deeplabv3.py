"""DeepLabV3: atrous spatial pyramid pooling and a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.heads.classy_head import ClassyHead, only_block
from classyseg.layers import ConvNormAct, NormConfig
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo


class ASPP(nn.Module):
    """A 1x1 convolution, a dilated 3x3 one per rate, and the image's mean, concatenated and projected.

    (N, in_channels, h, w) to (N, channels, h, w). The image branch has a norm unless it is `batch`, which cannot
    estimate a variance from one value per channel when a process trains with a single image.
    """

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int], dropout: float, norm: NormConfig) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNormAct(in_channels, channels, kernel=1, norm=norm)])
        self.branches.extend(ConvNormAct(in_channels, channels, dilation=rate, norm=norm) for rate in rates)
        self.image_branch = nn.Sequential(nn.Conv2d(in_channels, channels, 1), nn.ReLU(inplace=True))
        self.project = ConvNormAct(channels * (len(rates) + 2), channels, kernel=1, norm=norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        image = self.image_branch(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.dropout(self.project(torch.cat([*(branch(x) for branch in self.branches), image], 1)))


@HEADS.register("deeplabv3")
class DeepLabV3Head(ClassyHead):
    """ASPP, a 3x3 convolution and a classifier over one block; made for backbones with `output_stride` 8 or 16.

    `rates` None means 6, 12, 18 at strides of 16 and above, and their doubles below, as in the paper.

    Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv 1706.05587.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1)] = 256,
        rates: tuple[Annotated[int, Field(ge=1)], ...] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        block = only_block(blocks, "deeplabv3")
        if rates is None:
            rates = (6, 12, 18) if block.stride >= 16 else (12, 24, 36)
        self.aspp = ASPP(block.channels, channels, rates, dropout, norm)
        self.conv = ConvNormAct(channels, channels, norm=norm)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        (x,) = features
        return self.classifier(self.conv(self.aspp(x)))
