"""MobileNetV3 as PaddleSeg has it: two published networks of one shape, told apart by `variant`."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import _make_divisible

from classyseg.config import MAX_CHANNELS, Float
from classyseg.layers import NormConfig, build_norm
from classyseg.layers.same import SameConv2d
from classyseg.models.backbones.dilation import replace_stride_with_dilation
from classyseg.models.backbones.paddle import initialise
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS
from classyseg.weights.key_maps import PADDLE_LEAVES, Naming, paddle_tensor

Variant = Literal["v2.6", "v2.5"]
ACTIVATIONS = {"relu": nn.ReLU, "hardswish": nn.Hardswish}
GATE_SLOPE: dict[Variant, float] = {"v2.6": 0.2, "v2.5": 1 / 6}


class Row(NamedTuple):
    """An inverted residual block at width 1."""

    kernel: int
    expanded: int
    channels: int
    gated: bool
    activation: Literal["relu", "hardswish"]
    stride: int


LARGE = (
    Row(3, 16, 16, False, "relu", 1),
    Row(3, 64, 24, False, "relu", 2),
    Row(3, 72, 24, False, "relu", 1),
    Row(5, 72, 40, True, "relu", 2),
    Row(5, 120, 40, True, "relu", 1),
    Row(5, 120, 40, True, "relu", 1),
    Row(3, 240, 80, False, "hardswish", 2),
    Row(3, 200, 80, False, "hardswish", 1),
    Row(3, 184, 80, False, "hardswish", 1),
    Row(3, 184, 80, False, "hardswish", 1),
    Row(3, 480, 112, True, "hardswish", 1),
    Row(3, 672, 112, True, "hardswish", 1),
    Row(5, 672, 160, True, "hardswish", 2),
    Row(5, 960, 160, True, "hardswish", 1),
    Row(5, 960, 160, True, "hardswish", 1),
)
SMALL = (
    Row(3, 16, 16, True, "relu", 2),
    Row(3, 72, 24, False, "relu", 2),
    Row(3, 88, 24, False, "relu", 1),
    Row(5, 96, 40, True, "hardswish", 2),
    Row(5, 240, 40, True, "hardswish", 1),
    Row(5, 240, 40, True, "hardswish", 1),
    Row(5, 120, 48, True, "hardswish", 1),
    Row(5, 144, 48, True, "hardswish", 1),
    Row(5, 288, 96, True, "hardswish", 2),
    Row(5, 576, 96, True, "hardswish", 1),
    Row(5, 576, 96, True, "hardswish", 1),
)
CLASSIFIER = ("last_second_conv.", "last_conv.", "fc.", "out.")
STAGES = {
    "large": (LARGE[:3], LARGE[3:6], LARGE[6:12], LARGE[12:]),
    "small": (SMALL[:1], SMALL[1:3], SMALL[3:8], SMALL[8:]),
}


class ConvNorm(nn.Module):
    """A convolution without bias, a norm and an activation: (N, in, H, W) to (N, out, H / stride, W / stride)."""

    def __init__(self, conv: nn.Conv2d, activation: str | None, norm: NormConfig) -> None:
        super().__init__()
        self.conv = conv
        self.bn = build_norm(norm, conv.out_channels)
        self.act = ACTIVATIONS[activation](inplace=True) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Gate(nn.Module):
    """Squeeze and excitation: multiplies each channel by a piecewise linear function of all channels' means."""

    def __init__(self, channels: int, slope: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 4, kernel_size=1)
        self.conv2 = nn.Conv2d(channels // 4, channels, kernel_size=1)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv2(F.relu(self.conv1(x.mean((2, 3), keepdim=True))))
        return x * (self.slope * weight + 0.5).clamp(0, 1)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, weigh the channels, project: (N, in, H, W) to (N, row.channels, H / s, W / s).

    The input is added where it fits.
    """

    def __init__(self, in_channels: int, row: Row, variant: Variant, norm: NormConfig) -> None:
        super().__init__()
        expand = nn.Conv2d(in_channels, row.expanded, kernel_size=1, bias=False)
        self.expand_conv = ConvNorm(expand, row.activation, norm)
        self.bottleneck_conv = ConvNorm(_depthwise(row, variant), row.activation, norm)
        self.mid_se = Gate(row.expanded, GATE_SLOPE[variant]) if row.gated else nn.Identity()
        self.linear_conv = ConvNorm(nn.Conv2d(row.expanded, row.channels, kernel_size=1, bias=False), None, norm)
        self.residual = row.stride == 1 and row.channels == in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear_conv(self.mid_se(self.bottleneck_conv(self.expand_conv(x))))
        return x + out if self.residual else out


@MODELS.register("mobilenet_v3")
class MobileNetV3(ClassyModel):
    """Blocks `stage1` to `stage4`: the last of each resolution, without the classifier's convolutions.

    `scale` multiplies the widths. `variant` says which of PaddleSeg's networks, whose parameters are alike and whose
    outputs are not:

    - `v2.6` and later: ReLU in the shallow blocks; gates of slope 0.2; an `output_stride` below 32 replaces strides by
      dilation, so that the values at the coarse positions stay (but for the gates' means). With 8 and scale 1 this is
      the published `*_os8`.
    - `v2.5` and before: hard swish everywhere; gates of slope 1/6; strided convolutions padded as `SAME`; an
      `output_stride` takes strides away and dilates nothing, and a block that loses its stride gains a residual
      connection where its channels allow it.

    Not torchvision's, nor timm's: every block expands, gates are as wide as a quarter of the block, unrounded. The
    state dict has the keys of PaddleSeg 2.6, with `layers` for its `blocks`; files of either version load.

    Files of PaddleSeg from before and after its version 2.6 are told apart by their keys; `variant` says which network
    they are run as.

    Source: Howard et al., "Searching for MobileNetV3", ICCV 2019; PaddleSeg's MobileNetV3.

    Args:
        arch: `large` or `small`.
        scale: Multiplies the widths.
        variant: The network that PaddleSeg publishes since 2.6, or `v2.5`, the one before: hard swish everywhere,
            steeper gates, `SAME` padding.
        output_stride: 2, 4, 8, 16 or 32: no block has a larger stride. `v2.6` replaces strides by dilation;
            `v2.5` only takes the strides away, as published.
    """

    classifier_prefixes = CLASSIFIER
    namings = (
        Naming("paddleseg", ((r"^layers\.", "blocks."), *PADDLE_LEAVES), CLASSIFIER, paddle_tensor),
        Naming(
            "paddleseg_v2.5",
            (
                (r"^conv\.", "conv1."),
                *((rf"^layers\.{i}\.", f"conv{i + 2}.") for i in range(len(LARGE))),
                *PADDLE_LEAVES,
            ),
            CLASSIFIER,
            paddle_tensor,
        ),
    )

    def __init__(
        self,
        *,
        arch: Literal["large", "small"] = "large",
        scale: Annotated[Float, Field(gt=0, le=100)] = 1.0,
        variant: Variant = "v2.6",
        output_stride: Literal[2, 4, 8, 16, 32] = 32,
        in_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        channels = _make_divisible(16 * scale, 8)
        stem = nn.Conv2d(in_channels, channels, kernel_size=3, stride=2, padding=1, bias=False)
        self.conv = ConvNorm(stem, "hardswish", norm)
        self.layers = nn.ModuleList()
        self.block_of: dict[int, str] = {}
        stride = 2
        for i, rows in enumerate(STAGES[arch], start=1):
            first = len(self.layers)
            for row in rows:
                if variant == "v2.5":
                    row = row._replace(activation="hardswish", stride=row.stride if stride < output_stride else 1)
                row = row._replace(
                    expanded=_make_divisible(scale * row.expanded, 8), channels=_make_divisible(scale * row.channels, 8)
                )
                self.layers.append(InvertedResidual(channels, row, variant, norm))
                channels, stride = row.channels, stride * row.stride
            self.block_of[len(self.layers) - 1] = f"stage{i}"
            names = [f"layers.{j}" for j in range(first, len(self.layers))]
            self.add_block(f"stage{i}", channels, min(stride, output_stride), *(["conv"] if i == 1 else []), *names)
        if variant == "v2.6" and output_stride < 32:
            replace_stride_with_dilation(self, output_stride)
        initialise(self)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x, features = self.conv(image), {}
        for i, layer in enumerate(self.layers):
            x = self.run_layer(layer, x)
            if i in self.block_of:
                features[self.block_of[i]] = x
        return features


def _depthwise(row: Row, variant: Variant) -> nn.Conv2d:
    if row.stride == 2 and variant == "v2.5":
        return SameConv2d(row.expanded, row.expanded, row.kernel, stride=2, groups=row.expanded)
    return nn.Conv2d(
        row.expanded, row.expanded, row.kernel, row.stride, row.kernel // 2, groups=row.expanded, bias=False
    )


SCALES = {"0_35": 0.35, "0_5": 0.5, "0_75": 0.75, "1_0": 1.0, "1_25": 1.25}

MODELS.variants(
    MobileNetV3,
    {
        **{
            f"mobilenet_v3_{arch}_x{name}": {"arch": arch, "scale": scale}
            for arch in STAGES
            for name, scale in SCALES.items()
        },
        **{f"mobilenet_v3_{arch}_x1_0_os8": {"arch": arch, "scale": 1.0, "output_stride": 8} for arch in STAGES},
    },
)
