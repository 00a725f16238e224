"""Xception-65 and -71 as PyTorch-Encoding has them: the modified aligned Xception, not DeepLab's own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from classyseg.layers import NormConfig, build_norm
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS

FIRST_MIDDLE = 4
"""The number in the name of the first block of the middle flow."""


class SeparableConv(nn.Module):
    """A 3x3 depthwise convolution, its norm, and a 1x1 one; no activation between."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int, norm: NormConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride, dilation, dilation, groups=in_channels, bias=False)
        self.bn = build_norm(norm, in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.bn(self.conv1(x)))


class XceptionBlock(nn.Module):
    """Separable convolutions with norms, ReLUs before them, beside a shortcut.

    `channels` are those before, between and after the convolutions. The last one has the `stride`, and then no
    `dilation`. With `relu_first` the shortcut, too, reads the rectified input. (N, in, H, W) to (N, out, H / stride,
    W / stride).
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        stride: int = 1,
        dilation: int = 1,
        relu_first: bool = True,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.relu = nn.ReLU() if relu_first else nn.Identity()  # not in place: the input is a feature
        first, last = channels[0], channels[-1]
        self.skip = None
        if stride != 1 or first != last:
            self.skip = nn.Conv2d(first, last, 1, stride, bias=False)
            self.skipbn = build_norm(norm, last)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(channels)):
            if i > 0 or relu_first:  # in the reference's place, whose keys count it; the first one is `self.relu`
                layers.append(nn.ReLU(inplace=True) if i > 0 else nn.Identity())
            strided = stride != 1 and i == len(channels) - 2
            shape = (stride, 1) if strided else (1, dilation)
            layers += [SeparableConv(before, after, *shape, norm), build_norm(norm, after)]
        self.rep = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        identity = x if self.skip is None else self.skipbn(self.skip(x))
        return self.rep(x) + identity


@MODELS.register("xception")
class Xception(ClassyModel):
    """Blocks `stem` (stride 2) and `stage1` to `stage4`; the state dict has PyTorch-Encoding's keys, without its `fc`.

    `stage1` is rectified; `stage2` to `stage4` are what their last layer gives, before the ReLU that the next layer
    begins with. The optional block `pre_logits` is the rectified `stage4`, which the classifier reads. An
    `output_stride` of 16 or 8 replaces strides by dilation, by the reference's own rule: the values at the coarse
    positions change. At 8, Xception-71 has no shortcut convolution in `block3`, so that its weights do not fit the
    other two and theirs not it.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018,
    as changed by PyTorch-Encoding.
    """

    classifier_prefixes = ("fc.",)

    def __init__(
        self,
        *,
        depth: Literal[65, 71] = 65,
        middle_blocks: Annotated[int, Field(ge=1)] = 16,
        output_stride: Literal[8, 16, 32] = 32,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        strides = (1 if output_stride == 8 else 2, 2 if output_stride == 32 else 1)
        middle, exit_first, exit_last = {32: (1, 1, 1), 16: (1, 1, 2), 8: (2, 2, 4)}[output_stride]
        self.conv1 = nn.Conv2d(in_channels, 32, 3, 2, 1, bias=False)
        self.bn1 = build_norm(norm, 32)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 64, 3, 1, 1, bias=False)
        self.bn2 = build_norm(norm, 64)
        self.add_block("stem", 64, 2, "conv1", "bn1", "conv2", "bn2")
        self.block1 = XceptionBlock((64, 128, 128, 128), stride=2, relu_first=False, norm=norm)
        self.add_block("stage1", 128, 4, "block1")
        self.block2, channels = _second_block(depth, norm)
        self.add_block("stage2", channels, 8, "block2")
        self.block3 = XceptionBlock((channels, 728, 728, 728), stride=strides[0], norm=norm)
        self.midflow = nn.Sequential(
            OrderedDict(
                (f"block{FIRST_MIDDLE + i}", XceptionBlock((728,) * 4, dilation=middle, norm=norm))
                for i in range(middle_blocks)
            )
        )
        self.add_block("stage3", 728, min(16, output_stride), "block3", "midflow")
        self.block20 = XceptionBlock((728, 728, 1024, 1024), stride=strides[1], dilation=exit_first, norm=norm)
        self.conv3 = SeparableConv(1024, 1536, 1, exit_last, norm)
        self.bn3 = build_norm(norm, 1536)
        self.conv4 = SeparableConv(1536, 1536, 1, exit_last, norm)
        self.bn4 = build_norm(norm, 1536)
        self.conv5 = SeparableConv(1536, 2048, 1, exit_last, norm)
        self.bn5 = build_norm(norm, 2048)
        self.add_block("stage4", 2048, output_stride, "block20", "conv3", "bn3", "conv4", "bn4", "conv5", "bn5")
        self.add_block("pre_logits", 2048, output_stride, optional=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        features = {}
        x = self.relu(self.bn1(self.conv1(image)))
        x = features["stem"] = self.relu(self.bn2(self.conv2(x)))
        x = features["stage1"] = self.relu(self.run(self.block1, x))
        x = features["stage2"] = self.run(self.block2, x)
        x = features["stage3"] = self.run(self.midflow, self.run(self.block3, x))
        x = self.relu(self.run(self.block20, x))
        x = self.relu(self.bn3(self.conv3(x)))
        x = self.relu(self.bn4(self.conv4(x)))
        x = features["stage4"] = self.bn5(self.conv5(x))
        if self.is_wanted("pre_logits"):
            features["pre_logits"] = x.relu()
        return features


def _second_block(depth: int, norm: NormConfig) -> tuple[nn.Module, int]:
    """The entry flow's second block with its output channels."""
    if depth == 65:
        return XceptionBlock((128, 256, 256, 256), stride=2, relu_first=False, norm=norm), 256
    blocks = (
        XceptionBlock((128, 256, 256), relu_first=False, norm=norm),
        XceptionBlock((256, 256, 256, 256), stride=2, relu_first=False, norm=norm),
        XceptionBlock((256, 728, 728), relu_first=False, norm=norm),
    )
    return nn.Sequential(*blocks), 728


MODELS.variants(Xception, {"xception65": {"depth": 65}, "xception71": {"depth": 71}})
