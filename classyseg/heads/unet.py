"""U-Net's decoder over the blocks of any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.config import MAX_CHANNELS
from classyseg.errors import ConfigError
from classyseg.heads.classy_head import ClassyHead, ordered_blocks
from classyseg.layers import ConvNormAct, NormConfig, build_dropout
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]


@HEADS.register("unet")
class UNetHead(ClassyHead):
    """From deep to shallow: the map is resized to the next block and joined with it, then two 3x3 convolutions.

    Reads two blocks or more, shallow to deep, such as `blocks: [stem, stage1, stage2, stage3, stage4]` of a ResNet.

    Source: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015; norms,
    padding and nearest resizing are those of segmentation_models.pytorch.

    Args:
        channels: Of the steps from the deepest block on: one fewer than blocks. Each further number is a step to twice
            the size, without a block. null: 256, 128, 64, 32, ..., and 16 at the least.
        dropout: Before the classifier.
        drop_channels: Dropout drops whole channels, as mmsegmentation does.
    """

    shallow_to_deep = True

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        drop_channels: bool = False,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        blocks = ordered_blocks(blocks, "unet", 2, or_more=True)
        widths = channels or [max(16, 256 >> i) for i in range(len(blocks) - 1)]
        if len(widths) < len(blocks) - 1:
            raise ConfigError(
                "channels",
                f"found {len(widths)} for {len(blocks)} blocks; expected {len(blocks) - 1}, or more for "
                "steps without a block",
            )
        deepest, *others = reversed([block.channels for block in blocks])
        skips = [*others, *[0] * (len(widths) - len(others))]
        inputs = [deepest, *widths]
        self.steps = nn.ModuleList(
            nn.Sequential(ConvNormAct(wide + skip, width, norm=norm), ConvNormAct(width, width, norm=norm))
            for wide, skip, width in zip(inputs, skips, widths, strict=False)
        )
        self.dropout = build_dropout(dropout, drop_channels)
        self.classifier = nn.Conv2d(widths[-1], num_classes, kernel_size=3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x, *skips = reversed(features)
        for i, step in enumerate(self.steps):
            if i < len(skips):
                x = torch.cat([F.interpolate(x, skips[i].shape[2:], mode="nearest"), skips[i]], 1)
            else:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = step(x)
        return self.classifier(self.dropout(x))
