"""ConvNeXt: torchvision's layers under classyseg's contract, with output strides."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torchvision.models import convnext as reference

from classyseg.config import MAX_CHANNELS
from classyseg.models.backbones.dilation import replace_stride_with_dilation
from classyseg.models.backbones.transformer import channels_second
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS
from classyseg.weights.cache import PublicWeights, torchvision_weights
from classyseg.weights.key_maps import Naming

Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]

TIMM_RULES = (
    (r"^features\.0\.", "stem."),
    *((rf"^features\.{2 * i}\.", f"stages.{i}.downsample.") for i in (1, 2, 3)),
    *((rf"^features\.{2 * i + 1}\.(\d+)\.", rf"stages.{i}.blocks.\1.") for i in range(4)),
    (r"\.block\.0\.", ".conv_dw."),
    (r"\.block\.2\.", ".norm."),
    (r"\.block\.3\.", ".mlp.fc1."),
    (r"\.block\.5\.", ".mlp.fc2."),
    (r"\.layer_scale$", ".gamma"),
)


class ChannelsSecond(nn.Module):
    """The last part of a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return channels_second(x)


class Layer(reference.CNBlock):
    """torchvision's, whose sizes stay free in a trace."""

    def __init__(self, channels: int, layer_scale: float, stochastic_depth: float) -> None:
        super().__init__(channels, layer_scale, stochastic_depth)
        self.block[6] = ChannelsSecond()


class MapNorm(nn.LayerNorm):
    """A layer norm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return channels_second(super().forward(x.permute(0, 2, 3, 1)))


def _scale_of_maps(key: str, tensor: Tensor) -> Tensor:
    """timm keeps the scale of a layer as (C), torchvision as (C, 1, 1)."""
    return tensor[:, None, None] if key.endswith(".layer_scale") and tensor.dim() == 1 else tensor


@MODELS.register("convnext")
class ConvNeXt(ClassyModel):
    """Blocks `stage1` to `stage4` at the strides 4 to 32; torchvision's keys, without the classifier.

    Sizes are rounded down, as patches that are not whole are left out. An `output_stride` of 16 or 8 replaces the
    strides beyond it by dilation, which leaves the values at the coarse positions as they were.

    Source: Liu et al., "A ConvNet for the 2020s", CVPR 2022.

    Args:
        depths: Layers of the four stages.
        widths: Channels of the four stages.
        layer_scale: What the learned scale of a layer starts from.
        stochastic_depth: The rate at which the last layer is skipped in training; it grows from 0 at the first.
        output_stride: 8, 16 or 32: no block has a larger stride; dilation takes the place of the strides beyond it.
    """

    classifier_head = MappingProxyType({"name": "linear", "layer_norm": True})
    classifier_prefixes = ("classifier.",)
    rounding = "down"
    namings = (Naming("timm", TIMM_RULES, ("head.",), _scale_of_maps),)

    def __init__(
        self,
        *,
        depths: tuple[Count, Count, Count, Count] = (3, 3, 9, 3),
        widths: tuple[Count, Count, Count, Count] = (96, 192, 384, 768),
        layer_scale: Annotated[float, Field(ge=0)] = 1e-6,
        stochastic_depth: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        output_stride: Literal[8, 16, 32] = 32,
        in_channels: Count = 3,
    ) -> None:
        super().__init__()
        nexts = [*widths[1:], None]
        settings = [reference.CNBlockConfig(*setting) for setting in zip(widths, nexts, depths, strict=True)]
        norm = partial(MapNorm, eps=1e-6)
        layers = reference.ConvNeXt(settings, stochastic_depth, layer_scale, 1, block=Layer, norm_layer=norm)
        self.in_channels = in_channels
        self.features: Any = layers.features
        if in_channels != 3:
            self.features[0][0] = nn.Conv2d(in_channels, widths[0], kernel_size=4, stride=4)
            nn.init.trunc_normal_(self.features[0][0].weight, std=0.02)
            nn.init.zeros_(self.features[0][0].bias)
        for i, width in enumerate(widths):
            made_by = (f"features.{2 * i}", f"features.{2 * i + 1}")
            self.add_block(f"stage{i + 1}", width, min(4 * 2**i, output_stride), *made_by)
        if output_stride < 32:
            replace_stride_with_dilation(self, output_stride)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x, features = image, {}
        for i, layer in enumerate(self.features):
            x = self.run_layer(layer, x)
            if i % 2:
                features[f"stage{(i + 1) // 2}"] = x
        return features

    @classmethod
    def known_weights(cls, variant: str) -> dict[str, PublicWeights]:
        return torchvision_weights(variant)


MODELS.variants(
    ConvNeXt,
    {
        "convnext_tiny": {"stochastic_depth": 0.1},
        "convnext_small": {"depths": (3, 3, 27, 3), "stochastic_depth": 0.4},
        "convnext_base": {"depths": (3, 3, 27, 3), "widths": (128, 256, 512, 1024), "stochastic_depth": 0.5},
        "convnext_large": {"depths": (3, 3, 27, 3), "widths": (192, 384, 768, 1536), "stochastic_depth": 0.5},
    },
)
