"""EfficientNet and EfficientNetV2: torchvision's layers under classyseg's contract, with output strides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, cast

from pydantic import Field
from torch import Tensor, nn
from torchvision.models import efficientnet as reference

from classyseg.config import MAX_CHANNELS
from classyseg.layers import NormConfig, build_norm
from classyseg.models.backbones.dilation import replace_stride_with_dilation
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS
from classyseg.weights.cache import PublicWeights, torchvision_weights
from classyseg.weights.key_maps import Naming

Factor = Annotated[float, Field(gt=0, le=100)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]

STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
"""EfficientNet-B0: expansion, kernel, stride, input channels, output channels and blocks of each stage."""

STAGES_V2 = {
    "s": (
        ("fused", 1, 3, 1, 24, 24, 2),
        ("fused", 4, 3, 2, 24, 48, 4),
        ("fused", 4, 3, 2, 48, 64, 4),
        ("depthwise", 4, 3, 2, 64, 128, 6),
        ("depthwise", 6, 3, 1, 128, 160, 9),
        ("depthwise", 6, 3, 2, 160, 256, 15),
    ),
    "m": (
        ("fused", 1, 3, 1, 24, 24, 3),
        ("fused", 4, 3, 2, 24, 48, 5),
        ("fused", 4, 3, 2, 48, 80, 5),
        ("depthwise", 4, 3, 2, 80, 160, 7),
        ("depthwise", 6, 3, 1, 160, 176, 14),
        ("depthwise", 6, 3, 2, 176, 304, 18),
        ("depthwise", 6, 3, 1, 304, 512, 5),
    ),
    "l": (
        ("fused", 1, 3, 1, 32, 32, 4),
        ("fused", 4, 3, 2, 32, 64, 7),
        ("fused", 4, 3, 2, 64, 96, 7),
        ("depthwise", 4, 3, 2, 96, 192, 10),
        ("depthwise", 6, 3, 1, 192, 224, 19),
        ("depthwise", 6, 3, 2, 224, 384, 25),
        ("depthwise", 6, 3, 1, 384, 640, 7),
    ),
}
"""EfficientNetV2: the kind of block, then as in `STAGES`."""
KINDS = {"fused": reference.FusedMBConvConfig, "depthwise": partial(reference.MBConvConfig, width_mult=1, depth_mult=1)}
LAST_CHANNELS_V2 = 1280

LAST_STAGE = {"stem": 1, "stage1": 2, "stage2": 3, "stage3": 5, "stage4": None}
"""Which of the network's stages, counted from 1, ends each block; the last one, for `stage4`."""


# -- how other libraries spell the keys ------------------------------------------------------------------------------

_TIMM = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "3.0": "conv_pwl", "3.1": "bn3"}
_TIMM |= {"2.fc1": "se.conv_reduce", "2.fc2": "se.conv_expand"}
_TIMM_UNEXPANDED = {"0.0": "conv_dw", "0.1": "bn1", "2.0": "conv_pw", "2.1": "bn2"}
_TIMM_UNEXPANDED |= {"1.fc1": "se.conv_reduce", "1.fc2": "se.conv_expand"}
_TIMM_FUSED = {"0.0": "conv_exp", "0.1": "bn1", "1.0": "conv_pwl", "1.1": "bn2"}
_TIMM_FUSED_UNEXPANDED = {"0.0": "conv", "0.1": "bn1"}
_CLASSYVISION = {"0.0": "expand_conv", "0.1": "bn0", "1.0": "depthwise_conv", "1.1": "bn1", "3.0": "project_conv"}
_CLASSYVISION |= {"2.fc1": "se_reduce", "2.fc2": "se_expand", "3.1": "bn2"}
_CLASSYVISION_UNEXPANDED = {"0.0": "depthwise_conv", "0.1": "bn1", "2.0": "project_conv", "2.1": "bn2"}
_CLASSYVISION_UNEXPANDED |= {"1.fc1": "se_reduce", "1.fc2": "se_expand"}


def _naming(
    library: str,
    stages: Mapping[str, Mapping[str, str]],
    *,
    ends: tuple[str, str, str, str] = ("conv_stem", "bn1", "conv_head", "bn2"),
    block: str = r"blocks.{}.\1.",
    classifier: str = "classifier.",
) -> Naming:
    """`stages` are the names of a block's layers, by a pattern of the stages that have them."""
    places = (
        r"^features\.0\.0\.",
        r"^features\.0\.1\.",
        r"^features\.\d\.0\.(?!block)",
        r"^features\.\d\.1\.(?!block)",
    )
    rules = [(place, f"{name}.") for place, name in zip(places, ends, strict=True)]
    for stage, names in stages.items():
        for ours, theirs in names.items():
            rules.append((rf"^(features\.{stage}\.\d+)\.block\.{re.escape(ours)}\.", rf"\1.{theirs}."))
    rules += [(rf"^features\.{i + 1}\.(\d+)\.", block.format(i)) for i in range(7)]
    return Naming(library, tuple(rules), (classifier,))


# -- the networks ----------------------------------------------------------------------------------------------------


