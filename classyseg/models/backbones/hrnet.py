"""HRNet: branches at four resolutions, kept from the start to the end and fused again and again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.config import MAX_CHANNELS
from classyseg.layers import NormConfig, build_norm
from classyseg.layers.same import SameConv2d
from classyseg.models.backbones.residual import EXPANSION, KERNELS, ResidualBlock
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS
from classyseg.weights.key_maps import PADDLE_LEAVES, Naming, paddle_tensor

Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
PerStage = tuple[tuple[Count], tuple[Count, Count], tuple[Count, Count, Count], tuple[Count, Count, Count, Count]]
Padding = Literal["same", "symmetric"]
Upsampling = Literal["bilinear", "nearest"]
STEM_CHANNELS = 64
SE_REDUCTION = 16
INITIAL_STD = 1e-3


@dataclass(frozen=True)
class Resize:
    """Features (N, C, h, w) at `size`."""

    mode: Upsampling
    align_corners: bool

    def __call__(self, x: Tensor, size: Sequence[int]) -> Tensor:
        if self.mode == "nearest":
            return F.interpolate(x, tuple(size), mode="nearest")
        return F.interpolate(x, tuple(size), mode="bilinear", align_corners=self.align_corners)


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by a sigmoid of all channels' means: (N, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = max(1, channels // SE_REDUCTION)
        self.squeeze = nn.Linear(channels, width)
        self.excitation = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.excitation(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return x * weight[:, :, None, None]


class HighResolutionModule(nn.Module):
    """Residual blocks on each branch, then each branch plus all others at its size, with a ReLU.

    Branch i, (N, channels[i], h / 2^i, w / 2^i), stays of that shape. Coarser branches are fitted by a 1x1 convolution
    and resized; finer ones go through 3x3 convolutions at stride 2.
    """

    def __init__(self, channels: Sequence[int], num_blocks: Sequence[int], parts: Parts) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            parts.blocks("basic", width, width, count) for width, count in zip(channels, num_blocks, strict=True)
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fusion(channels, source, target, parts) for source in range(len(channels)))
            for target in range(len(channels))
        )
        self.resize = parts.resize

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        branches = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
        outputs = []
        for i, layers in enumerate(self.fuse_layers):
            total = branches[i]
            for j, layer in enumerate(layers.children()):
                if j != i:
                    other = layer(branches[j])
                    total = total + (self.resize(other, total.shape[2:]) if j > i else other)
            outputs.append(F.relu(total, inplace=True))
        return outputs


class Stage(nn.Sequential):
    """High-resolution modules, one after the other, each on all branches."""

    def forward(self, *branches: Tensor) -> Sequence[Tensor]:  # type: ignore[override]
        current: Sequence[Tensor] = branches
        for module in self:
            current = module(*current)
        return current


@dataclass(frozen=True)
class Parts:
    """Makes the layers of a network whose options it holds."""

    padding: Padding
    has_se: bool
    resize: Resize
    norm: NormConfig

    def unit(
        self, in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, relu: bool = True
    ) -> nn.Module:
        """A convolution and a norm, and a ReLU unless it is left to who reads it."""
        layers = [self.conv(in_channels, out_channels, kernel, stride), build_norm(self.norm, out_channels)]
        return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))

    def conv(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv2d:
        if stride == 2 and self.padding == "same":
            return SameConv2d(in_channels, out_channels, kernel, stride=2)
        return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)

    def blocks(self, kind: Literal["basic", "bottleneck"], in_channels: int, width: int, count: int) -> nn.Module:
        channels = width * EXPANSION[kind]
        return nn.Sequential(
            *(
                ResidualBlock(
                    (channels if i else in_channels, width, channels),
                    KERNELS[kind],
                    downsample=self.unit(in_channels, channels, kernel=1, relu=False)
                    if i == 0 and kind == "bottleneck"
                    else None,
                    se=SqueezeExcitation(channels) if self.has_se else None,
                    norm=self.norm,
                )
                for i in range(count)
            )
        )

    def transition(self, before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
        """From the channels of the branches `before` to those `after`; new branches halve the coarsest one."""
        kept = [
            nn.Identity() if channels == wanted else self.unit(channels, wanted)
            for channels, wanted in zip(before, after, strict=False)
        ]
        new = [nn.Sequential(self.unit(before[-1], wanted, stride=2)) for wanted in after[len(before) :]]
        return nn.ModuleList([*kept, *new])


def _fusion(channels: Sequence[int], source: int, target: int, parts: Parts) -> nn.Module:
    """What fits the branch `source` to the branch `target`; a coarser one has to be resized after it."""
    if source == target:
        return nn.Identity()
    if source > target:
        return parts.unit(channels[source], channels[target], kernel=1, relu=False)
    halvings = [parts.unit(channels[source], channels[source], stride=2) for _ in range(target - source - 1)]
    return nn.Sequential(*halvings, parts.unit(channels[source], channels[target], stride=2, relu=False))


def _passed(transition: nn.ModuleList, branches: Sequence[Tensor]) -> list[Tensor]:
    return [layer(branches[min(i, len(branches) - 1)]) for i, layer in enumerate(transition)]


# -- PaddleSeg's keys ------------------------------------------------------------------------------------------------


def _one_up(form: str) -> Callable[[re.Match[str]], str]:
    """`form` with the groups of a match, numbers from zero as PaddleSeg counts them: from one."""

    def replace(match: re.Match[str]) -> str:
        return form.format(*(int(group) + 1 for group in match.groups()))

    return replace


PADDLESEG = Naming(
    "paddleseg",
    (
        (r"^conv([12])\.", r"conv_layer1_\1._conv."),
        (r"^bn([12])\.", r"conv_layer1_\1._batch_norm."),
        (r"^layer1\.(\d+)\.", _one_up("la1.bb_layer2_{}.")),
        *(
            rule
            for k in (1, 2, 3)
            for rule in (
                # a new branch's convolution is one level deeper
                (rf"^transition{k}\.(\d)\.0\.(?=\d)", rf"transition{k}.\1."),
                (rf"^transition{k}\.(\d)\.", _one_up(f"tr{k}.transition_tr{k}_layer_{{}}.")),
            )
        ),
        *(
            rule
            for s in (2, 3, 4)
            for rule in (
                (
                    rf"^stage{s}\.(\d+)\.branches\.(\d)\.(\d+)\.",
                    _one_up(f"st{s}.stage_st{s}_{{0}}.branches_func.bb_st{s}_{{0}}_branch_layer_{{1}}_{{2}}."),
                ),
                (
                    rf"^stage{s}\.(\d+)\.fuse_layers\.(\d)\.(\d)\.(\d)\.(?=\d)",
                    _one_up(f"st{s}.stage_st{s}_{{0}}.fuse_func.residual_st{s}_{{0}}_layer_{{1}}_{{2}}_{{3}}."),
                ),
                (
                    rf"^stage{s}\.(\d+)\.fuse_layers\.(\d)\.(\d)\.",
                    _one_up(f"st{s}.stage_st{s}_{{0}}.fuse_func.residual_st{s}_{{0}}_layer_{{1}}_{{2}}."),
                ),
            )
        ),
        (r"\.downsample\.", ".conv_down."),
        (r"\.0\.(?=[^.]+$)", "._conv."),
        (r"\.1\.(?=[^.]+$)", "._batch_norm."),
        (r"\.conv(\d)\.(?=[^.]+$)", r".conv\1._conv."),
        (r"\.bn(\d)\.(?=[^.]+$)", r".conv\1._batch_norm."),
        *PADDLE_LEAVES,
    ),
    classifier=("classifier.", "cls_head.", "last_cls_out.", "out."),
    tensor=paddle_tensor,
)


@MODELS.register("hrnet")
class HRNet(ClassyModel):
    """One block, `stage4` at stride 4: the four branches at the finest one's size, concatenated.

    Heads may read the branches as they are: `branch1` to `branch4`, at strides 4 to 32.

    PaddleSeg's network pads strided convolutions as `same` and fuses branches by bilinear upsampling, with
    `align_corners` for inputs of odd sides. The original, and timm's, is `padding: symmetric` with `fuse_upsample:
    nearest`, and so are its public weights. The defaults are PaddleSeg's.

    The state dict has the keys of the original and of timm.

    Source: Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020; PaddleSeg's
    HRNet.

    Args:
        num_modules: High-resolution modules of stages 2 to 4.
        num_blocks: Residual blocks of each stage's branches.
        num_channels: Channels of each stage's branches; those of stage 1 are multiplied by four.
        has_se: Squeeze and excitation in every residual block.
        align_corners: Of bilinear upsampling between branches and to the output; PaddleSeg advises it for sides such as
            769.
        padding: Of convolutions at stride 2: `same`, shifted by a pixel on even sides, or `symmetric`.
        fuse_upsample: `bilinear` or `nearest`, where coarse branches join finer ones.
    """

    classifier_prefixes = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")
    namings = (PADDLESEG,)

    def __init__(
        self,
        *,
        num_modules: tuple[Count, Count, Count] = (1, 4, 3),
        num_blocks: PerStage = ((4,), (4, 4), (4, 4, 4), (4, 4, 4, 4)),
        num_channels: PerStage = ((64,), (18, 36), (18, 36, 72), (18, 36, 72, 144)),
        has_se: bool = False,
        align_corners: bool = False,
        padding: Padding = "same",
        fuse_upsample: Upsampling = "bilinear",
        in_channels: Count = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        parts = Parts(padding, has_se, Resize(fuse_upsample, align_corners), norm)
        self.in_channels = in_channels
        self.padding = padding
        self.fuse_upsample = fuse_upsample
        self.conv1 = parts.conv(in_channels, STEM_CHANNELS, 3, stride=2)
        self.bn1 = build_norm(norm, STEM_CHANNELS)
        self.conv2 = parts.conv(STEM_CHANNELS, STEM_CHANNELS, 3, stride=2)
        self.bn2 = build_norm(norm, STEM_CHANNELS)
        self.layer1 = parts.blocks("bottleneck", STEM_CHANNELS, num_channels[0][0], num_blocks[0][0])
        channels: Sequence[int] = (num_channels[0][0] * EXPANSION["bottleneck"],)
        self.transition1 = parts.transition(channels, num_channels[1])
        self.stage2 = _stage(num_modules[0], num_channels[1], num_blocks[1], parts)
        self.transition2 = parts.transition(num_channels[1], num_channels[2])
        self.stage3 = _stage(num_modules[1], num_channels[2], num_blocks[2], parts)
        self.transition3 = parts.transition(num_channels[2], num_channels[3])
        self.stage4 = _stage(num_modules[2], num_channels[3], num_blocks[3], parts)
        self.concatenated_at = Resize("bilinear", align_corners)
        layers = [name for name, _ in self.named_children() if name != "heads"]
        self.add_block("stage4", sum(num_channels[3]), 4, *layers)
        for i, width in enumerate(num_channels[3]):
            self.add_block(f"branch{i + 1}", width, 4 * 2**i, *layers, optional=True)
        _initialise(self)

    def layers_by_depth(self) -> Sequence[Sequence[str]]:
        """The stem with `layer1`, then each stage with the transition before it: all of them make the one block."""
        first = ("conv1", "bn1", "conv2", "bn2", "layer1")
        return [first, *((f"transition{i}", f"stage{i + 1}") for i in (1, 2, 3))]

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.run_layer(self.layer1, x)
        branches = self.run_layer(self.stage2, *_passed(self.transition1, [x]))
        branches = self.run_layer(self.stage3, *_passed(self.transition2, branches))
        branches = self.run_layer(self.stage4, *_passed(self.transition3, branches))
        size = branches[0].shape[2:]
        resized = [branches[0], *(self.concatenated_at(branch, size) for branch in branches[1:])]
        return {"stage4": torch.cat(resized, 1), **{f"branch{i + 1}": branch for i, branch in enumerate(branches)}}


def _stage(num_modules: int, channels: Sequence[int], num_blocks: Sequence[int], parts: Parts) -> Stage:
    return Stage(*(HighResolutionModule(channels, num_blocks, parts) for _ in range(num_modules)))


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=INITIAL_STD)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)


def _width(channels: int) -> dict[str, PerStage]:
    c = [channels * 2**i for i in range(4)]
    return {"num_channels": ((64,), (c[0], c[1]), (c[0], c[1], c[2]), (c[0], c[1], c[2], c[3]))}


MODELS.variants(
    HRNet,
    {
        "hrnet_w18_small_v1": {
            "num_modules": (1, 1, 1),
            "num_blocks": ((1,), (2, 2), (2, 2, 2), (2, 2, 2, 2)),
            "num_channels": ((32,), (16, 32), (16, 32, 64), (16, 32, 64, 128)),
        },
        "hrnet_w18_small_v2": {
            "num_modules": (1, 3, 2),
            "num_blocks": ((2,), (2, 2), (2, 2, 2), (2, 2, 2, 2)),
            **_width(18),
        },
        **{f"hrnet_w{width}": _width(width) for width in (18, 30, 32, 40, 44, 48, 60, 64)},
    },
)
