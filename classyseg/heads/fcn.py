"""The fully convolutional head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.heads.classy_head import ClassyHead, HeadKeys, refuse_unread
from classyseg.heads.concatenation import Concatenation
from classyseg.layers import ConvNormAct, ImageMean, NormConfig
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo


@HEADS.register("fcn")
class FCNHead(ClassyHead):
    """A 3x3 convolution and a classifier; several blocks are brought to the finest one's size and concatenated.

    Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015; the concatenation is that
    of Sun et al., "High-Resolution Representations for Labeling Pixels and Regions", arXiv 1904.04514.

    Args:
        channels: Between the two; null: a quarter of the last block's.
        with_global: The classifier also reads the image's mean, through a 1x1 convolution.
        norm_image: That mean has a norm, too; batch norm then needs two images at once.
        dropout: Before the classifier.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] | None = None,
        with_global: bool = False,
        norm_image: bool = False,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        if not with_global:
            refuse_unread("with_global", norm_image=(norm_image, False))
        channels = channels or max(1, blocks[-1].channels // 4)
        self.concatenation = Concatenation(blocks)
        self.conv = ConvNormAct(self.concatenation.channels, channels, norm=norm)
        self.image_branch = ImageMean(channels, channels, norm if norm_image else None) if with_global else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(channels * (1 + with_global), num_classes, kernel_size=1)

    def pytorch_encoding_keys(self) -> HeadKeys:
        classifier = "conv5.4." if self.image_branch is None else "conv5.5."
        return HeadKeys(
            (
                (r"^conv\.", "conv5."),
                (r"^image_branch\.0\.", "conv5.3.1.gap.1."),
                (r"^image_branch\.1\.", "conv5.3.1.gap.2."),
                (r"^classifier\.", classifier),
            )
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = self.conv(self.concatenation(features))
        if self.image_branch is not None:
            x = torch.cat([x, self.image_branch(x)], 1)
        return self.classifier(self.dropout(x))
