"""A layer between a student's features and its teacher's: a head that only trains, attached by the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from classyseg.heads.classy_head import ClassyHead, only_block
from classyseg.structures import BlockInfo

ADAPTED = "adapted"
"""The adapter's own name for what it gives."""


class FeatureAdapter(ClassyHead):
    """A linear map of a block's channels to `num_channels`, at each position: a 1x1 convolution, or linear for vectors.

    It gives no logits, so losses of labels pass it by. It is not registered: no config names it.
    """

    reads_vectors = True
    output_names = (ADAPTED,)

    def __init__(self, blocks: Sequence[BlockInfo], num_channels: int) -> None:
        super().__init__()
        block = only_block(blocks, "adapter")
        self.map: nn.Module = (
            nn.Conv2d(block.channels, num_channels, kernel_size=1)
            if block.stride
            else nn.Linear(block.channels, num_channels)
        )

    def forward(self, features: Sequence[Tensor]) -> Mapping[str, Tensor]:
        (x,) = features
        return {ADAPTED: self.map(x)}
