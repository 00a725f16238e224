"""Object-contextual representations: each pixel also sees the mean feature of each class's region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.config import MAX_CHANNELS
from classyseg.heads.classy_head import CONV_MODULE, LOGITS, ClassyHead, HeadKeys
from classyseg.heads.concatenation import Concatenation
from classyseg.layers import ConvNormAct, NormConfig
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo


class ObjectAttention(nn.Module):
    """Attention of pixels (N, in_channels, h, w) to regions (N, in_channels, K, 1): a context for each pixel.

    Queries and keys pass two 1x1 convolutions to `channels`, values and the result one, each with norm and ReLU.
    """

    def __init__(self, in_channels: int, channels: int, norm: NormConfig) -> None:
        super().__init__()

        def unit(inputs: int, outputs: int) -> ConvNormAct:
            return ConvNormAct(inputs, outputs, kernel=1, norm=norm)

        self.query = nn.Sequential(unit(in_channels, channels), unit(channels, channels))
        self.key = nn.Sequential(unit(in_channels, channels), unit(channels, channels))
        self.value = unit(in_channels, channels)
        self.output = unit(channels, in_channels)

    def forward(self, pixels: Tensor, regions: Tensor) -> Tensor:
        query, key, value = (
            x.flatten(2)
            .transpose(1, 2)
            .unsqueeze(1)  # one head: torch's ONNX exporter takes attention of four axes alone
            for x in (self.query(pixels), self.key(regions), self.value(regions))
        )
        context = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        return self.output(context.transpose(1, 2).contiguous().unflatten(2, pixels.shape[2:]))


@HEADS.register("ocr")
class OCRHead(ClassyHead):
    """A coarse prediction, each class's mean feature weighted by it, and each pixel's attention to these regions.

    Several blocks are brought to the finest one's size and concatenated, as HRNet's branches are for HRNet-OCR. The
    coarse prediction is the output `coarse` (N, num_classes, h, w), with a loss of its own (0.4 in the paper).

    HRNet-OCR is this head over the block `stage4` of an `hrnet_*`, which is its branches concatenated (`blocks:
    [branch1, branch2, branch3, branch4]` is the same model); with `hrnet_w48` and 19 classes it has 70.4 million
    parameters. A whole config: `task_configs/camvid/hrnet_ocr_w18.yaml`.

    ```yaml
    model:
      name: hrnet_w48
      heads: {main: {name: ocr, blocks: [stage4]}}
    loss: {name: cross_entropy, head_weights: {main: 1.0, main.coarse: 0.4}}
    ```

    Source: Yuan et al., "Object-Contextual Representations for Semantic Segmentation", ECCV 2020.

    Args:
        channels: Of pixels and regions.
        key_channels: Of the attention between the two.
        dropout: Of whole channels, before the classifier.
    """

    output_names = (LOGITS, "coarse")

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 512,
        key_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 256,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.concatenation = Concatenation(blocks)
        in_channels = self.concatenation.channels
        self.coarse = nn.Sequential(
            ConvNormAct(in_channels, in_channels, kernel=1, norm=norm), nn.Conv2d(in_channels, num_classes, 1)
        )
        self.conv = ConvNormAct(in_channels, channels, norm=norm)
        self.attention = ObjectAttention(channels, key_channels, norm)
        self.fuse = ConvNormAct(2 * channels, channels, kernel=1, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def mmsegmentation_keys(self) -> HeadKeys:
        attention = "/decode_head.1.object_context_block."
        return HeadKeys(
            (
                (r"^coarse\.0\.", "/decode_head.0.convs.0."),
                (r"^coarse\.1\.", "/decode_head.0.conv_seg."),
                (r"^classifier\.", "/decode_head.1.conv_seg."),
                (r"^conv\.", "/decode_head.1.bottleneck."),
                (r"^fuse\.", f"{attention}bottleneck."),
                (r"^attention\.output\.", f"{attention}out_project."),
                (r"^attention\.(query|key|value)\.", rf"{attention}\1_project."),
                *CONV_MODULE,
            )
        )

    def forward(self, features: Sequence[Tensor]) -> Mapping[str, Tensor]:
        x = self.concatenation(features)
        coarse = self.coarse(x)
        pixels = self.conv(x)
        shares = coarse.flatten(2).softmax(2)
        regions = torch.matmul(pixels.flatten(2), shares.transpose(1, 2)).unsqueeze(3)
        x = self.fuse(torch.cat([self.attention(pixels, regions), pixels], 1))
        logits = self.classifier(self.dropout(x))
        return {LOGITS: logits, "coarse": coarse}
