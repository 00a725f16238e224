"""MobileNetV2, and MobileNetV3 as torchvision has it: its layers under classyseg's contract, with output strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torchvision.models import MobileNetV2 as ReferenceV2
from torchvision.models import MobileNetV3 as ReferenceV3
from torchvision.models import mobilenetv3

from classyseg.config import MAX_CHANNELS
from classyseg.layers import NormConfig, build_norm
from classyseg.models.backbones.dilation import replace_stride_with_dilation
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS
from classyseg.weights.cache import PublicWeights, torchvision_weights
from classyseg.weights.key_maps import Naming

Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Width = Annotated[float, Field(gt=0, le=100)]
OutputStride = Literal[8, 16, 32]

BLOCKS = ("stem", "stage1", "stage2", "stage3", "stage4")
V2_ENDS = (1, 3, 6, 13, 17)
V2_STAGES = ((1,), (2, 3), (4, 5, 6), (7, 8, 9, 10), (11, 12, 13), (14, 15, 16), (17,))
V3_ENDS = {"small": (0, 1, 3, 8, 11), "large": (1, 3, 6, 12, 15)}
V3_MOMENTUM, V3_EPS, V3_DROPOUT = 0.01, 1e-3, 0.2


class MobileNet(ClassyModel):
    """Layers one after the other, and the last ones at the strides 2, 4, 8, 16 and 32 as blocks.

    The convolution behind the deepest block, which the classifier reads, is the optional block `pre_logits`.
    """

    classifier_prefixes = ("classifier.",)

    def take(self, layers: Any, ends: Sequence[int], in_channels: int, output_stride: int) -> None:
        """Makes torchvision's `layers` this model's; the blocks end at the indices `ends`."""
        self.in_channels = in_channels
        self.features = layers
        if in_channels != 3:
            conv = layers[0][0]
            layers[0][0] = nn.Conv2d(in_channels, conv.out_channels, conv.kernel_size, 2, conv.padding, bias=False)
            nn.init.kaiming_normal_(layers[0][0].weight, mode="fan_out")
        self.ends = dict(zip(ends, BLOCKS, strict=True))
        first = 0
        for i, (end, name) in enumerate(self.ends.items(), start=1):
            made_by = [f"features.{j}" for j in range(first, end + 1)]
            self.add_block(name, layers[end].out_channels, min(2**i, output_stride), *made_by)
            first = end + 1
        last = len(layers) - 1
        self.add_block("pre_logits", layers[last].out_channels, output_stride, f"features.{last}", optional=True)
        if output_stride < 32:
            replace_stride_with_dilation(self, output_stride)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x, features = image, {}
        *layers, last = self.features
        for i, layer in enumerate(layers):
            x = self.run_layer(layer, x)
            if i in self.ends:
                features[self.ends[i]] = x
        if self.is_wanted("pre_logits"):
            features["pre_logits"] = self.run_layer(last, x)
        return features


TIMM_RULES = (
    (r"^features\.0\.0\.", "conv_stem."),
    (r"^features\.0\.1\.", "bn1."),
    (r"^features\.18\.0\.", "conv_head."),
    (r"^features\.18\.1\.", "bn2."),
    *(
        (rf"^features\.{i}\.conv\.", f"blocks.{s}.{b}.")
        for s, stage in enumerate(V2_STAGES)
        for b, i in enumerate(stage)
    ),
    (r"^(blocks\.0\.0\.)0\.0\.", r"\1conv_dw."),  # the one without an expansion
    (r"^(blocks\.0\.0\.)0\.1\.", r"\1bn1."),
    (r"^(blocks\.0\.0\.)1\.", r"\1conv_pw."),
    (r"^(blocks\.0\.0\.)2\.", r"\1bn2."),
    (r"^(blocks\.[1-6]\.\d\.)0\.0\.", r"\1conv_pw."),
    (r"^(blocks\.[1-6]\.\d\.)0\.1\.", r"\1bn1."),
    (r"^(blocks\.[1-6]\.\d\.)1\.0\.", r"\1conv_dw."),
    (r"^(blocks\.[1-6]\.\d\.)1\.1\.", r"\1bn2."),
    (r"^(blocks\.[1-6]\.\d\.)2\.", r"\1conv_pwl."),
    (r"^(blocks\.[1-6]\.\d\.)3\.", r"\1bn3."),
)


@MODELS.register("mobilenet_v2")
class MobileNetV2(MobileNet):
    """Blocks `stem` at stride 2 and `stage1` to `stage4`; torchvision's keys, without the classifier.

    An `output_stride` of 16 or 8 replaces the strides beyond it by dilation, which leaves the values at the coarse
    positions as they were. `width` multiplies all channels.

    Heads can also read `pre_logits`, what the classifier reads.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.

    Args:
        width: Multiplies all channels, which are rounded to multiples of 8.
        output_stride: 8, 16 or 32: no block has a larger stride; dilation takes the place of the strides beyond it.
    """

    namings = (Naming("timm", TIMM_RULES, ("classifier.",)),)

    def __init__(
        self,
        *,
        width: Width = 1.0,
        output_stride: OutputStride = 32,
        in_channels: Count = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        layers = ReferenceV2(num_classes=1, width_mult=width, norm_layer=lambda channels: build_norm(norm, channels))
        self.take(layers.features, V2_ENDS, in_channels, output_stride)

    @classmethod
    def known_weights(cls, variant: str) -> dict[str, PublicWeights]:
        return torchvision_weights(variant)


@MODELS.register("mobilenet_v3_torchvision")
class TorchvisionMobileNetV3(MobileNet):
    """MobileNetV3 as torchvision has it, which differs from PaddleSeg's: the same blocks, with torchvision's keys.

    The means of squeeze and excitation are over more positions where an `output_stride` dilates the layers.

    Source: Howard et al., "Searching for MobileNetV3", ICCV 2019.

    Args:
        size: `small` or `large`.
        width: Multiplies all channels, which are rounded to multiples of 8.
        output_stride: 8, 16 or 32: no block has a larger stride; dilation takes the place of the strides beyond it.
    """

    def __init__(
        self,
        *,
        size: Literal["small", "large"] = "large",
        width: Width = 1.0,
        output_stride: OutputStride = 32,
        in_channels: Count = 3,
        norm: NormConfig = NormConfig(eps=V3_EPS, momentum=V3_MOMENTUM),
    ) -> None:
        super().__init__()
        settings, last_channel = mobilenetv3._mobilenet_v3_conf(f"mobilenet_v3_{size}", width_mult=width)
        layers = ReferenceV3(
            settings, last_channel, num_classes=1, norm_layer=lambda channels: build_norm(norm, channels)
        )
        hidden = {"hidden": last_channel, "activation": "hardswish", "dropout": V3_DROPOUT}
        self.classifier_head = {"name": "linear", **hidden}
        self.take(layers.features, V3_ENDS[size], in_channels, output_stride)

    @classmethod
    def known_weights(cls, variant: str) -> dict[str, PublicWeights]:
        return torchvision_weights(variant.removesuffix("_torchvision"))


MODELS.variants(
    TorchvisionMobileNetV3,
    {"mobilenet_v3_small_torchvision": {"size": "small"}, "mobilenet_v3_large_torchvision": {"size": "large"}},
)
