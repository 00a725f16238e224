"""Joint pyramid upsampling before another head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from classyseg.config import MAX_CHANNELS
from classyseg.errors import within
from classyseg.heads.classy_head import ClassyHead, ordered_blocks
from classyseg.layers import JPU, NormConfig
from classyseg.registry import HEADS, InnerHeadConfig
from classyseg.structures import BlockInfo


@HEADS.register("jpu")
class JPUHead(ClassyHead):
    """`head` over the map that joint pyramid upsampling makes from two or more blocks, at the stride of the first one.

    The paper reads the blocks at strides 8, 16 and 32 of a backbone with `output_stride` 32. The map replaces the
    deepest block of a backbone with `output_stride` 8, at a fraction of its cost. Outputs, labels and scores are those
    of `head`.

    ```yaml
    model:
      name: resnet50
      heads: {main: {name: jpu, blocks: [stage2, stage3, stage4], head: {name: deeplabv3, channels: 256}}}
    ```

    Source: Wu et al., "FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation", arXiv
    1903.11816.

    Args:
        head: The other head, without `blocks` and `train_only`.
        channels: Of each block's part and of each dilated convolution; the other head gets four times as many.
        norm: See key `norm`. The other head has its own.
    """

    shallow_to_deep = True

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        head: InnerHeadConfig = "fcn",
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 512,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        blocks = ordered_blocks(blocks, "jpu", 2, or_more=True)
        self.jpu = JPU([block.channels for block in blocks], channels, norm)
        with within("head"):
            block = BlockInfo("jpu", self.jpu.out_channels, blocks[0].stride)
            self.head: ClassyHead = HEADS.build(head, [block], num_classes)
        self.output_names, self.needed_outputs = self.head.output_names, self.head.needed_outputs

    def forward(self, features: Sequence[Tensor]) -> Tensor | Mapping[str, Tensor]:
        return self.head([self.jpu(features)])

    def labels(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        return self.head.labels(outputs, size)

    def scores(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        return self.head.scores(outputs, size)
