"""The score sum head: the skip connections of the first fully convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from classyseg import BlockInfo, ClassyHead
from classyseg.layers import resize_logits


class ScoreSumHead(ClassyHead):
    """A 1x1 classifier on each block; their logits are added at the size of the finest block.

    Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015 (FCN-8s, whose learned
    upsampling is bilinear here).
    """

    def __init__(self, blocks: Sequence[BlockInfo], num_classes: int, *, bias: bool = True) -> None:
        super().__init__()
        self.finest = min(range(len(blocks)), key=lambda i: blocks[i].stride)
        self.classifiers = nn.ModuleList(nn.Conv2d(block.channels, num_classes, 1, bias=bias) for block in blocks)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        size = features[self.finest].shape[2:]
        scores = [classifier(x) for classifier, x in zip(self.classifiers, features, strict=True)]
        return torch.stack([resize_logits(score, size) for score in scores]).sum(0)
