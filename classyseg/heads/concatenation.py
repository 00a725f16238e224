"""Several blocks as one map, for heads that read a single map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from classyseg.layers import resize_logits
from classyseg.structures import BlockInfo


class Concatenation(nn.Module):
    """Maps of `blocks`, each brought to the finest one's size, side by side: (N, sum of channels, h, w).

    Source: Sun et al., "High-Resolution Representations for Labeling Pixels and Regions", arXiv 1904.04514.
    """

    def __init__(self, blocks: Sequence[BlockInfo]) -> None:
        super().__init__()
        self.channels = sum(block.channels for block in blocks)
        self.stride = min(block.stride for block in blocks)
        self.finest = [block.stride for block in blocks].index(self.stride)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        if len(features) == 1:
            return features[0]
        size = features[self.finest].shape[2:]
        return torch.cat([resize_logits(x, size) for x in features], 1)
