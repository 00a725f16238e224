"""The fully convolutional head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.heads.classy_head import ClassyHead
from classyseg.layers import ConvNormAct, NormConfig, resize_logits
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo


@HEADS.register("fcn")
class FCNHead(ClassyHead):
    """A 3x3 convolution and a classifier; several blocks are brought to the finest one's size and concatenated.

    `channels` between the two is a quarter of the (deepest) block's by default.

    Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015; the concatenation is
    that of Sun et al., "High-Resolution Representations for Labeling Pixels and Regions", arXiv 1904.04514.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        channels = channels or max(1, blocks[-1].channels // 4)
        self.finest = min(range(len(blocks)), key=lambda i: blocks[i].stride)
        self.conv = ConvNormAct(sum(block.channels for block in blocks), channels, norm=norm)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        size = features[self.finest].shape[2:]
        x = torch.cat([resize_logits(x, size) for x in features], 1) if len(features) > 1 else features[0]
        return self.classifier(self.dropout(self.conv(x)))
