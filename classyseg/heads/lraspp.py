"""LR-ASPP: the light head of MobileNetV3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.heads.classy_head import ClassyHead, ordered_blocks
from classyseg.layers import ConvNormAct, NormConfig, resize_logits
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo


@HEADS.register("lraspp")
class LRASPPHead(ClassyHead):
    """The deeper block, weighted by a sigmoid of its mean, classified and added to the shallower block's classes.

    Reads two blocks, shallow to deep; made for strides 8 and 16. The mean is over the whole map, as in torchvision; the
    paper pools windows of 49 x 49.

    Source: Howard et al., "Searching for MobileNetV3", ICCV 2019.

    Args:
        channels: Of the deeper block's part.
    """

    shallow_to_deep = True

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 128,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        low, high = ordered_blocks(blocks, "lraspp", 2)
        self.conv = ConvNormAct(high.channels, channels, kernel=1, norm=norm)
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(high.channels, channels, kernel_size=1, bias=False), nn.Sigmoid()
        )
        self.low_classifier = nn.Conv2d(low.channels, num_classes, kernel_size=1)
        self.high_classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        low, high = features
        x = self.conv(high) * self.scale(high)
        x = self.high_classifier(resize_logits(x, low.shape[2:]))
        return x + self.low_classifier(low)
