"""ResNeXt3D: residual networks over clips, with the stems and blocks of ClassyVision."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.errors import ConfigError
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS

Stem = Literal["resnext3d_stem", "r2plus1d_stem"]
Skip = Literal["postactivated_shortcut", "preactivated_shortcut"]
Residual = Literal[
    "basic_transformation",
    "basic_r2plus1d_transformation",
    "postactivated_bottleneck_transformation",
    "preactivated_bottleneck_transformation",
]
Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
PREACTIVATED = "preactivated_bottleneck_transformation"
STEM_MIDDLE_CHANNELS = 45
"""Between the two convolutions of the (2+1)D stem, as published."""


@MODELS.register("resnext3d")
class ResNeXt3D(ClassyModel):
    """Blocks `stem` and `stage1` to `stage4` of clips (N, 3, T, H, W): maps (N, C, t, h, w); images count as one frame.

    Files of the same network over single frames load, too: their kernels are repeated along time and divided by its
    length. State-dict keys are ClassyVision's.

    Heads for whole images read such maps: `linear`, `fully_connected`, `fully_convolutional_linear`.

    Source: Feichtenhofer et al., "SlowFast", ICCV 2019; Tran et al., "A Closer Look at Spatiotemporal Convolutions",
    CVPR 2018; Carreira and Zisserman, CVPR 2017 (inflation).

    Args:
        skip: `postactivated_shortcut`, or `preactivated_shortcut`: norm and ReLU before the projection.
        residual: `postactivated_bottleneck_transformation`, `preactivated_bottleneck_transformation`,
            `basic_transformation`, `basic_r2plus1d_transformation`.
        depths: Blocks of each stage.
        stem: `resnext3d_stem` or `r2plus1d_stem`, whose kernels are fixed.
        stem_channels: Channels of the stem.
        stem_temporal_kernel: The kernel of the stem along time.
        stem_spatial_kernel: The kernel of the stem along height and width.
        stem_maxpool: Halves the size once more.
        stage_channels: Of the first stage; each further one has twice as many.
        temporal_kernels: For each stage, the kernels along time of its bottlenecks, repeated.
        temporal_conv_1x1: For each stage: the kernel along time is in the first convolution of a bottleneck, not in the
            second.
        temporal_strides: For each stage.
        spatial_strides: For each stage.
        groups: Of the bottleneck's second convolution.
        width_per_group: Its channels in each group, in the first stage.
        zero_init_residual: Each block starts as its shortcut.
        frames: The clip's length where a shape must be assumed; any length works.
    """

    takes_single_frames = True

    def __init__(
        self,
        *,
        skip: Skip = "postactivated_shortcut",
        residual: Residual = "postactivated_bottleneck_transformation",
        depths: tuple[Count, ...] = (3, 4, 6, 3),
        stem: Stem = "resnext3d_stem",
        stem_channels: Count = 64,
        stem_temporal_kernel: Count = 3,
        stem_spatial_kernel: Count = 7,
        stem_maxpool: bool = False,
        stage_channels: Count = 256,
        temporal_kernels: tuple[tuple[Count, ...], ...] = ((3,), (3,), (3,), (3,)),
        temporal_conv_1x1: tuple[bool, ...] = (False, False, False, False),
        temporal_strides: tuple[Count, ...] = (1, 2, 2, 2),
        spatial_strides: tuple[Count, ...] = (1, 2, 2, 2),
        groups: Count = 1,
        width_per_group: Count = 64,
        zero_init_residual: bool = False,
        frames: Count = 8,
        in_channels: Count = 3,
    ) -> None:
        super().__init__()
        _check_lengths(
            len(depths),
            temporal_kernels=temporal_kernels,
            temporal_conv_1x1=temporal_conv_1x1,
            temporal_strides=temporal_strides,
            spatial_strides=spatial_strides,
        )
        self.in_channels = in_channels
        self.frames = frames
        kernel = (stem_temporal_kernel, stem_spatial_kernel, stem_spatial_kernel)
        path = _stem(stem, in_channels, stem_channels, kernel, stem_maxpool)
        self.stem = nn.Sequential(OrderedDict(stem=nn.Sequential(OrderedDict({"stem-path0": path}))))
        stride = 4 if stem_maxpool else 2
        self.add_block("stem", stem_channels, stride, "stem")
        self.stages = nn.ModuleList()
        channels = stem_channels
        for i, depth in enumerate(depths):
            out = stage_channels * 2**i
            blocks = _blocks(
                [channels] + [out] * depth,
                (temporal_strides[i], spatial_strides[i]),
                partial(
                    _residual,
                    residual,
                    inner=groups * width_per_group * 2**i,
                    groups=groups,
                    in_first=temporal_conv_1x1[i],
                ),
                temporal_kernels[i],
                skip,
                first_stage=i == 0,
            )
            self.stages.append(_stage(i + 1, blocks, out if i == len(depths) - 1 and residual == PREACTIVATED else 0))
            channels, stride = out, stride * spatial_strides[i]
            self.add_block(f"stage{i + 1}", channels, stride, f"stages.{i}")
        _initialise(self, zero_init_residual)

    def input_shape(self, height: int, width: int) -> tuple[int, ...]:
        return (self.in_channels, self.frames, height, width)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        clip = image.unsqueeze(2) if image.dim() == 4 else image
        features = {}
        x = features["stem"] = self.run_layer(self.stem, clip)
        for i, stage in enumerate(self.stages, start=1):
            x = features[f"stage{i}"] = self.run_layer(stage, x)
        return features

    def fit_tensor(self, key: str, tensor: Tensor) -> Tensor:
        own = self.get_parameter(key) if tensor.dim() == 5 and tensor.shape[2] == 1 else tensor
        frames = own.shape[2] if own.dim() == 5 else 1
        return tensor.repeat(1, 1, frames, 1, 1) / frames if frames > 1 and own is not tensor else tensor


def _check_lengths(stages: int, **by_stage: Sequence[object]) -> None:
    for name, values in by_stage.items():
        if len(values) != stages:
            raise ConfigError(name, f"found {len(values)} values; depths gives {stages} stages, one each")


class _Block(nn.Module):
    """The sum of a residual and a shortcut, the input itself where there is none; then ReLU."""

    def __init__(self, residual: nn.Module, skip: nn.Module | None) -> None:
        super().__init__()
        if skip is not None:
            self.skip = skip
        self.residual = residual
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.skip(x) if hasattr(self, "skip") else x
        return self.relu(shortcut + self.residual(x))


def _blocks(
    channels: list[int],
    stride: tuple[int, int],
    residual: Callable[..., nn.Module],
    temporal_kernels: Sequence[int],
    skip: Skip,
    *,
    first_stage: bool,
) -> list[nn.Module]:
    """The blocks of a stage, whose inputs and outputs have `channels`; the first one takes `stride` (time, space)."""
    blocks: list[nn.Module] = []
    for j, (before, after) in enumerate(pairwise(channels)):
        plain = first_stage and j == 0  # the stem has just normalised and activated
        own_stride = stride if j == 0 else (1, 1)
        kernel = temporal_kernels[j % len(temporal_kernels)]
        body = residual(before, after, stride=own_stride, temporal_kernel=kernel, preactivated=not plain)
        blocks.append(_Block(body, _skip(skip, before, after, own_stride, not plain)))
    return blocks


def _stage(number: int, blocks: Sequence[nn.Module], activated: int) -> nn.Sequential:
    """The blocks under ClassyVision's names; then a norm and ReLU of `activated` channels, unless that is 0."""
    parts = OrderedDict((f"pathway0-stage{number}-block{j}", block) for j, block in enumerate(blocks))
    if activated:
        last = next(reversed(parts))
        parts[f"{last}-bn"], parts[f"{last}-relu"] = nn.BatchNorm3d(activated), nn.ReLU(inplace=True)
    return nn.Sequential(OrderedDict(pathway0=nn.Sequential(parts)))


