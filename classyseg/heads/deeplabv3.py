"""DeepLabV3: atrous spatial pyramid pooling and a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.heads.classy_head import ASPP_RULES, CONV_MODULE, ClassyHead, HeadKeys, only_block
from classyseg.layers import ASPP, ConvNormAct, NormConfig
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo


@HEADS.register("deeplabv3")
class DeepLabV3Head(ClassyHead):
    """ASPP, a 3x3 convolution and a classifier over one block; made for backbones with `output_stride` 8 or 16.

    PyTorch-Encoding's form is `dropout: 0.5, drop_channels: true, classifier_dropout: 0.1, norm_image: true`, at stride
    8.

    Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv 1706.05587.

    Args:
        channels: Of each branch.
        rates: Dilations of the branches; null: 6, 12, 18 at strides of 16 and above, 12, 24, 36 below.
        separable: Dilated convolutions are a depthwise and a pointwise one.
        dropout: After the projection.
        drop_channels: That dropout drops whole channels.
        classifier_dropout: Before the classifier.
        projection_kernel: Of the projection: 1, or 3 as in mmsegmentation.
        num_convs: 3x3 convolutions behind it: 1, or 0 as in mmsegmentation.
        norm_image: The branch of the image's mean has a norm, too; batch norm then needs two images at once.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 256,
        rates: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_CHANNELS)], ...], Field(min_length=1)] | None = None,
        separable: bool = False,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        drop_channels: bool = False,
        classifier_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        projection_kernel: Literal[1, 3] = 1,
        num_convs: Literal[0, 1] = 1,
        norm_image: bool = False,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        block = only_block(blocks, "deeplabv3")
        if rates is None:
            rates = (6, 12, 18) if block.stride >= 16 else (12, 24, 36)
        self.aspp = ASPP(
            block.channels,
            channels,
            rates,
            dropout,
            norm,
            separable=separable,
            drop_channels=drop_channels,
            norm_image=norm_image,
            projection_kernel=projection_kernel,
        )
        self.conv = ConvNormAct(channels, channels, norm=norm) if num_convs else nn.Identity()
        self.dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def pytorch_encoding_keys(self) -> HeadKeys:
        image_branch = f"aspp.b{len(self.aspp.branches)}.gap."
        return HeadKeys(
            (
                (r"^aspp\.branches\.(\d+)\.", r"aspp.b\1."),
                (r"^aspp\.image_branch\.0\.", f"{image_branch}1."),
                (r"^aspp\.image_branch\.1\.", f"{image_branch}2."),
                (r"^conv\.", "block."),
                (r"^classifier\.", "block.4."),
            )
        )

    def mmsegmentation_keys(self) -> HeadKeys | None:
        if not isinstance(self.conv, nn.Identity):
            return None
        return HeadKeys((*ASPP_RULES, *CONV_MODULE), tensor=self.aspp.from_image_first)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        (x,) = features
        return self.classifier(self.dropout(self.conv(self.aspp(x))))
