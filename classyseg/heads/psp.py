"""PSPNet: pyramid pooling and a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.heads.classy_head import CONV_MODULE, ClassyHead, HeadKeys, only_block
from classyseg.layers import ALIGN_CORNERS, ConvNormAct, NormConfig, PyramidPooling, build_dropout
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo


@HEADS.register("psp")
class PSPHead(ClassyHead):
    """Pyramid pooling, a 3x3 convolution and a classifier over one block.

    Source: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.

    Args:
        channels: Of each level and before the classifier; null: a quarter of the block's.
        bins: Cells along each side of the grids.
        dropout: Before the classifier.
        drop_channels: Dropout drops whole channels, as mmsegmentation does.
        norm_image: The level of whole images has a norm, too; batch norm then needs two images at once.
        align_corners: How levels are resized; true for weights that were trained so, such as PyTorch-Encoding's.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] | None = None,
        bins: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_CHANNELS)], ...], Field(min_length=1)] = (1, 2, 3, 6),
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        drop_channels: bool = False,
        norm_image: bool = False,
        align_corners: bool = ALIGN_CORNERS,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        block = only_block(blocks, "psp")
        channels = channels or max(1, block.channels // 4)
        self.pyramid = PyramidPooling(
            block.channels, channels, bins=bins, norm=norm, norm_image=norm_image, align_corners=align_corners
        )
        self.conv = ConvNormAct(self.pyramid.out_channels, channels, norm=norm)
        self.dropout = build_dropout(dropout, drop_channels)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def pytorch_encoding_keys(self) -> HeadKeys:
        return HeadKeys(
            (
                *((rf"^pyramid\.branches\.{i}\.", f"conv5.0.conv{i + 1}.") for i in range(len(self.pyramid.bins))),
                (r"^conv\.0\.", "conv5.1."),
                (r"^conv\.1\.", "conv5.2."),
                (r"^classifier\.", "conv5.5."),
            )
        )

    def mmsegmentation_keys(self) -> HeadKeys:
        return HeadKeys(
            ((r"^pyramid\.branches\.(\d+)\.", r"psp_modules.\1.1."), (r"^conv\.", "bottleneck."), *CONV_MODULE)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        (x,) = features
        return self.classifier(self.dropout(self.conv(self.pyramid(x))))
