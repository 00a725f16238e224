"""The residual blocks and stages of ResNet: torchvision's, and those that PyTorch-Encoding's switches make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from classyseg.errors import ConfigError
from classyseg.layers import CeilMeanPool2d, DropBlock2d, NormConfig, RectifiedConv2d, SplitAttentionConv2d, build_norm

EXPANSION = {"basic": 1, "bottleneck": 4}
DROP_SIZE = 3
NOT_OF_BASIC_BLOCKS = ("groups", "width_per_group", "avd", "radix", "rectified_conv", "dropblock")
NEEDS = {"avd_first": "avd", "rectify_avg": "rectified_conv", "dropblock_ramp": "dropblock"}


@dataclass(frozen=True)
class BlockOptions:
    """What the residual blocks of a stage have in common; the names are `ResNet`'s keys."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    groups: int = 1
    width_per_group: int = 64
    avg_down: bool = False
    avd: bool = False
    avd_first: bool = False
    radix: int = 1
    rectified_conv: bool = False
    rectify_avg: bool = False
    dropblock: float = 0.0
    dropblock_ramp: float = 0.0
    se_reduction: int | None = None
    dilate_second: bool = True
    norm: NormConfig = field(default_factory=NormConfig)

    def __post_init__(self) -> None:
        if self.block == "basic":
            for key in NOT_OF_BASIC_BLOCKS:
                if getattr(self, key) != getattr(BlockOptions, key):
                    raise ConfigError(key, f"found {getattr(self, key)}, which needs 'block: bottleneck'")
        elif not self.dilate_second:
            raise ConfigError("dilate_second", "found false, which needs 'block: basic'")
        for key, other in NEEDS.items():
            if getattr(self, key) and not getattr(self, other):
                raise ConfigError(key, f"found {getattr(self, key)}, which means nothing without {other}")
        if self.width_per_group % self.radix:
            raise ConfigError(
                "radix", f"found {self.radix}, which does not divide width_per_group {self.width_per_group}"
            )

    @property
    def needs_own_block(self) -> bool:
        return self.avd or self.radix > 1 or self.rectified_conv or self.dropblock > 0 or self.se_reduction is not None

    @property
    def conv(self) -> Callable[..., nn.Conv2d]:
        """What makes the convolutions that are larger than 1x1."""
        return partial(RectifiedConv2d, average=self.rectify_avg) if self.rectified_conv else nn.Conv2d

    def build_norm(self, channels: int) -> nn.Module:
        return build_norm(self.norm, channels)

    def build_drop(self) -> nn.Module:
        if self.dropblock == 0:
            return nn.Identity()
        return DropBlock2d(self.dropblock, DROP_SIZE, ramp=self.dropblock_ramp)

    def build_excitation(self, channels: int) -> nn.Module:
        if self.se_reduction is None:
            return nn.Identity()
        from torchvision.ops import SqueezeExcitation  # whose import takes a second

        return SqueezeExcitation(channels, max(1, channels // self.se_reduction))


class Place(NamedTuple):
    """Where a residual block stands: what it reads and gives, and how it moves over the map."""

    in_channels: int
    width: int
    stride: int
    dilation: int = 1
    shortcut: nn.Module | None = None
    pool: bool = False
    """Whether an average pool may take over the stride (`avd`)."""


def build_stage(
    options: BlockOptions, in_channels: int, width: int, stride: int, dilations: Sequence[int], base_dilation: int
) -> nn.Sequential:
    """The residual blocks of a stage, the first with `stride`: (N, in_channels, H, W) to `width` x expansion channels.

    `dilations` are those of the blocks, one each; `base_dilation` is the stage's own, which the second convolution of
    basic blocks keeps, unless `dilate_second` is false.
    """
    out_channels = width * EXPANSION[options.block]
    blocks: list[nn.Module] = []
    for dilation in dilations:
        shortcut = None
        if not blocks and (stride != 1 or in_channels != out_channels):
            shortcut = _shortcut(options, in_channels, out_channels, stride)
        place = Place(in_channels, width, stride, dilation, shortcut, pool=options.avd and not blocks)
        if options.block == "basic":
            kind = BasicBlock if options.se_reduction is None else ExcitedBasicBlock
            block = kind(options, place)
            set_dilation(block.conv1, dilation)
            set_dilation(block.conv2, base_dilation if options.dilate_second else 1)
            blocks.append(block)
        else:
            blocks.append((SwitchedBottleneck if options.needs_own_block else Bottleneck)(options, place))
        in_channels, stride = out_channels, 1
    return nn.Sequential(*blocks)


def set_dilation(conv: nn.Conv2d, dilation: int) -> None:
    """Gives a 3x3 convolution another dilation; its output keeps the size."""
    conv.dilation = conv.padding = (dilation, dilation)


def _shortcut(options: BlockOptions, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    if not options.avg_down:
        conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        return nn.Sequential(conv, options.build_norm(out_channels))
    pool = nn.Identity() if stride == 1 else CeilMeanPool2d()
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(pool, conv, options.build_norm(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, with torchvision's keys and its order of draws."""

    def __init__(self, options: BlockOptions, place: Place) -> None:
        super().__init__()
        width = place.width
        self.conv1 = nn.Conv2d(place.in_channels, width, 3, place.stride, padding=1, bias=False)
        self.bn1 = options.build_norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = options.build_norm(width)
        self.downsample = place.shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        # After the convolutions, as in torchvision: gradients are added in this order, and so keep their last bits.
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride and the groups, 1x1, and a shortcut; torchvision's keys and its order of draws."""

    def __init__(self, options: BlockOptions, place: Place) -> None:
        super().__init__()
        in_channels, width, stride, dilation, shortcut, _ = place
        inner = int(width * (options.width_per_group / 64)) * options.groups
        out_channels = width * EXPANSION["bottleneck"]
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = options.build_norm(inner)
        self.conv2: nn.Module = nn.Conv2d(inner, inner, 3, stride, dilation, dilation, options.groups, bias=False)
        self.bn2 = options.build_norm(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = options.build_norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)  # as in the basic block
        return self.relu(y)


class ExcitedBasicBlock(BasicBlock):
    """The basic block with squeeze and excitation before the sum."""

    def __init__(self, options: BlockOptions, place: Place) -> None:
        super().__init__(options, place)
        self.se = options.build_excitation(place.width)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.se(self.bn2(self.conv2(x)))
        x += identity
        return self.relu(x)


class SwitchedBottleneck(Bottleneck):
    """The bottleneck with split attention, rectified convolutions, dropped squares, squeeze and excitation.

    With `place.pool`, an average pool after the 3x3 convolution (or before it: `avd_first`) has the stride instead.
    """

    def __init__(self, options: BlockOptions, place: Place) -> None:
        super().__init__(options, place)
        stride, pool = place.stride, place.pool
        self.radix = options.radix
        self.pool_first = nn.AvgPool2d(3, stride, padding=1) if pool and options.avd_first else nn.Identity()
        self.pool_last = nn.AvgPool2d(3, stride, padding=1) if pool and not options.avd_first else nn.Identity()
        self.conv2 = _second_conv(options, self.get_submodule("conv2"), 1 if pool else stride)
        self.drop1 = options.build_drop()
        if self.radix > 1:
            del self.bn2
        else:
            self.drop2 = options.build_drop()
        self.drop3 = options.build_drop()
        self.se = options.build_excitation(self.conv3.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.drop1(self.bn1(self.conv1(x))))
        x = self.conv2(self.pool_first(x))
        if self.radix == 1:
            x = self.relu(self.drop2(self.bn2(x)))
        x = self.conv3(self.pool_last(x))
        x = self.se(self.drop3(self.bn3(x)))
        x += identity
        return self.relu(x)


def _second_conv(options: BlockOptions, plain: Any, stride: int) -> nn.Module:
    """What the switches put in the place of a bottleneck's 3x3 convolution, at `stride`."""
    channels, dilation, groups = plain.in_channels, plain.dilation[0], plain.groups
    if options.radix == 1:
        return options.conv(channels, channels, 3, stride, dilation, dilation, groups, bias=False)
    return SplitAttentionConv2d(
        channels,
        channels,
        stride=stride,
        dilation=dilation,
        groups=groups,
        radix=options.radix,
        conv=options.conv,
        drop=options.build_drop(),
        norm=options.norm,
    )
