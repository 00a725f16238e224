"""UperNet: pyramid pooling on top of a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.heads.classy_head import CONV_MODULE, ClassyHead, HeadKeys, ordered_blocks, turned
from classyseg.heads.fcfpn import PYRAMID_RULES, PyramidFusion
from classyseg.layers import ALIGN_CORNERS, ConvNormAct, NormConfig, PyramidPooling, build_dropout
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo


@HEADS.register("upernet")
class UperNetHead(ClassyHead):
    """Pyramid pooling on the deepest block, a feature pyramid down to the shallowest, and a classifier.

    Reads two or more blocks, shallow to deep.

    Source: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018.

    Args:
        channels: Of each level.
        fused_channels: Before the classifier.
        bins: Cells along each side of the pooling's grids.
        pool_channels: Of each grid; null: a quarter of the deepest block's.
        dropout: Before the classifier.
        drop_channels: Dropout drops whole channels, as mmsegmentation does.
        norm_image: The grid of one cell has a norm, too; batch norm then needs two images at once.
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
        bins: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_CHANNELS)], ...], Field(min_length=1)] = (1, 2, 3, 6),
        pool_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        drop_channels: bool = False,
        norm_image: bool = False,
        align_corners: bool = ALIGN_CORNERS,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        blocks = ordered_blocks(blocks, "upernet", 2, or_more=True)
        deepest, self.num_levels = blocks[-1].channels, len(bins)
        pooling = PyramidPooling(
            deepest,
            pool_channels or max(1, deepest // 4),
            bins=bins,
            norm=norm,
            norm_image=norm_image,
            align_corners=align_corners,
        )
        self.pyramid = PyramidFusion(blocks, channels, top=pooling, norm=norm, align_corners=align_corners)
        self.conv = ConvNormAct(channels * len(blocks), fused_channels, norm=norm)
        self.dropout = build_dropout(dropout, drop_channels)
        self.classifier = nn.Conv2d(fused_channels, num_classes, kernel_size=1)

    def pytorch_encoding_keys(self) -> HeadKeys:
        levels = range(self.num_levels)
        top = ((rf"^pyramid\.top\.branches\.{i}\.", f"extramodule.conv{i + 1}.") for i in levels)
        return HeadKeys((*PYRAMID_RULES, *top))

    def mmsegmentation_keys(self) -> HeadKeys:
        def from_fine_to_coarse(key: str, tensor: Tensor) -> Tensor:
            """Levels go from coarse to fine here."""
            if key != "conv.0.weight":
                return tensor
            levels = len(self.blocks)
            return turned(tensor, [tensor.shape[1] // levels] * levels, range(levels - 1, -1, -1))

        return HeadKeys(
            (
                (r"^pyramid\.top\.branches\.(\d+)\.", r"psp_modules.\1.1."),
                (r"^pyramid\.top_conv\.", "bottleneck."),
                (r"^pyramid\.laterals\.", "lateral_convs."),
                (r"^pyramid\.outputs\.", "fpn_convs."),
                (r"^conv\.", "fpn_bottleneck."),
                *CONV_MODULE,
            ),
            tensor=from_fine_to_coarse,
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.dropout(self.conv(self.pyramid(features))))
