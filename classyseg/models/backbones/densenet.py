"""DenseNet: every layer reads what all layers of its block before it gave."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation

from classyseg.config import MAX_CHANNELS
from classyseg.layers import NormConfig, build_norm
from classyseg.models.backbones.dilation import replace_stride_with_dilation
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS
from classyseg.weights.cache import PublicWeights, torchvision_weights
from classyseg.weights.key_maps import Naming

Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
MAX_STAGES, MAX_LAYERS = 8, 96
"""Up to which ClassyVision's spelling, which counts from 0, is known."""


class _Layer(nn.Sequential):
    """(N, C, H, W) to (N, C + growth_rate, H, W): the input, and after it what the layer made of it."""

    def __init__(
        self, in_channels: int, growth_rate: int, expansion: int, se_reduction_ratio: int | None, norm: NormConfig
    ) -> None:
        wide = expansion * growth_rate
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["norm1"] = build_norm(norm, in_channels)
        layers["relu1"] = nn.ReLU(inplace=True)
        layers["conv1"] = nn.Conv2d(in_channels, wide, 1, bias=False)
        layers["norm2"] = build_norm(norm, wide)
        layers["relu2"] = nn.ReLU(inplace=True)
        layers["conv2"] = nn.Conv2d(wide, growth_rate, 3, padding=1, bias=False)
        if se_reduction_ratio is not None:
            layers["se"] = SqueezeExcitation(growth_rate, max(1, growth_rate // se_reduction_ratio))
        super().__init__(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, super().forward(x)], 1)


def _transition(in_channels: int, out_channels: int, norm: NormConfig) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["norm"] = build_norm(norm, in_channels)
    layers["relu"] = nn.ReLU(inplace=True)
    layers["conv"] = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    layers["pool"] = nn.AvgPool2d(2, stride=2)
    return nn.Sequential(layers)


_PUBLISHED = Naming(
    "torchvision", ((r"(\.denselayer\d+)\.(norm|conv)([12])\.", r"\1.\2.\3."),), classifier=("classifier.",)
)
"""The files that torchvision publishes are older than its own spelling."""
_CLASSYVISION = Naming(
    "classyvision",
    (
        (r"^features\.conv0\.", "initial_block.0."),
        (r"^features\.norm0\.", "initial_block.1."),
        (r"^features\.norm5\.", "features.trunk_output.norm-final."),
        (r"\.(norm|conv)([12])\.", r".\1-\2."),
        (r"\.se\.fc1\.", ".se.excitation.0."),
        (r"\.se\.fc2\.", ".se.excitation.2."),
        *((rf"\.denselayer{i + 1}\.", f".layer-{i}.") for i in range(MAX_LAYERS)),
        *((rf"\.denseblock{i + 1}\.layer-", f".block_{i}.block{i}-") for i in range(MAX_STAGES)),
        *((rf"\.transition{i + 1}\.", f".transition-{i}.pool-") for i in range(MAX_STAGES)),
    ),
)


@MODELS.register("densenet")
class DenseNet(ClassyModel):
    """Blocks `stem` at stride 2 and `stage1` to `stage4`; the state dict has torchvision's keys, but no classifier.

    `small_input` is for images of 32 pixels: strides are then a quarter. An `output_stride` leaves the values at the
    coarse positions as they were. Strides after the stem round sizes down, as the reference's.

    Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017; squeeze and excitation as ClassyVision.

    Args:
        num_blocks: Layers of each stage; there may be up to 8 stages.
        init_planes: Channels of the stem.
        growth_rate: Channels that each layer adds.
        expansion: Inner channels of a layer, by `growth_rate`.
        small_input: A 3x3 stem at stride 1 without a pool.
        final_bn_relu: The last stage ends with norm and ReLU.
        use_se: Squeeze and excitation of what each layer adds.
        se_reduction_ratio: By which its channels are divided.
        output_stride: 32, 16 or 8: strides beyond it become dilation.
    """

    classifier_prefixes = ("classifier.",)
    rounding = "mixed"
    namings = (_PUBLISHED, _CLASSYVISION)

    def __init__(
        self,
        *,
        num_blocks: Annotated[tuple[Count, ...], Field(min_length=1, max_length=MAX_STAGES)] = (6, 12, 24, 16),
        init_planes: Count = 64,
        growth_rate: Count = 32,
        expansion: Count = 4,
        small_input: bool = False,
        final_bn_relu: bool = True,
        use_se: bool = False,
        se_reduction_ratio: Count = 16,
        output_stride: Literal[8, 16, 32] = 32,
        in_channels: Count = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        kernel, stride = (3, 1) if small_input else (7, 2)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv0"] = nn.Conv2d(in_channels, init_planes, kernel, stride, kernel // 2, bias=False)
        layers["norm0"] = build_norm(norm, init_planes)
        layers["relu0"] = nn.ReLU(inplace=True)
        layers["pool0"] = nn.Identity() if small_input else nn.MaxPool2d(3, stride=2, padding=1)
        self.features = nn.Sequential(layers)
        self.add_block("stem", init_planes, stride, "features.conv0", "features.norm0")
        channels, stride = init_planes, stride * stride
        for number, count in enumerate(num_blocks, start=1):
            names = [f"denseblock{number}"]
            if number > 1:
                names.insert(0, f"transition{number - 1}")
                self.features.add_module(names[0], _transition(channels, channels // 2, norm))
                channels, stride = channels // 2, stride * 2
            block: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(count):
                ratio = se_reduction_ratio if use_se else None
                block[f"denselayer{i + 1}"] = _Layer(channels, growth_rate, expansion, ratio, norm)
                channels += growth_rate
            self.features.add_module(f"denseblock{number}", nn.Sequential(block))
            if number == len(num_blocks) and final_bn_relu:
                names.append("norm5")
                self.features.add_module("norm5", build_norm(norm, channels))
            places = [f"features.{name}" for name in names]
            self.add_block(f"stage{number}", channels, min(stride, output_stride), *places)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        if output_stride < stride:
            replace_stride_with_dilation(self, output_stride)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        x = image
        for name, layer in self.features.named_children():
            if name == "norm5":
                features[list(features)[-1]] = F.relu(layer(x))
            elif name.startswith(("denseblock", "transition")):
                x = self.run_layer(layer, x)
            else:
                x = layer(x)
            if name == "relu0":
                features["stem"] = x
            elif name.startswith("denseblock"):
                features[f"stage{name.removeprefix('denseblock')}"] = x
        return features

    @classmethod
    def known_weights(cls, variant: str) -> dict[str, PublicWeights]:
        return torchvision_weights(variant)


MODELS.variants(
    DenseNet,
    {
        "densenet121": {"num_blocks": (6, 12, 24, 16)},
        "densenet161": {"num_blocks": (6, 12, 36, 24), "growth_rate": 48, "init_planes": 96},
        "densenet169": {"num_blocks": (6, 12, 32, 32)},
        "densenet201": {"num_blocks": (6, 12, 48, 32)},
    },
)