class _Wrapped(ClassyModel):
    """torchvision's network of the given stages, as blocks at the strides 2, 4, 8, 16 and 32."""

    classifier_prefixes = ("classifier.",)
    features: nn.Sequential

    def _wrap(
        self,
        stages: Sequence[Any],
        *,
        last_channels: int | None,
        stochastic_depth: float,
        output_stride: int,
        in_channels: int,
        norm: NormConfig,
    ) -> None:
        """Called once, in `__init__`. Without `last_channels`, the head has four times the last stage's."""
        network = reference.EfficientNet(
            stages, 0.0, stochastic_depth, 1, lambda channels: build_norm(norm, channels), last_channels
        )
        self.in_channels = in_channels
        self.features = network.features
        stem, head = cast(nn.Sequential, self.features[0]), cast(nn.Sequential, self.features[-1])
        if in_channels != 3:
            stem[0] = _like(cast(nn.Conv2d, stem[0]), in_channels)
        self._ends: dict[str, int] = {}
        first = 0
        for i, (name, last) in enumerate(LAST_STAGE.items(), start=1):
            self._ends[name] = last = last or len(stages)
            layers = [f"features.{stage}" for stage in range(first, last + 1)]
            self.add_block(name, stages[last - 1].out_channels, min(2**i, output_stride), *layers)
            first = last + 1
        channels = cast(nn.Conv2d, head[0]).out_channels
        self.add_block("pre_logits", channels, output_stride, f"features.{len(stages) + 1}", optional=True)
        if output_stride < 32:
            replace_stride_with_dilation(self, output_stride)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        x, first = image, 0
        for name, last in self._ends.items():
            for layer in self.features[first : last + 1]:
                x = self.run_layer(layer, x)
            features[name], first = x, last + 1
        if self.is_wanted("pre_logits"):
            features["pre_logits"] = self.run_layer(self.features[-1], x)
        return features

    @classmethod
    def known_weights(cls, variant: str) -> dict[str, PublicWeights]:
        return torchvision_weights(variant)


def _like(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    new = nn.Conv2d(in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(new.weight, mode="fan_out")
    return new


@MODELS.register("efficientnet")
class EfficientNet(_Wrapped):
    """Blocks `stem` at stride 2 and `stage1` to `stage4`; the state dict has torchvision's keys, but no classifier.

    An optional block `pre_logits`, computed on request, is what the reference's classifier averages. The norms of B0 to
    B4 are torchvision's; ClassyVision's have `eps: 1e-3` and `momentum: 0.01` in all sizes. Files of timm's `tf_`
    networks fit, but were trained with TensorFlow's padding, which this class does not have.

    Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019.

    Args:
        width: Scales the channels of B0, rounded to multiples of 8.
        depth: Scales the numbers of its blocks, rounded up.
        stochastic_depth: Rate at which the last block's residual branch is left out in training; in proportion before
            it.
        output_stride: 32, 16 or 8: strides beyond it become dilation.
    """

    namings = (
        _naming("timm", {"1": _TIMM_UNEXPANDED, "[2-7]": _TIMM}),
        _naming(
            "classyvision",
            {"1": _CLASSYVISION_UNEXPANDED, "[2-7]": _CLASSYVISION},
            ends=("conv_stem", "bn0", "conv_head", "bn1"),
            block=r"blocks.block{}-\1.",
            classifier="fc.",
        ),
    )

    def __init__(
        self,
        *,
        width: Factor = 1.0,
        depth: Factor = 1.0,
        stochastic_depth: Rate = 0.2,
        output_stride: Literal[8, 16, 32] = 32,
        in_channels: Count = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self._wrap(
            [reference.MBConvConfig(*row, width_mult=width, depth_mult=depth) for row in STAGES],
            last_channels=None,
            stochastic_depth=stochastic_depth,
            output_stride=output_stride,
            in_channels=in_channels,
            norm=norm,
        )


@MODELS.register("efficientnet_v2")
class EfficientNetV2(_Wrapped):
    """Blocks `stem` at stride 2 and `stage1` to `stage4`; the state dict has torchvision's keys, but no classifier.

    The early stages fuse expansion and depthwise convolution. Otherwise as `efficientnet`.

    Source: Tan and Le, "EfficientNetV2: Smaller Models and Faster Training", ICML 2021.

    Args:
        size: `s`, `m` or `l`.
        stochastic_depth: As of `efficientnet`.
        output_stride: 32, 16 or 8: strides beyond it become dilation.
    """

    namings = (_naming("timm", {"1": _TIMM_FUSED_UNEXPANDED, "[23]": _TIMM_FUSED, "[4-7]": _TIMM}),)

    def __init__(
        self,
        *,
        size: Literal["s", "m", "l"] = "s",
        stochastic_depth: Rate = 0.2,
        output_stride: Literal[8, 16, 32] = 32,
        in_channels: Count = 3,
        norm: NormConfig = NormConfig(eps=1e-3),
    ) -> None:
        super().__init__()
        self._wrap(
            [KINDS[kind](*row) for kind, *row in STAGES_V2[size]],
            last_channels=LAST_CHANNELS_V2,
            stochastic_depth=stochastic_depth,
            output_stride=output_stride,
            in_channels=in_channels,
            norm=norm,
        )


_TENSORFLOW = NormConfig(eps=1e-3, momentum=0.01)
"""What the weights that torchvision took over from TensorFlow were trained with: B5 to B7."""

MODELS.variants(
    EfficientNet,
    {
        "efficientnet_b0": {"width": 1.0, "depth": 1.0},
        "efficientnet_b1": {"width": 1.0, "depth": 1.1},
        "efficientnet_b2": {"width": 1.1, "depth": 1.2},
        "efficientnet_b3": {"width": 1.2, "depth": 1.4},
        "efficientnet_b4": {"width": 1.4, "depth": 1.8},
        "efficientnet_b5": {"width": 1.6, "depth": 2.2, "norm": _TENSORFLOW},
        "efficientnet_b6": {"width": 1.8, "depth": 2.6, "norm": _TENSORFLOW},
        "efficientnet_b7": {"width": 2.0, "depth": 3.1, "norm": _TENSORFLOW},
        "efficientnet_b8": {"width": 2.2, "depth": 3.6, "norm": _TENSORFLOW},
    },
)
MODELS.variants(EfficientNetV2, {f"efficientnet_v2_{size}": {"size": size} for size in STAGES_V2})
