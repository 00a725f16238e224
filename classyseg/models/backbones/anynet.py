"""AnyNet and RegNet: stages of one kind of block, whose widths are given or follow a line."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from classyseg.config import MAX_CHANNELS, MAX_DEPTH
from classyseg.errors import ConfigError
from classyseg.layers import NormConfig, build_norm
from classyseg.models.backbones.dilation import replace_stride_with_dilation
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS
from classyseg.weights.cache import PublicWeights, torchvision_weights
from classyseg.weights.key_maps import Naming

Depth = Annotated[int, Field(ge=1, le=MAX_DEPTH)]
Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Positive = Annotated[float, Field(gt=0, le=1000)]
StemType = Literal["simple_stem_in", "res_stem_in", "res_stem_cifar"]
BlockType = Literal["res_bottleneck_block", "res_bottleneck_linear_block", "res_basic_block", "vanilla_block"]
Activation = Literal["relu", "silu"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
WIDTH_STEP = 8
TIMM_DEPTH = 40
"""Of a stage in timm's spelling, which counts blocks from 1."""


class Stage(NamedTuple):
    width: int
    depth: int
    stride: int
    group_width: int
    bottleneck_multiplier: float


# -- blocks ----------------------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """What all blocks of a network share."""

    block: BlockType
    activation: type[nn.Module]
    se_ratio: float | None
    norm: NormConfig

    def conv(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, **options: int) -> nn.Sequential:
        """Convolution, norm and activation."""
        return Conv2dNormActivation(
            in_channels,
            out_channels,
            kernel,
            stride,
            norm_layer=partial(build_norm, self.norm),
            activation_layer=self.activation,
            **options,
        )

    def without_activation(self) -> _Kind:
        return self._replace(activation=None)  # type: ignore[arg-type]


class _Residual(nn.Module):
    """The activation of `f(x)` plus `x`, or plus its projection where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, f: nn.Module, kind: _Kind) -> None:
        super().__init__()
        self.proj: nn.Module | None = None
        if in_channels != out_channels or stride != 1:
            self.proj = kind.without_activation().conv(in_channels, out_channels, 1, stride)
        self.f = f
        self.activation = kind.activation(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.proj is None else self.proj(x)
        return self.activation(shortcut + self.f(x))


class _LinearResidual(nn.Module):
    """`f(x)`, plus `x` where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, f: nn.Module) -> None:
        super().__init__()
        self.adds = in_channels == out_channels and stride == 1
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x) if self.adds else self.f(x)


