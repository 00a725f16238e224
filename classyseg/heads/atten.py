"""Attention, the image's mean and context encoding: PyTorch-Encoding's ATTEN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.errors import ConfigError
from classyseg.heads.classy_head import LOGITS, ClassyHead, HeadKeys, ordered_blocks, refuse_unread
from classyseg.heads.encnet import ENCODING_RULES, LateralFusion
from classyseg.layers import ACFAttention, ContextEncoding, ImageMean, NormConfig
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

NUM_CODES = 32


@HEADS.register("atten")
class AttenHead(ClassyHead):
    """A 3x3 convolution, attention of several heads and mixtures, context encoding, and a classifier.

    Reads the last block; others are laterals into it, as in `encnet`. With `with_encoding` and `se_branch` it gives the
    output `se`, as `encnet` does.

    Source: H. Zhang et al., "Co-occurrent Features in Semantic Segmentation", CVPR 2019, as PyTorch-Encoding has it.

    Args:
        channels: Of the map that looks at itself; null: a quarter of the last block's, a multiple of `num_heads`.
        num_heads: Heads of the attention.
        num_mixtures: Softmaxes that each head mixes.
        with_global: The classifier also reads the image's mean.
        norm_image: That mean has a norm, too; batch norm then needs two images at once.
        with_encoding: Context encoding before the classifier.
        num_codes: Its codewords.
        se_branch: As of `encnet`.
        dropout: Before the classifier.
    """

    shallow_to_deep = True

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] | None = None,
        num_heads: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 8,
        num_mixtures: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 1,
        with_global: bool = True,
        norm_image: bool = False,
        with_encoding: bool = True,
        num_codes: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = NUM_CODES,
        se_branch: bool = False,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        blocks = ordered_blocks(blocks, "atten", 1, or_more=True)
        if channels is None:
            channels = num_heads * math.ceil(blocks[-1].channels / (4 * num_heads))
        if channels % num_heads:
            raise ConfigError("channels", f"found {channels}, which the {num_heads} heads cannot share evenly")
        if not with_global:
            refuse_unread("with_global", norm_image=(norm_image, False))
        if not with_encoding:
            refuse_unread("with_encoding", num_codes=(num_codes, NUM_CODES), se_branch=(se_branch, False))
        self.stem = LateralFusion(blocks, channels, norm)
        self.image_branch = ImageMean(channels, channels, norm if norm_image else None) if with_global else None
        self.attention = ACFAttention(
            channels,
            num_heads=num_heads,
            key_channels=channels // num_heads * num_mixtures,
            value_channels=channels // num_heads,
            num_mixtures=num_mixtures,
            norm=norm,
        )
        channels *= 1 + with_global
        self.context = ContextEncoding(channels, num_codes, norm) if with_encoding else None
        self.presence = nn.Linear(channels, num_classes) if se_branch else None
        self.output_names = (LOGITS, "se") if se_branch else (LOGITS,)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def pytorch_encoding_keys(self) -> HeadKeys:
        rules = (
            (r"^image_branch\.0\.", "atten_layers.0.gap.1."),
            (r"^image_branch\.1\.", "atten_layers.0.gap.2."),
            (r"^attention\.query\.", "atten.conv_qs."),
            (r"^attention\.value\.", "atten.conv_vs."),
            (r"^attention\.mixture$", "atten.attention.weight"),
            (r"^attention\.project\.", "atten.conv."),
            (r"^attention\.norm\.", "atten.norm_layer."),
        )
        return HeadKeys((*ENCODING_RULES, *rules), aliases=r"^atten_layers\.1\.|\.conv_ks\.")

    def forward(self, features: Sequence[Tensor]) -> Tensor | dict[str, Tensor]:
        x = self.stem(features)
        attended = self.attention(x)
        x = attended if self.image_branch is None else torch.cat([self.image_branch(x), attended], 1)
        if self.context is not None:
            x, context = self.context(x)
        logits = self.classifier(self.dropout(x))
        if self.presence is None or context is None:
            return logits
        return {LOGITS: logits, "se": self.presence(context)}
