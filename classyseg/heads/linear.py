"""The classification head: global average pooling and a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.heads.classy_head import ClassyHead
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo


@HEADS.register("linear")
class LinearHead(ClassyHead):
    """The means of the blocks' maps (also of clips), concatenated, and one linear layer: logits (N, num_classes)."""

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(sum(block.channels for block in blocks), num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        pooled = torch.cat([x.flatten(2).mean(2) for x in features], 1)
        return self.fc(self.dropout(pooled))