def _conv(
    in_channels: int, out_channels: int, kernel: tuple[int, ...], stride: tuple[int, ...] = (1, 1, 1), groups: int = 1
) -> nn.Conv3d:
    padding = tuple(k // 2 for k in kernel)
    return nn.Conv3d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)  # type: ignore[arg-type]


def _space_then_time(
    in_channels: int, out_channels: int, stride: tuple[int, int], groups: int = 1, middle: int | None = None
) -> nn.Sequential:
    """A (2+1)D convolution; by default with as many weights as the 3x3x3 one that it replaces."""
    space, time = 9 * in_channels, 3 * out_channels
    middle = middle or int(27 * in_channels * out_channels / (space + time))
    return nn.Sequential(
        _conv(in_channels, middle, (1, 3, 3), (1, stride[1], stride[1]), groups),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        _conv(middle, out_channels, (3, 1, 1), (stride[0], 1, 1), groups),
    )


def _stem(kind: Stem, in_channels: int, channels: int, kernel: tuple[int, int, int], maxpool: bool) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if kind == "r2plus1d_stem":  # its kernels are fixed
        parts["conv"] = _space_then_time(in_channels, channels, (1, 2), middle=STEM_MIDDLE_CHANNELS)
    else:
        parts["conv"] = _conv(in_channels, channels, kernel, (1, 2, 2))
    parts["bn"], parts["relu"] = nn.BatchNorm3d(channels), nn.ReLU(inplace=True)
    if maxpool:
        parts["pool_layer"] = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
    return nn.Sequential(parts)


