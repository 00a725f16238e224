"""Xception as PyTorch-Encoding has it: near to DeepLab's, with other blocks and keys."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from math import sqrt
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.layers import NormConfig, build_norm
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS

MIDDLE_BLOCKS = range(4, 20)
WIDTH = 728


@MODELS.register("xception")
class Xception(ClassyModel):
    """Blocks `stem` (stride 2), `stage1` (4), `stage2` (8), `stage3` (16, the middle flow) and `stage4` (32).

    An `output_stride` of 16 or 8 dilates as PyTorch-Encoding does. With 71 layers and stride 8 the third block has no
    projected shortcut, so that those weights fit no other stride. State-dict keys are PyTorch-Encoding's.

    PyTorch-Encoding's networks, whose weights fit `xception_deeplab` as little as the other way round.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018; PyTorch-Encoding's changes to
    it: two separable convolutions in the second block, ReLU before a block also on its shortcut.

    Args:
        layers: 65 or 71.
        output_stride: 8, 16 or 32.
    """

    classifier_prefixes = ("fc.",)

    def __init__(
        self,
        *,
        layers: Literal[65, 71] = 65,
        output_stride: Literal[8, 16, 32] = 32,
        in_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        step3, middle, step20 = {32: (2, 1, 2), 16: (2, 1, 1), 8: (1, 2, 1)}[output_stride]
        dilation20, dilation_last = {32: (1, 1), 16: (1, 2), 8: (2, 4)}[output_stride]
        self.conv1 = nn.Conv2d(in_channels, 32, 3, 2, 1, bias=False)
        self.bn1 = build_norm(norm, 32)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 64, 3, 1, 1, bias=False)
        self.bn2 = build_norm(norm, 64)
        self.add_block("stem", 64, 2, "conv1", "bn1", "conv2", "bn2")
        self.block1 = _Block((64, 128, 128, 128), norm, stride=2, start_with_relu=False)
        self.add_block("stage1", 128, 4, "block1")
        if layers == 65:
            self.block2: nn.Module = _Block((128, 256, 256, 256), norm, stride=2, start_with_relu=False)
        else:
            self.block2 = nn.Sequential(
                _Block((128, 256, 256), norm, start_with_relu=False),
                _Block((256, 256, 256, 256), norm, stride=2, start_with_relu=False),
                _Block((256, WIDTH, WIDTH), norm, start_with_relu=False),
            )
        width = 256 if layers == 65 else WIDTH
        self.add_block("stage2", width, 8, "block2")
        self.block3 = _Block((width, WIDTH, WIDTH, WIDTH), norm, stride=step3)
        middles = {f"block{i}": _Block((WIDTH,) * 4, norm, dilation=middle) for i in MIDDLE_BLOCKS}
        self.midflow = nn.Sequential(OrderedDict(middles))
        self.add_block("stage3", WIDTH, min(16, output_stride), "block3", "midflow")
        self.block20 = _Block((WIDTH, WIDTH, 1024, 1024), norm, stride=step20, dilation=dilation20)
        channels = 1024
        for i, width in ((3, 1536), (4, 1536), (5, 2048)):
            setattr(self, f"conv{i}", _Separable(channels, width, 1, dilation_last, norm))
            setattr(self, f"bn{i}", build_norm(norm, width))
            channels = width
        last = [f"{kind}{i}" for i in (3, 4, 5) for kind in ("conv", "bn")]
        self.add_block("stage4", channels, output_stride, "block20", *last)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                taps = module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, 0, sqrt(2 / (taps * module.out_channels)))

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        features = {}
        x = self.relu(self.bn1(self.conv1(image)))
        x = features["stem"] = self.relu(self.bn2(self.conv2(x)))
        x = features["stage1"] = self.relu(self.run_layer(self.block1, x))
        x = features["stage2"] = self.run_layer(self.block2, x)
        x = self.run_layer(self.block3, x)
        x = features["stage3"] = self.run_layer(self.midflow, x)
        x = self.relu(self.run_layer(self.block20, x))
        for i in (3, 4, 5):
            x = self.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x)))
        features["stage4"] = x
        return features


class _Separable(nn.Module):
    """A depthwise convolution, a norm, and a pointwise convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int, norm: NormConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride, dilation, dilation, groups=in_channels, bias=False)
        self.bn = build_norm(norm, in_channels)
        self.pointwise = nn.Conv2d(in_channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.bn(self.conv1(x)))


class _Block(nn.Module):
    """Separable convolutions of `channels` with ReLUs between, and a shortcut: projected where size or width change.

    A ReLU at the start is one of the shortcut, too. The last convolution has the stride, and no dilation with it.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        norm: NormConfig,
        *,
        stride: int = 1,
        dilation: int = 1,
        start_with_relu: bool = True,
    ) -> None:
        super().__init__()
        self.skip: nn.Module | None = None
        if stride != 1 or channels[0] != channels[-1]:
            self.skip = nn.Conv2d(channels[0], channels[-1], 1, stride, bias=False)
            self.skipbn = build_norm(norm, channels[-1])
        self.start_with_relu = start_with_relu
        parts: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(channels)):
            if i or start_with_relu:
                parts.append(nn.Identity() if i == 0 else nn.ReLU(inplace=True))  # the first one is applied before
            last = stride != 1 and i == len(channels) - 2
            parts.append(_Separable(before, after, stride if last else 1, 1 if last else dilation, norm))
            parts.append(build_norm(norm, after))
        self.rep = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        if self.start_with_relu:
            x = x.relu()
        return self.rep(x) + (x if self.skip is None else self.skipbn(self.skip(x)))


MODELS.variants(Xception, {f"xception{layers}": {"layers": layers} for layers in (65, 71)})