def _bottleneck(in_channels: int, stage: Stage, stride: int, kind: _Kind) -> nn.Module:
    """1x1, grouped 3x3, squeeze and excitation, 1x1; the squeeze is `se_ratio` of the block's input."""
    inner = round(stage.width * stage.bottleneck_multiplier)
    if inner % stage.group_width:
        raise ConfigError("group_widths", f"found {stage.group_width}, which does not divide {inner} channels")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["a"] = kind.conv(in_channels, inner, 1)
    layers["b"] = kind.conv(inner, inner, 3, stride, groups=inner // stage.group_width)
    if kind.se_ratio is not None:
        layers["se"] = SqueezeExcitation(inner, round(kind.se_ratio * in_channels), activation=kind.activation)
    layers["c"] = kind.without_activation().conv(inner, stage.width, 1)
    return nn.Sequential(layers)


def _basic(in_channels: int, stage: Stage, stride: int, kind: _Kind) -> nn.Module:
    """Two 3x3 convolutions, named as in ClassyVision."""
    conv = nn.Conv2d(stage.width, stage.width, 3, padding=1, bias=False)
    a = nn.Sequential(*kind.conv(in_channels, stage.width, 3, stride), conv)
    return nn.Sequential(OrderedDict(a=a, final_bn=build_norm(kind.norm, stage.width)))


def _block(in_channels: int, stage: Stage, stride: int, kind: _Kind) -> nn.Module:
    width = stage.width
    if kind.block == "vanilla_block":
        a, b = kind.conv(in_channels, width, 3, stride), kind.conv(width, width, 3)
        return nn.Sequential(OrderedDict(a=a, b=b))
    if kind.block == "res_basic_block":
        return _Residual(in_channels, width, stride, _basic(in_channels, stage, stride, kind), kind)
    bottleneck = _bottleneck(in_channels, stage, stride, kind)
    if kind.block == "res_bottleneck_linear_block":
        return _LinearResidual(in_channels, width, stride, bottleneck)
    return _Residual(in_channels, width, stride, bottleneck, kind)


def _stem(kind: _Kind, in_channels: int, width: int, stem_type: StemType) -> nn.Sequential:
    if stem_type == "res_stem_in":
        return nn.Sequential(*kind.conv(in_channels, width, 7, 2), nn.MaxPool2d(3, stride=2, padding=1))
    return kind.conv(in_channels, width, 3, 1 if stem_type == "res_stem_cifar" else 2)


STEM_STRIDES: dict[str, int] = {"simple_stem_in": 2, "res_stem_in": 4, "res_stem_cifar": 1}


# -- networks --------------------------------------------------------------------------------------------------------

_CLASSYVISION = Naming(
    "classyvision",
    (
        (r"^stem\.", "stem.stem."),
        (r"\.proj\.0\.", ".proj."),
        (r"\.proj\.1\.", ".bn."),
        (r"\.f\.c\.0\.", ".f.c."),
        (r"\.f\.c\.1\.", ".f.final_bn."),
        (r"\.f\.se\.fc1\.", ".f.se.excitation.0."),
        (r"\.f\.se\.fc2\.", ".f.se.excitation.2."),
    ),
)
_TIMM_LAYERS = {"f.a": "conv1", "f.b": "conv2", "f.c": "conv3", "proj": "downsample"}
_TIMM = Naming(
    "timm",
    (
        (r"^stem\.0\.", "stem.conv."),
        (r"^stem\.1\.", "stem.bn."),
        *((rf"^trunk_output\.block(\d+)\.block\d+-{i}\.", rf"s\1.b{i + 1}.") for i in range(TIMM_DEPTH)),
        *((rf"\.{ours}\.0\.", f".{theirs}.conv.") for ours, theirs in _TIMM_LAYERS.items()),
        *((rf"\.{ours}\.1\.", f".{theirs}.bn.") for ours, theirs in _TIMM_LAYERS.items()),
        (r"\.f\.se\.", ".se."),
    ),
    ("final_conv.", "head."),
)


class _Staged(ClassyModel):
    """A stem and stages; the state dict is spelled as torchvision's RegNet."""

    classifier_prefixes = ("fc.",)
    namings = (_TIMM, _CLASSYVISION)

    def _build(
        self,
        stages: Sequence[Stage],
        kind: _Kind,
        *,
        stem_type: StemType,
        stem_width: int,
        output_stride: int | None,
        in_channels: int,
    ) -> None:
        """Called once, in `__init__`."""
        self.in_channels = in_channels
        self.stem = _stem(kind, in_channels, stem_width, stem_type)
        stride = STEM_STRIDES[stem_type]
        limit = output_stride or stride * math.prod(stage.stride for stage in stages)
        self.add_block("stem", stem_width, min(stride, limit), "stem")
        self.trunk_output = nn.Sequential()
        channels = stem_width
        for number, stage in enumerate(stages, start=1):
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(stage.depth):
                blocks[f"block{number}-{i}"] = _block(channels, stage, stage.stride if i == 0 else 1, kind)
                channels = stage.width
            stride *= stage.stride
            self.trunk_output.add_module(f"block{number}", nn.Sequential(blocks))
            self.add_block(f"stage{number}", channels, min(stride, limit), f"trunk_output.block{number}")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if limit < stride:
            replace_stride_with_dilation(self, limit)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        features = {}
        x = features["stem"] = self.run_layer(self.stem, image)
        for number, stage in enumerate(self.trunk_output, start=1):
            x = features[f"stage{number}"] = self.run_layer(stage, x)
        return features


@MODELS.register("anynet")
class AnyNet(_Staged):
    """Blocks `stem` and `stage1`, `stage2`, ...: stages of `depths` blocks with `widths` channels.

    One kind of block; the first five keys have one value for each stage.

    Source: Radosavovic et al., "Designing Network Design Spaces", CVPR 2020, and ClassyVision's parametrisation.

    Args:
        depths: Blocks of each stage.
        widths: Channels of each stage.
        group_widths: Channels of a group in the bottlenecks' 3x3 convolution.
        bottleneck_multipliers: The channels of that convolution, by the stage's.
        strides: 1 or 2 each.
        stem_type: `simple_stem_in`: a 3x3 convolution at stride 2; `res_stem_in`: 7x7 at stride 2 and a maximum pool at
            stride 2; `res_stem_cifar`: 3x3 at stride 1.
        stem_width: Channels of the stem.
        block_type: `res_bottleneck_block`, `res_bottleneck_linear_block` (no activation after the sum),
            `res_basic_block`, `vanilla_block` (no residual).
        activation: `relu` or `silu`.
        use_se: Squeeze and excitation in the bottlenecks.
        se_ratio: The squeezed channels, by those of the block's input.
        output_stride: 4, 8, 16 or 32: strides beyond it become dilation; null leaves all.
    """

    def __init__(
        self,
        *,
        depths: tuple[Depth, ...],
        widths: tuple[Count, ...],
        group_widths: tuple[Count, ...],
        bottleneck_multipliers: tuple[Positive, ...],
        strides: tuple[Literal[1, 2], ...],
        stem_type: StemType = "simple_stem_in",
        stem_width: Count = 32,
        block_type: BlockType = "res_bottleneck_block",
        activation: Activation = "relu",
        use_se: bool = True,
        se_ratio: Positive = 0.25,
        output_stride: Literal[4, 8, 16, 32] | None = None,
        in_channels: Count = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        columns = (widths, depths, strides, group_widths, bottleneck_multipliers)
        if len({len(column) for column in columns}) > 1:
            raise ConfigError(
                "depths",
                f"found {len(depths)} stages, widths {len(widths)}, group_widths {len(group_widths)}, "
                f"bottleneck_multipliers {len(bottleneck_multipliers)}, strides {len(strides)}; give one value a stage",
            )
        self._build(
            [Stage(*row) for row in zip(*columns, strict=True)],
            _Kind(block_type, ACTIVATIONS[activation], se_ratio if use_se else None, norm),
            stem_type=stem_type,
            stem_width=stem_width,
            output_stride=output_stride,
            in_channels=in_channels,
        )


def _stages_on_a_line(
    depth: int, w_0: int, w_a: float, w_m: float, group_width: int, multiplier: float, *, exact: bool
) -> list[Stage]:
    """Block i's width is `w_0 + w_a i`, rounded to a power of `w_m` times `w_0`, then to a multiple of 8.

    Equal widths make a stage, whose 3x3 width is then rounded to the groups' width: to the nearest one where `exact`,
    else up where that would lose more than a tenth.
    """
    powers = np.round(np.log((np.arange(depth) * w_a + w_0) / w_0) / np.log(w_m))
    widths = (np.round(w_0 * np.power(w_m, powers) / WIDTH_STEP) * WIDTH_STEP).astype(int)
    stages = []
    for width, count in zip(*np.unique(widths, return_counts=True), strict=True):
        inner = int(width * multiplier)
        group = min(group_width, inner)
        rounded = round(inner / group) * group if exact else max(group, int(inner + group / 2) // group * group)
        if not exact and rounded < 0.9 * inner:
            rounded += group
        stages.append(Stage(int(rounded / multiplier), int(count), 2, group, multiplier))
    return stages


@MODELS.register("regnet")
class RegNet(_Staged):
    """Blocks `stem` at stride 2 and `stage1`, `stage2`, ...; the state dict has torchvision's keys, without its `fc`.

    The widths of `depth` blocks grow by `w_a` from `w_0`, in steps of the factor `w_m`. `width_rounding` to the groups
    is the nearest in the paper and in ClassyVision (`nearest`), in torchvision never less than nine tenths
    (`torchvision`): of the published networks, X-400MF, Y-800MF and Y-8GF differ by that. `output_stride` replaces the
    strides beyond it by dilation; null leaves all.

    An `anynet` whose widths follow a line. The names are the networks of the papers and of ClassyVision. torchvision's
    `regnet_x_400mf`, `regnet_y_800mf` and `regnet_y_8gf` have other widths, and so have its weights: here they end in
    `_torchvision`.

    Source: Radosavovic et al., "Designing Network Design Spaces", CVPR 2020; RegNetZ: Dollar et al., "Fast and Accurate
    Model Scaling", CVPR 2021.

    Args:
        depth: Blocks of all stages.
        w_0: Width of the first block, a multiple of 8.
        w_a: Growth of the width from block to block.
        w_m: Widths are rounded to `w_0` times powers of this; blocks of equal width make a stage.
        group_width: Channels of a group in the bottlenecks' 3x3 convolution.
        bottleneck_multiplier: The channels of that convolution, by the stage's.
        width_rounding: Of those channels to multiples of the group's; `torchvision`: to the nearest but never to less
            than nine tenths.
        stem_type: As of `anynet`.
        stem_width: Channels of the stem.
        block_type: As of `anynet`.
        activation: `relu` or `silu`.
        use_se: Squeeze and excitation in the bottlenecks.
        se_ratio: The squeezed channels, by those of the block's input.
        output_stride: 4, 8, 16 or 32: strides beyond it become dilation; null leaves all.
    """

    def __init__(
        self,
        *,
        depth: Depth,
        w_0: Annotated[int, Field(ge=8, multiple_of=8, le=MAX_CHANNELS)],
        w_a: Annotated[float, Field(ge=0, le=MAX_CHANNELS)],
        w_m: Annotated[float, Field(gt=1, le=1000)],
        group_width: Count,
        bottleneck_multiplier: Positive = 1.0,
        width_rounding: Literal["nearest", "torchvision"] = "nearest",
        stem_type: StemType = "simple_stem_in",
        stem_width: Count = 32,
        block_type: BlockType = "res_bottleneck_block",
        activation: Activation = "relu",
        use_se: bool = True,
        se_ratio: Positive = 0.25,
        output_stride: Literal[4, 8, 16, 32] | None = None,
        in_channels: Count = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        exact = width_rounding == "nearest"
        self._build(
            _stages_on_a_line(depth, w_0, w_a, w_m, group_width, bottleneck_multiplier, exact=exact),
            _Kind(block_type, ACTIVATIONS[activation], se_ratio if use_se else None, norm),
            stem_type=stem_type,
            stem_width=stem_width,
            output_stride=output_stride,
            in_channels=in_channels,
        )

    @classmethod
    def known_weights(cls, variant: str) -> dict[str, PublicWeights]:
        return {} if variant in OTHER_WIDTHS else torchvision_weights(variant.removesuffix(TORCHVISION))


def _line(depth: int, w_0: int, w_a: float, w_m: float, group_width: int, **more: object) -> dict[str, object]:
    return {"depth": depth, "w_0": w_0, "w_a": w_a, "w_m": w_m, "group_width": group_width, **more}


_Z = {
    "bottleneck_multiplier": 4.0,
    "block_type": "res_bottleneck_linear_block",
    "activation": "silu",
}
TORCHVISION = "_torchvision"
OTHER_WIDTHS = ("regnet_x_400mf", "regnet_y_800mf", "regnet_y_8gf")
"""Where torchvision's network of that name is another; it is `NAME_torchvision` here."""
VARIANTS = {
    "regnet_x_400mf": _line(22, 24, 24.48, 2.54, 16, use_se=False),
    "regnet_x_800mf": _line(16, 56, 35.73, 2.28, 16, use_se=False),
    "regnet_x_1_6gf": _line(18, 80, 34.01, 2.25, 24, use_se=False),
    "regnet_x_3_2gf": _line(25, 88, 26.31, 2.25, 48, use_se=False),
    "regnet_x_8gf": _line(23, 80, 49.56, 2.88, 120, use_se=False),
    "regnet_x_16gf": _line(22, 216, 55.59, 2.1, 128, use_se=False),
    "regnet_x_32gf": _line(23, 320, 69.86, 2.0, 168, use_se=False),
    "regnet_y_400mf": _line(16, 48, 27.89, 2.09, 8),
    "regnet_y_800mf": _line(14, 56, 38.84, 2.4, 16),
    "regnet_y_1_6gf": _line(27, 48, 20.71, 2.65, 24),
    "regnet_y_3_2gf": _line(21, 80, 42.63, 2.66, 24),
    "regnet_y_8gf": _line(17, 192, 76.82, 2.19, 56),
    "regnet_y_16gf": _line(18, 200, 106.23, 2.48, 112),
    "regnet_y_32gf": _line(20, 232, 115.89, 2.53, 232),
    "regnet_y_64gf": _line(20, 352, 147.48, 2.4, 328),
    "regnet_y_128gf": _line(27, 456, 160.83, 2.52, 264),
    "regnet_y_256gf": _line(27, 640, 124.47, 2.04, 848),
    "regnet_z_500mf": _line(21, 16, 10.7, 2.51, 4, **_Z),
    "regnet_z_4gf": _line(28, 48, 14.5, 2.226, 8, **_Z),
}
VARIANTS |= {f"{name}{TORCHVISION}": {**VARIANTS[name], "width_rounding": "torchvision"} for name in OTHER_WIDTHS}
MODELS.variants(RegNet, VARIANTS)