def _skip(
    kind: Skip, in_channels: int, out_channels: int, stride: tuple[int, int], preactivated: bool
) -> nn.Module | None:
    if in_channels == out_channels and stride == (1, 1):
        return None
    conv = _conv(in_channels, out_channels, (1, 1, 1), (stride[0], stride[1], stride[1]))
    parts: OrderedDict[str, nn.Module] = OrderedDict(branch1=conv)
    if kind == "postactivated_shortcut":
        parts["branch1_bn"] = nn.BatchNorm3d(out_channels)
    elif preactivated:
        parts["branch1_bn"], parts["branch1_relu"] = nn.BatchNorm3d(in_channels), nn.ReLU(inplace=True)
        parts.move_to_end("branch1")
    return nn.Sequential(parts)


def _residual(
    kind: Residual,
    in_channels: int,
    out_channels: int,
    *,
    inner: int,
    groups: int,
    stride: tuple[int, int],
    temporal_kernel: int,
    in_first: bool,
    preactivated: bool,
) -> nn.Module:
    if kind in ("basic_transformation", "basic_r2plus1d_transformation"):
        if kind == "basic_transformation":
            strides = (stride[0], stride[1], stride[1])
            first: nn.Module = _conv(in_channels, out_channels, (3, 3, 3), strides, groups)
            second: nn.Module = _conv(out_channels, out_channels, (3, 3, 3), groups=groups)
        else:
            first = _space_then_time(in_channels, out_channels, stride, groups)
            second = _space_then_time(out_channels, out_channels, (1, 1), groups)
        norms = nn.BatchNorm3d(out_channels), nn.BatchNorm3d(out_channels)
        transform = nn.Sequential(first, norms[0], nn.ReLU(inplace=True), second, norms[1])
        return nn.Sequential(OrderedDict(transform=transform))
    kernels = (temporal_kernel, 1) if in_first else (1, temporal_kernel)
    convs = {
        "a": _conv(in_channels, inner, (kernels[0], 1, 1)),
        "b": _conv(inner, inner, (kernels[1], 3, 3), (stride[0], stride[1], stride[1]), groups),
        "c": _conv(inner, out_channels, (1, 1, 1)),
    }
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for name, conv in convs.items():
        if kind == PREACTIVATED:
            if name != "a" or preactivated:
                parts[f"branch2{name}_bn"] = nn.BatchNorm3d(conv.in_channels)
                parts[f"branch2{name}_relu"] = nn.ReLU(inplace=True)
            parts[f"branch2{name}"] = conv
        else:
            parts[f"branch2{name}"] = conv
            parts[f"branch2{name}_bn"] = nn.BatchNorm3d(conv.out_channels)
            if name != "c":
                parts[f"branch2{name}_relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)


def _initialise(model: ResNeXt3D, zero_init_residual: bool) -> None:
    """Kaiming's for convolutions; what ends a residual starts at 0 where that is asked for."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for block in model.modules() if zero_init_residual else ():
        if isinstance(block, _Block):
            *_, last = (m for m in block.residual.modules() if isinstance(m, nn.Conv3d | nn.BatchNorm3d))
            with torch.no_grad():
                last.weight.zero_()


_IMAGE: dict[str, object] = {
    "stem_temporal_kernel": 1,
    "stem_maxpool": True,
    "temporal_kernels": ((1,), (1,), (1,), (1,)),
    "temporal_strides": (1, 1, 1, 1),
    "frames": 1,
}
_BASIC: dict[str, object] = {"depths": (2, 2, 2, 2), "stage_channels": 64}

MODELS.variants(
    ResNeXt3D,
    {
        "resnext3d_18": {**_BASIC, "residual": "basic_transformation"},
        "r2plus1d_18": {**_BASIC, "residual": "basic_r2plus1d_transformation", "stem": "r2plus1d_stem"},
        "resnext3d_50": {"depths": (3, 4, 6, 3)},
        "resnext3d_50_image": _IMAGE,
        "resnext3d_50_32x4d_preactivated": {
            "residual": PREACTIVATED,
            "skip": "preactivated_shortcut",
            "groups": 32,
            "width_per_group": 4,
        },
    },
)
