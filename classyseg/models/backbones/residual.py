"""The residual blocks of networks that differ in their shortcuts: keys as torchvision and timm spell them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from classyseg.errors import ConfigError
from classyseg.layers import NormConfig, build_norm
from classyseg.models.classy_model import ClassyModel

KERNELS = {"basic": (3, 3), "bottleneck": (1, 3, 1)}
EXPANSION = {"basic": 1, "bottleneck": 4}


class ResidualBlock(nn.Module):
    """Convolutions with `kernels`, each with a norm, and a shortcut: (N, in, H, W) to (N, out, H / s, W / s).

    `channels` are the input's, those between the convolutions, and the output's. The first 3x3 convolution has the
    stride, every one the dilation. `downsample` fits the shortcut to the output; `se` weighs what is added to it.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        kernels: Sequence[int],
        *,
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Module | None = None,
        se: nn.Module | None = None,
        norm: NormConfig,
    ) -> None:
        super().__init__()
        inputs, width, out_channels = channels
        self.num_convolutions = len(kernels)
        for i, kernel in enumerate(kernels, start=1):
            outputs = out_channels if i == len(kernels) else width
            reach = dilation if kernel == 3 else 0
            conv_stride = stride if i == kernels.index(3) + 1 else 1
            conv = nn.Conv2d(inputs, outputs, kernel, conv_stride, reach, max(reach, 1), bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", build_norm(norm, outputs))
            inputs = outputs
        self.downsample = downsample
        self.se = se
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.num_convolutions + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            if i < self.num_convolutions:
                x = self.relu(x)
        if self.se is not None:
            x = self.se(x)
        return self.relu(x + shortcut)


class FourStages(ClassyModel):
    """A stem and four stages with torchvision's names: the blocks `stem` and `stage1` to `stage4`."""

    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        features = {}
        x = features["stem"] = self.relu(self.bn1(self.conv1(image)))
        x = self.maxpool(x)
        x = features["stage1"] = self.run_layer(self.layer1, x)
        x = features["stage2"] = self.run_layer(self.layer2, x)
        x = features["stage3"] = self.run_layer(self.layer3, x)
        features["stage4"] = self.run_layer(self.layer4, x)
        return features


def multi_grid_dilations(dilation: int, depth: int, factors: Sequence[int] | None) -> list[int]:
    """The dilations of a stage's `depth` blocks: `dilation`, times a factor each where there are `factors`.

    Raises: `ConfigError` for another number of factors.
    """
    if factors is not None and len(factors) != depth:
        raise ConfigError(
            "multi_grid", f"found {len(factors)} factors; the last stage has {depth} blocks, which need one each"
        )
    return [dilation * factor for factor in factors or (1,) * depth]
