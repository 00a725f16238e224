"""Semantic FPN: the segmentation branch of Panoptic FPN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.config import MAX_CHANNELS
from classyseg.heads.classy_head import CONV_MODULE, ClassyHead, HeadKeys, ordered_blocks
from classyseg.layers import ConvNormAct, NormConfig, build_dropout, resize_logits
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo


@HEADS.register("semantic_fpn")
class SemanticFPNHead(ClassyHead):
    """A feature pyramid. Each level is brought to the finest size in steps; the sum of all levels is classified.

    Reads one block or more, shallow to deep; four at strides 4 to 32 in the paper. The pyramid has 1x1 convolutions to
    `pyramid_channels`, sums from deep to shallow and a 3x3 convolution for each level. Level i then passes i steps, at
    least one. A step is a 3x3 convolution, a norm, a ReLU and a resize to the next finer level's size. The paper's norm
    is `group`.

    Source: Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019; the pyramid: Lin et al., "Feature Pyramid
    Networks for Object Detection", CVPR 2017.

    Args:
        pyramid_channels: Of the feature pyramid.
        channels: Of the branch.
        dropout: Before the classifier.
        drop_channels: Dropout drops whole channels, as mmsegmentation does.
        norm: Of the branch; the pyramid has none. See key `norm`.
    """

    shallow_to_deep = True

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        pyramid_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 256,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 128,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        drop_channels: bool = False,
        norm: NormConfig = NormConfig(name="group"),
    ) -> None:
        super().__init__()
        blocks = ordered_blocks(blocks, "semantic_fpn", 1, or_more=True)
        self.lateral = nn.ModuleList(nn.Conv2d(block.channels, pyramid_channels, kernel_size=1) for block in blocks)
        self.output = nn.ModuleList(nn.Conv2d(pyramid_channels, pyramid_channels, 3, padding=1) for _ in blocks)
        for conv in (*self.lateral, *self.output):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.levels = nn.ModuleList()
        for i in range(len(blocks)):
            inputs = [pyramid_channels, *[channels] * i]
            self.levels.append(nn.ModuleList(ConvNormAct(width, channels, norm=norm) for width in inputs[: max(1, i)]))
        self.dropout = build_dropout(dropout, drop_channels)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def mmsegmentation_keys(self) -> HeadKeys:
        return HeadKeys(
            (
                (r"^lateral\.(\d+)\.", r"/neck.lateral_convs.\1.conv."),
                (r"^output\.(\d+)\.", r"/neck.fpn_convs.\1.conv."),
                # between the convolutions of all levels but the first lie resizes
                *((rf"^levels\.(\d+)\.{i}\.", rf"scale_heads.\1.{2 * i}.") for i in range(len(self.levels))),
                *CONV_MODULE,
            )
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        sizes = [x.shape[2:] for x in features]
        pyramid = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for i in range(len(pyramid) - 1, 0, -1):
            pyramid[i - 1] = pyramid[i - 1] + F.interpolate(pyramid[i], sizes[i - 1], mode="nearest")
        levels = []
        for i, (output, level) in enumerate(zip(self.output, self.levels, strict=True)):
            x = output(pyramid[i])
            for step, conv in enumerate(level.children()):
                x = resize_logits(conv(x), sizes[max(0, i - 1 - step)])
            levels.append(x)
        return self.classifier(self.dropout(torch.stack(levels).sum(0)))
