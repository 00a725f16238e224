"""DeepLabV3+: atrous spatial pyramid pooling, and a decoder that sees a fine block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.heads.classy_head import ASPP_RULES, CONV_MODULE, ClassyHead, HeadKeys, ordered_blocks
from classyseg.layers import ASPP, ConvNormAct, NormConfig, build_dropout, resize_logits, separable_conv
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo


@HEADS.register("deeplabv3plus")
class DeepLabV3PlusHead(ClassyHead):
    """ASPP over the deeper block, resized and joined with `low_channels` of the shallower one, two 3x3 convolutions.

    Reads two blocks, shallow to deep: those at the strides 4 and 16 (or 8) in the paper, such as `blocks: [stage1,
    stage4]` of a ResNet with `output_stride: 16`.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018.

    Args:
        channels: Of each branch and of the decoder.
        low_channels: To which the shallower block is brought.
        rates: As for `deeplabv3`.
        separable: Each 3x3 convolution as a depthwise and a pointwise one.
        dropout: Before the classifier.
        drop_channels: Dropout drops whole channels, as mmsegmentation does.
        projection_kernel: Of the projection behind the branches: 1, or 3 as in mmsegmentation.
        norm_image: A norm in the branch of the image's mean; `batch` then needs two images at once.
    """

    shallow_to_deep = True

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 256,
        low_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 48,
        rates: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_CHANNELS)], ...], Field(min_length=1)] | None = None,
        separable: bool = False,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        drop_channels: bool = False,
        projection_kernel: Literal[1, 3] = 1,
        norm_image: bool = False,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        low, high = ordered_blocks(blocks, "deeplabv3plus", 2)
        if rates is None:
            rates = (6, 12, 18) if high.stride >= 16 else (12, 24, 36)
        self.aspp = ASPP(
            high.channels,
            channels,
            rates,
            0.0,
            norm,
            separable=separable,
            norm_image=norm_image,
            projection_kernel=projection_kernel,
        )
        self.low = ConvNormAct(low.channels, low_channels, kernel=1, norm=norm)
        conv = separable_conv if separable else ConvNormAct
        self.decoder = nn.Sequential(
            conv(channels + low_channels, channels, norm=norm), conv(channels, channels, norm=norm)
        )
        self.dropout = build_dropout(dropout, drop_channels)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def mmsegmentation_keys(self) -> HeadKeys:
        return HeadKeys(
            (
                (r"^aspp\.branches\.(\d+)\.0\.(?=\d)", r"aspp_modules.\1.depthwise_conv."),
                (r"^aspp\.branches\.(\d+)\.1\.(?=\d)", r"aspp_modules.\1.pointwise_conv."),
                (r"^decoder\.(\d)\.0\.(?=\d)", r"sep_bottleneck.\1.depthwise_conv."),
                (r"^decoder\.(\d)\.1\.(?=\d)", r"sep_bottleneck.\1.pointwise_conv."),
                (r"^low\.", "c1_bottleneck."),
                *ASPP_RULES,
                *CONV_MODULE,
            ),
            tensor=self.aspp.from_image_first,
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        low, high = features
        x = torch.cat([resize_logits(self.aspp(high), low.shape[2:]), self.low(low)], 1)
        return self.classifier(self.dropout(self.decoder(x)))
