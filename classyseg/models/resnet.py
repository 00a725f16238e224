"""ResNet: torchvision's layers under classyseg's contract, with output strides and multi-grid for every depth."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torchvision.models import resnet as reference

from classyseg.config import ConfigError
from classyseg.layers import NormConfig, build_norm
from classyseg.models.classy_model import ClassyModel
from classyseg.models.dilation import replace_stride_with_dilation
from classyseg.models.store import PublicWeights, torchvision_weights
from classyseg.registry import MODELS

BLOCK_KINDS = {"basic": reference.BasicBlock, "bottleneck": reference.Bottleneck}


@MODELS.register("resnet")
class ResNet(ClassyModel):
    """Blocks `stem` at stride 2 and `stage1` to `stage4`; the state dict has torchvision's keys, without its `fc`.

    `depths` are the residual blocks of the four stages. An `output_stride` of 16 or 8 replaces the strides beyond it
    by dilation, which leaves the values at the coarse positions as they were. `multi_grid` multiplies the dilation of
    the last stage's blocks, one factor each.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (with the stride in the 3x3
    convolution, as torchvision); multi-grid: Chen et al., arXiv 1706.05587.
    """

    classifier_prefixes = ("fc.",)

    def __init__(
        self,
        *,
        block: Literal["basic", "bottleneck"] = "bottleneck",
        depths: tuple[
            Annotated[int, Field(ge=1)],
            Annotated[int, Field(ge=1)],
            Annotated[int, Field(ge=1)],
            Annotated[int, Field(ge=1)],
        ] = (3, 4, 6, 3),
        output_stride: Literal[8, 16, 32] = 32,
        multi_grid: tuple[Annotated[int, Field(ge=1)], ...] | None = None,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        kind = BLOCK_KINDS[block]
        layers = reference.ResNet(kind, list(depths), num_classes=1, norm_layer=lambda c: build_norm(norm, c))
        self.in_channels = in_channels
        self.layer1: nn.Module
        self.layer2: nn.Module
        self.layer3: nn.Module
        self.layer4: nn.Module
        self.conv1 = layers.conv1 if in_channels == 3 else _first_convolution(in_channels)
        self.bn1, self.relu, self.maxpool = layers.bn1, layers.relu, layers.maxpool
        self.add_block("stem", 64, 2, "conv1", "bn1")
        for i in range(1, 5):
            setattr(self, f"layer{i}", getattr(layers, f"layer{i}"))
            stride = min(2 ** (i + 1), output_stride)
            self.add_block(f"stage{i}", 64 * 2 ** (i - 1) * kind.expansion, stride, f"layer{i}")
        if output_stride < 32:
            replace_stride_with_dilation(self, output_stride)
        if multi_grid is not None:
            _apply_multi_grid(self.layer4, multi_grid, 32 // output_stride)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        features = {}
        x = features["stem"] = self.relu(self.bn1(self.conv1(image)))
        x = self.maxpool(x)
        x = features["stage1"] = self.run(self.layer1, x)
        x = features["stage2"] = self.run(self.layer2, x)
        x = features["stage3"] = self.run(self.layer3, x)
        features["stage4"] = self.run(self.layer4, x)
        return features

    @classmethod
    def known_weights(cls, variant: str) -> dict[str, PublicWeights]:
        return torchvision_weights(variant)


def _first_convolution(in_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _apply_multi_grid(layer: nn.Module, factors: tuple[int, ...], dilation: int) -> None:
    blocks = list(layer.children())
    if len(factors) != len(blocks):
        raise ConfigError(
            f"multi_grid: found {len(factors)} factors; the last stage has {len(blocks)} blocks, which need one each"
        )
    for block, factor in zip(blocks, factors, strict=True):
        for conv in block.modules():
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                _set_dilation(conv, factor * dilation)


def _set_dilation(conv: nn.Conv2d, dilation: int) -> None:
    conv.dilation = (dilation, dilation)
    conv.padding = (dilation, dilation)


MODELS.variants(
    ResNet,
    {
        "resnet18": {"block": "basic", "depths": (2, 2, 2, 2)},
        "resnet34": {"block": "basic", "depths": (3, 4, 6, 3)},
        "resnet50": {"depths": (3, 4, 6, 3)},
        "resnet101": {"depths": (3, 4, 23, 3)},
        "resnet152": {"depths": (3, 8, 36, 3)},
    },
)
