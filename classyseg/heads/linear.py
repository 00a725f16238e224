"""The classification head: global average pooling and a linear layer, or what references put around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.errors import ConfigError
from classyseg.heads.classy_head import ClassyHead
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

ACTIVATIONS = {"relu": nn.ReLU, "hardswish": nn.Hardswish, "gelu": nn.GELU}
NORM_EPS = 1e-6


@HEADS.register("linear")
class LinearHead(ClassyHead):
    """The means of the blocks' maps (also of clips), concatenated, and one linear layer: logits (N, num_classes).

    For classification: the task `segmentation` needs a head with logits for each pixel.

    Args:
        dropout: Before the linear layer.
        layer_norm: A layer norm of the means first, as in ConvNeXt.
        hidden: A linear layer to so many features and `activation` before the last one, as in MobileNetV3.
        activation: `relu`, `hardswish` or `gelu`, with `hidden`.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        layer_norm: bool = False,
        hidden: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] | None = None,
        activation: Literal["relu", "hardswish", "gelu"] | None = None,
    ) -> None:
        super().__init__()
        if (hidden is None) != (activation is None):
            raise ConfigError("activation", f"found {activation} with hidden: {hidden}; give both or none")
        channels = sum(block.channels for block in blocks)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS) if layer_norm else nn.Identity()
        self.hidden: nn.Module = nn.Identity()
        if hidden is not None and activation is not None:
            self.hidden = nn.Sequential(nn.Linear(channels, hidden), ACTIVATIONS[activation]())
            channels = hidden
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        pooled = torch.cat([x.flatten(2).mean(2) for x in features], 1)
        return self.fc(self.dropout(self.hidden(self.norm(pooled))))
