"""WideResNet-38 and -50: pre-activation residual networks, shallow and very wide."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS, MAX_DEPTH
from classyseg.layers import NormConfig, build_norm
from classyseg.models.backbones.dilation import replace_stride_with_dilation
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS

SLOPE = 0.01
Depth = Annotated[int, Field(ge=1, le=MAX_DEPTH)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class TrainingLeakyReLU(nn.LeakyReLU):
    """Leaky ReLU in training, nothing in evaluation: what PyTorch-Encoding's released code does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x


def leaky_relu(reference_eval: bool) -> nn.Module:
    return (TrainingLeakyReLU if reference_eval else nn.LeakyReLU)(SLOPE, inplace=True)


class PreActivatedBlock(nn.Module):
    """Two 3x3 convolutions, each after a norm and a leaky ReLU, and a shortcut.

    A shortcut that is projected reads the activated input. (N, in, H, W) to (N, out, H / stride, W / stride).
    """

    def __init__(
        self,
        in_channels: int,
        inner: int,
        out_channels: int,
        stride: int,
        *,
        dropout: float = 0.0,
        norm: NormConfig,
        reference_eval: bool,
    ) -> None:
        super().__init__()
        self.activation = leaky_relu(reference_eval)
        self.dropout = nn.Dropout(dropout)
        self.bn1 = build_norm(norm, in_channels)
        self._add_convolutions(in_channels, inner, out_channels, stride, norm)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))

    def _add_convolutions(self, in_channels: int, inner: int, out_channels: int, stride: int, norm: NormConfig) -> None:
        self.conv1 = nn.Conv2d(in_channels, inner, 3, stride, 1, bias=False)
        self.bn2 = build_norm(norm, inner)
        self.conv2 = nn.Conv2d(inner, out_channels, 3, 1, 1, bias=False)

    def _transform(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn2(self.conv1(x)))
        return self.conv2(self.dropout(x))

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation(self.bn1(x))
        identity = x if self.downsample is None else self.downsample(activated)
        return self._transform(activated) + identity


class PreActivatedBottleneck(PreActivatedBlock):
    """The same with convolutions 1x1, 3x3 and 1x1; the 3x3 one gives half of the output's channels."""

    def _add_convolutions(self, in_channels: int, inner: int, out_channels: int, stride: int, norm: NormConfig) -> None:
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn2 = build_norm(norm, inner)
        self.conv2 = nn.Conv2d(inner, out_channels // 2, 3, stride, 1, bias=False)
        self.bn3 = build_norm(norm, out_channels // 2)
        self.conv3 = nn.Conv2d(out_channels // 2, out_channels, 1, bias=False)

    def _transform(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn2(self.conv1(x)))
        x = self.activation(self.bn3(self.conv2(x)))
        return self.conv3(self.dropout(x))


@MODELS.register("wide_resnet")
class WideResNet(ClassyModel):
    """Blocks `stem` (stride 2) and `stage1` to `stage4`; the state dict has PyTorch-Encoding's keys, without its `fc`.

    Six groups of residual blocks, `mod2` to `mod7`, of `depths`; `stage3` is the output of `mod5`, `stage4` the
    activated output of `mod7`. All channels are multiples of `width`. An `output_stride` of 16 or 8 replaces the
    strides beyond it by dilation, which leaves the values at the coarse positions as they were. The leaky ReLUs work in
    training and evaluation; `reference_eval` leaves them out in evaluation, as PyTorch-Encoding's released code does.
    `dropout` is that of `mod6` and `mod7`.

    Source: Wu et al., "Wider or Deeper: Revisiting the ResNet Model for Visual Recognition", 2016, in the form of Rota
    Bulo et al., "In-Place Activated BatchNorm for Memory-Optimized Training of DNNs", CVPR 2018.

    Args:
        depths: Residual blocks of the six groups `mod2` to `mod7`; the last two belong to `stage4`.
        width: Channels of the first convolution; the blocks have 2, 4, 8, 16 and 64 times as many.
        dropout: Of `mod6` and `mod7`.
        output_stride: 8, 16 or 32: strides beyond it become dilation; the values at the coarse positions stay as they
            were.
        reference_eval: Leaves the leaky ReLUs out in evaluation: what PyTorch-Encoding's released code computes, by a
            mistake of its own.
    """

    classifier_prefixes = ("fc.",)

    def __init__(
        self,
        *,
        depths: tuple[Depth, Depth, Depth, Depth, Depth, Depth] = (3, 3, 6, 3, 1, 1),
        width: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 64,
        dropout: tuple[Dropout, Dropout] = (0.3, 0.5),
        output_stride: Literal[8, 16, 32] = 32,
        reference_eval: bool = False,
        in_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        basic = partial(PreActivatedBlock, norm=norm, reference_eval=reference_eval)
        deep = partial(PreActivatedBottleneck, norm=norm, reference_eval=reference_eval)
        self.mod1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.pool2 = nn.MaxPool2d(3, 2, 1)
        self.mod2 = _stage(basic, depths[0], width, 2 * width, 2 * width)
        self.add_block("stem", 2 * width, 2, "mod1", "mod2")
        self.pool3 = nn.MaxPool2d(3, 2, 1)
        self.mod3 = _stage(basic, depths[1], 2 * width, 4 * width, 4 * width)
        self.add_block("stage1", 4 * width, 4, "mod3")
        self.mod4 = _stage(basic, depths[2], 4 * width, 8 * width, 8 * width, stride=2)
        self.add_block("stage2", 8 * width, 8, "mod4")
        self.mod5 = _stage(basic, depths[3], 8 * width, 8 * width, 16 * width, stride=2)
        self.add_block("stage3", 16 * width, min(16, output_stride), "mod5")
        self.mod6 = _stage(partial(deep, dropout=dropout[0]), depths[4], 16 * width, 8 * width, 32 * width, stride=2)
        self.mod7 = _stage(partial(deep, dropout=dropout[1]), depths[5], 32 * width, 16 * width, 64 * width)
        self.bn_out = build_norm(norm, 64 * width)
        self.activation = leaky_relu(reference_eval)
        self.add_block("stage4", 64 * width, output_stride, "mod6", "mod7", "bn_out")
        if output_stride < 32:
            replace_stride_with_dilation(self, output_stride)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        features = {}
        x = features["stem"] = self.run_layer(self.mod2, self.pool2(self.mod1(image)))
        x = features["stage1"] = self.run_layer(self.mod3, self.pool3(x))
        x = features["stage2"] = self.run_layer(self.mod4, x)
        x = features["stage3"] = self.run_layer(self.mod5, x)
        x = self.run_layer(self.mod7, self.run_layer(self.mod6, x))
        features["stage4"] = self.activation(self.bn_out(x))
        return features


def _stage(
    block: Callable[..., nn.Module], depth: int, in_channels: int, inner: int, out_channels: int, stride: int = 1
) -> nn.Sequential:
    following = [block(out_channels, inner, out_channels, 1) for _ in range(depth - 1)]
    return nn.Sequential(block(in_channels, inner, out_channels, stride), *following)


_DEPTHS = {38: (3, 3, 6, 3, 1, 1), 50: (3, 3, 6, 6, 3, 1)}

MODELS.variants(
    WideResNet,
    {
        **{f"wide_resnet{depth}": {"depths": depths} for depth, depths in _DEPTHS.items()},
        **{f"wideresnet{depth}": {"depths": depths} for depth, depths in _DEPTHS.items()},
    },
)
