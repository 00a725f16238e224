"""EncNet: channels weighted by the context of the image, from its residual encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.heads.classy_head import CONV_MODULE, LOGITS, ClassyHead, HeadKeys, ordered_blocks
from classyseg.layers import ContextEncoding, ConvNormAct, NormConfig, build_dropout, resize_logits
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

ENCODING_RULES = (
    (r"^stem\.conv\.", "conv5."),
    (r"^stem\.laterals\.", "connect."),
    (r"^stem\.fusion\.", "fusion."),
    (r"^context\.project\.", "encmodule.encoding."),
    (r"^context\.encoding\.", "encmodule.encoding.3."),
    (r"^context\.norm\.", "encmodule.encoding.4."),
    (r"^context\.gate\.", "encmodule.fc.0."),
    (r"^presence\.", "encmodule.selayer."),
    (r"^classifier\.", "conv6.1."),
)
"""PyTorch-Encoding's names for the layers that heads with context encoding share."""


class LateralFusion(nn.Module):
    """The deepest block through a 3x3 convolution; shallower blocks are joined with it, and a second one fuses them.

    Shallower blocks pass a 1x1 convolution and are resized to the deepest; gives (N, channels, h, w).
    """

    def __init__(self, blocks: Sequence[BlockInfo], channels: int, norm: NormConfig) -> None:
        super().__init__()
        self.conv = ConvNormAct(blocks[-1].channels, channels, norm=norm)
        self.laterals = nn.ModuleList(
            ConvNormAct(block.channels, channels, kernel=1, norm=norm) for block in blocks[:-1]
        )
        self.fusion = ConvNormAct(channels * len(blocks), channels, norm=norm) if len(blocks) > 1 else nn.Identity()

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        *shallower, deepest = features
        maps = [self.conv(deepest)]
        for lateral, x in zip(self.laterals, shallower, strict=True):
            maps.append(resize_logits(lateral(x), deepest.shape[2:]))
        return self.fusion(torch.cat(maps, 1))


@HEADS.register("encnet")
class EncNetHead(ClassyHead):
    """A 3x3 convolution, context encoding and a classifier over the last block; others are laterals into it.

    With `se_branch`, `se` (N, num_classes) are logits of whether each class is in the image at all, for a loss of the
    classes present.

    PyTorch-Encoding reads `blocks: [stage2, stage3, stage4]`.

    Source: H. Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018.

    Args:
        channels: Of the map that is encoded.
        num_codes: Codewords.
        se_branch: Gives the output `NAME.se` (N, classes), too: logits that say which classes are in an image.
        dropout: Before the classifier.
        drop_channels: Dropout drops whole channels, as mmsegmentation does.
    """

    shallow_to_deep = True

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 512,
        num_codes: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 32,
        se_branch: bool = True,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        drop_channels: bool = False,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.stem = LateralFusion(ordered_blocks(blocks, "encnet", 1, or_more=True), channels, norm)
        self.context = ContextEncoding(channels, num_codes, norm)
        self.presence = nn.Linear(channels, num_classes) if se_branch else None
        self.output_names = (LOGITS, "se") if se_branch else (LOGITS,)
        self.dropout = build_dropout(dropout, drop_channels)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def pytorch_encoding_keys(self) -> HeadKeys:
        return HeadKeys(ENCODING_RULES)

    def mmsegmentation_keys(self) -> HeadKeys:
        return HeadKeys(
            (
                (r"^context\.gate\.", "enc_module.fc.@."),
                (r"^context\.encoding\.", "enc_module.encoding.@."),
                (r"^context\.norm\.", "enc_module.encoding.@@."),
                (r"^context\.project\.", "enc_module.encoding_project."),
                (r"^presence\.", "se_layer."),
                (r"^stem\.conv\.", "bottleneck."),
                (r"^stem\.laterals\.", "lateral_convs."),
                (r"^stem\.fusion\.", "fusion."),
                *CONV_MODULE,
                (r"@@", "1"),
                (r"@", "0"),
            )
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor | dict[str, Tensor]:
        x, context = self.context(self.stem(features))
        logits = self.classifier(self.dropout(x))
        if self.presence is None:
            return logits
        return {LOGITS: logits, "se": self.presence(context)}
