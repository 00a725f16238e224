"""FCFPN: a feature pyramid whose levels are all brought to the finest size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.heads.classy_head import ClassyHead, HeadKeys, ordered_blocks
from classyseg.layers import ALIGN_CORNERS, ConvNormAct, NormConfig, PyramidPooling, build_dropout, resize_logits
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

PYRAMID_RULES = (
    (r"^pyramid\.laterals\.", "fpn_lateral."),
    (r"^pyramid\.outputs\.", "fpn_out."),
    (r"^pyramid\.top_conv\.", "c4conv."),
    (r"^conv\.", "conv5."),
    (r"^classifier\.", "conv5.4."),
)
"""PyTorch-Encoding's names for the layers that heads with a feature pyramid share."""


class PyramidFusion(nn.Module):
    """The levels of a feature pyramid, coarse to fine, at the finest size and concatenated.

    Blocks go shallow to deep. The deepest passes `top` and a 3x3 convolution; each shallower one is added, through a
    1x1 convolution, to what comes from the deeper ones, and passes a 3x3 convolution of its own.
    (N, channels x levels, h, w).

    Source: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        channels: int,
        *,
        top: PyramidPooling | None = None,
        norm: NormConfig,
        align_corners: bool = ALIGN_CORNERS,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.top = nn.Identity() if top is None else top
        self.top_conv = ConvNormAct(top.out_channels if top else blocks[-1].channels, channels, norm=norm)
        self.laterals = nn.ModuleList(
            ConvNormAct(block.channels, channels, kernel=1, norm=norm) for block in blocks[:-1]
        )
        self.outputs = nn.ModuleList(ConvNormAct(channels, channels, norm=norm) for _ in blocks[:-1])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = self.top_conv(self.top(features[-1]))
        levels = [x]
        for i in range(len(features) - 2, -1, -1):
            lateral = self.laterals[i](features[i])
            x = resize_logits(x, lateral.shape[2:], align_corners=self.align_corners) + lateral
            levels.append(self.outputs[i](x))
        size = features[0].shape[2:]
        return torch.cat([resize_logits(level, size, align_corners=self.align_corners) for level in levels], 1)


@HEADS.register("fcfpn")
class FCFPNHead(ClassyHead):
    """A feature pyramid over two or more blocks, shallow to deep, all levels concatenated, and a classifier.

    Made for backbones without `output_stride`.

    Source: PyTorch-Encoding's FCFPN, after Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.

    Args:
        channels: Of each level.
        fused_channels: Before the classifier.
        dropout: Before the classifier.
        drop_channels: Dropout drops whole channels, as mmsegmentation does.
        align_corners: How levels are resized; true for weights that were trained so, such as PyTorch-Encoding's.
    """

    shallow_to_deep = True

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 256,
        fused_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 512,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        drop_channels: bool = False,
        align_corners: bool = ALIGN_CORNERS,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        blocks = ordered_blocks(blocks, "fcfpn", 2, or_more=True)
        self.pyramid = PyramidFusion(blocks, channels, norm=norm, align_corners=align_corners)
        self.conv = ConvNormAct(channels * len(blocks), fused_channels, norm=norm)
        self.dropout = build_dropout(dropout, drop_channels)
        self.classifier = nn.Conv2d(fused_channels, num_classes, kernel_size=1)

    def pytorch_encoding_keys(self) -> HeadKeys:
        return HeadKeys(PYRAMID_RULES)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.dropout(self.conv(self.pyramid(features))))
