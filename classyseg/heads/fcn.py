"""The fully convolutional head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS, MAX_DEPTH, MAX_SIDE
from classyseg.heads.classy_head import CONV_MODULE, ClassyHead, HeadKeys, refuse_unread
from classyseg.heads.concatenation import Concatenation
from classyseg.layers import ConvNormAct, ImageMean, NormConfig, build_dropout
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo


@HEADS.register("fcn")
class FCNHead(ClassyHead):
    """Convolutions and a classifier; several blocks are brought to the finest one's size and concatenated.

    Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015; the concatenation is that
    of Sun et al., "High-Resolution Representations for Labeling Pixels and Regions", arXiv 1904.04514.

    Args:
        channels: Of the convolutions; null: a quarter of the last block's.
        num_convs: How many convolutions; mmsegmentation's main heads have two.
        kernel: The side of their kernels.
        dilation: Of their kernels.
        concat_input: One more convolution reads what the first one reads and what the last one gives, side by side.
        with_global: The classifier also reads the image's mean, through a 1x1 convolution.
        norm_image: That mean has a norm, too; batch norm then needs two images at once.
        dropout: Before the classifier.
        drop_channels: Dropout drops whole channels, as mmsegmentation does.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] | None = None,
        num_convs: Annotated[int, Field(ge=1, le=MAX_DEPTH)] = 1,
        kernel: Literal[1, 3, 5, 7] = 3,
        dilation: Annotated[int, Field(ge=1, le=MAX_SIDE)] = 1,
        concat_input: bool = False,
        with_global: bool = False,
        norm_image: bool = False,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        drop_channels: bool = False,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        if not with_global:
            refuse_unread("with_global", norm_image=(norm_image, False))
        channels = channels or max(1, blocks[-1].channels // 4)
        self.concatenation = Concatenation(blocks)
        inputs = self.concatenation.channels
        self.conv = ConvNormAct(inputs, channels, kernel=kernel, dilation=dilation, norm=norm)
        self.more_convs = nn.Sequential(
            *(
                ConvNormAct(channels, channels, kernel=kernel, dilation=dilation, norm=norm)
                for _ in range(num_convs - 1)
            )
        )
        self.conv_joined = ConvNormAct(inputs + channels, channels, kernel=kernel, norm=norm) if concat_input else None
        self.image_branch = ImageMean(channels, channels, norm if norm_image else None) if with_global else None
        self.dropout = build_dropout(dropout, drop_channels)
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

    def mmsegmentation_keys(self) -> HeadKeys | None:
        if self.image_branch is not None:
            return None
        return HeadKeys(
            (
                (r"^conv\.", "convs.0."),
                *((rf"^more_convs\.{i}\.", f"convs.{i + 1}.") for i in range(len(self.more_convs))),
                (r"^conv_joined\.", "conv_cat."),
                *CONV_MODULE,
            )
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        joined = self.concatenation(features)
        x = self.more_convs(self.conv(joined))
        if self.conv_joined is not None:
            x = self.conv_joined(torch.cat([joined, x], 1))
        if self.image_branch is not None:
            x = torch.cat([x, self.image_branch(x)], 1)
        return self.classifier(self.dropout(x))
