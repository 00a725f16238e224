"""SegFormer's all-MLP decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.heads.classy_head import CONV_MODULE, ClassyHead, HeadKeys
from classyseg.heads.concatenation import Concatenation
from classyseg.layers import ConvNormAct, NormConfig, build_dropout
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo


@HEADS.register("segformer")
class SegFormerHead(ClassyHead):
    """A linear layer at each position of each block; all are resized to the finest one's size, fused and classified.

    Reads one block or more, four in the paper. A linear layer of every position is a 1x1 convolution.

    Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", NeurIPS
    2021.

    Args:
        channels: Of each block and of their fusion: 256 in SegFormer-B0 and B1, 768 in B2 to B5.
        dropout: Before the classifier.
        drop_channels: Dropout drops whole channels, as mmsegmentation does.
        norm_blocks: A norm and a ReLU follow the linear layer of each block, which then has no bias: mmsegmentation has
            them, the paper has not.
        norm: Of the fusion, and of the blocks. See key `norm`.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 256,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        drop_channels: bool = False,
        norm_blocks: bool = False,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.linears = nn.ModuleList(
            ConvNormAct(block.channels, channels, kernel=1, norm=norm)
            if norm_blocks
            else nn.Conv2d(block.channels, channels, kernel_size=1)
            for block in blocks
        )
        self.concatenation = Concatenation(blocks)
        self.fuse = ConvNormAct(channels * len(blocks), channels, kernel=1, norm=norm)
        self.dropout = build_dropout(dropout, drop_channels)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def mmsegmentation_keys(self) -> HeadKeys | None:
        if not isinstance(self.linears[0], ConvNormAct):
            return None
        return HeadKeys(((r"^linears\.", "convs."), (r"^fuse\.", "fusion_conv."), *CONV_MODULE))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = self.concatenation([linear(x) for linear, x in zip(self.linears, features, strict=True)])
        return self.classifier(self.dropout(self.fuse(x)))
