"""ResNet, ResNeXt, ResNeSt and their relatives: torchvision's layers with PyTorch-Encoding's switches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from classyseg.config import MAX_CHANNELS, MAX_DEPTH
from classyseg.errors import ConfigError
from classyseg.layers import NormConfig
from classyseg.models.backbones.residual import FourStages, multi_grid_dilations
from classyseg.models.backbones.resnet_blocks import EXPANSION, BasicBlock, BlockOptions, Bottleneck, build_stage
from classyseg.models.encoding_models import with_heads
from classyseg.registry import MODELS
from classyseg.weights.cache import PublicWeights, torchvision_weights
from classyseg.weights.key_maps import Naming

STEM_WIDTH = 64

_CLASSYVISION = (
    (r"^conv1\.", "initial_block._module.0."),
    (r"^bn1\.", "initial_block._module.1."),
    (r"^layer(\d)\.(\d+)\.conv1\.", r"layer\1.\2.convolutional_block.0."),
    (r"^layer(\d)\.(\d+)\.bn1\.", r"layer\1.\2.convolutional_block.1."),
    (r"^layer(\d)\.(\d+)\.conv2\.", r"layer\1.\2.convolutional_block.3."),
    (r"^layer(\d)\.(\d+)\.conv3\.", r"layer\1.\2.convolutional_block.6."),
    (r"^layer(\d)\.(\d+)\.bn3\.", r"layer\1.\2.bn."),
    (r"\.se\.fc1\.", ".se.excitation.0."),
    (r"\.se\.fc2\.", ".se.excitation.2."),
    *((rf"^layer{i}\.", f"blocks.{i - 1}.block{i - 1}-") for i in range(1, 5)),
)
_SECOND_NORM = {"basic": r"layer\1.\2.bn.", "bottleneck": r"layer\1.\2.convolutional_block.4."}


@MODELS.register("resnet")
class ResNet(FourStages):
    """Blocks `stem` at stride 2 and `stage1` to `stage4`; the state dict has torchvision's keys, without its `fc`.

    An `output_stride` of 16 or 8 leaves the values at the coarse positions as they were, but not with `avd` or
    `avg_down`.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (with the stride in the 3x3
    convolution, as torchvision). ResNeXt: Xie et al., CVPR 2017; `deep_stem` and `avg_down`: He et al., "Bag of Tricks
    for Image Classification", CVPR 2019; `radix` and `avd`: H. Zhang et al., "ResNeSt: Split-Attention Networks", 2020;
    multi-grid: Chen et al., arXiv 1706.05587.

    Args:
        block: `basic` or `bottleneck`.
        depths: Residual blocks of the four stages.
        groups: Groups of the 3x3 convolutions; bottlenecks only, as the other keys from here to `dropblock_ramp` but
            for the stem's and `avg_down`.
        width_per_group: Channels of each group in the first stage; twice as many in each further one.
        deep_stem: Three 3x3 convolutions instead of the 7x7 one.
        stem_width: Channels of the first two of them; the third has twice as many, and so has the block `stem`.
        small_input: For images of about 32 pixels: a 3x3 convolution at stride 1 and no pool, so that all strides are a
            quarter of those above.
        avg_down: Shortcuts that halve the size do so by a mean pool before their 1x1 convolution.
        avd: Strides of 3x3 convolutions become mean pools after them. In dilated stages the pools stay, at stride 1.
        avd_first: The pools come before the convolutions.
        radix: Above 1, 3x3 convolutions have so many splits with attention between them.
        rectified_conv: Convolutions larger than 1x1 make up for taps outside of the image.
        rectify_avg: They divide by the taps inside of it instead.
        dropblock: The share of the last two stages' values that DropBlock drops in training, in squares of 3x3.
        dropblock_ramp: It rises linearly from 0 over this share (0..1) of the training.
        se_reduction: Squeeze and excitation at the end of each residual branch; its channels are divided by this
            (ClassyVision's `use_se` with 16).
        dilate_second: In dilated stages of basic blocks, both convolutions are dilated, so that an `output_stride`
            keeps the values; with false, the first one alone, as in mmsegmentation.
        last_gamma: The last norm of each residual branch begins at zero.
        output_stride: 8, 16 or 32: no block has a larger stride; dilation takes the place of the strides beyond it.
            PyTorch-Encoding's `dilated` is 8.
        multi_grid: Factors of the dilation of the last stage's blocks, one each, such as `[1, 2, 4]`; in basic blocks,
            of their first convolution.
    """

    classifier_prefixes = ("fc.",)

    def __init__(
        self,
        *,
        block: Literal["basic", "bottleneck"] = "bottleneck",
        depths: tuple[
            Annotated[int, Field(ge=1, le=MAX_DEPTH)],
            Annotated[int, Field(ge=1, le=MAX_DEPTH)],
            Annotated[int, Field(ge=1, le=MAX_DEPTH)],
            Annotated[int, Field(ge=1, le=MAX_DEPTH)],
        ] = (3, 4, 6, 3),
        groups: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 1,
        width_per_group: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 64,
        deep_stem: bool = False,
        stem_width: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = STEM_WIDTH,
        small_input: bool = False,
        avg_down: bool = False,
        avd: bool = False,
        avd_first: bool = False,
        radix: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 1,
        rectified_conv: bool = False,
        rectify_avg: bool = False,
        dropblock: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        dropblock_ramp: Annotated[float, Field(ge=0, le=1)] = 0.0,
        se_reduction: Annotated[int, Field(ge=1)] | None = None,
        dilate_second: bool = True,
        last_gamma: bool = False,
        output_stride: Literal[8, 16, 32] = 32,
        multi_grid: tuple[Annotated[int, Field(ge=1)], ...] | None = None,
        in_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        options = BlockOptions(
            block=block,
            groups=groups,
            width_per_group=width_per_group,
            avg_down=avg_down,
            avd=avd,
            avd_first=avd_first,
            radix=radix,
            rectified_conv=rectified_conv,
            rectify_avg=rectify_avg,
            dropblock=dropblock,
            dropblock_ramp=dropblock_ramp,
            se_reduction=se_reduction,
            dilate_second=dilate_second,
            norm=norm,
        )
        self.in_channels = in_channels
        stem = (_MMSEGMENTATION,) if deep_stem else ()
        self.namings = (*type(self).namings, _classyvision(block), *stem)
        channels = self._add_stem(options, _deep_stem_width(deep_stem, stem_width, small_input), small_input)
        self._add_stages(options, channels, depths, output_stride, multi_grid)
        self._initialise(last_gamma)

    def _add_stem(self, options: BlockOptions, width: int | None, small_input: bool) -> int:
        """Gives the stem's channels; `width` is that of a deep stem."""
        conv, planes = options.conv, self.in_channels
        if width is not None:
            self.conv1 = nn.Sequential(
                conv(planes, width, 3, 2, 1, bias=False),
                options.build_norm(width),
                nn.ReLU(inplace=True),
                conv(width, width, 3, 1, 1, bias=False),
                options.build_norm(width),
                nn.ReLU(inplace=True),
                conv(width, 2 * width, 3, 1, 1, bias=False),
            )
        elif small_input:
            self.conv1 = conv(planes, STEM_WIDTH, 3, 1, 1, bias=False)
        else:
            self.conv1 = conv(planes, STEM_WIDTH, 7, 2, 3, bias=False)
        channels = STEM_WIDTH if width is None else 2 * width
        self.bn1 = options.build_norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_input else nn.MaxPool2d(3, 2, 1)
        self.add_block("stem", channels, 1 if small_input else 2, "conv1", "bn1")
        return channels

    def _add_stages(
        self,
        options: BlockOptions,
        channels: int,
        depths: Sequence[int],
        output_stride: int,
        multi_grid: Sequence[int] | None,
    ) -> None:
        without_pool = replace(options, avd=False, avd_first=False)
        without_drop = replace(options, dropblock=0.0, dropblock_ramp=0.0)
        by_stage = [replace(without_pool, dropblock=0.0, dropblock_ramp=0.0), without_drop, options, options]
        stride = self.blocks["stem"].stride * (1 if isinstance(self.maxpool, nn.Identity) else 2)
        dilation = 1
        for i, (depth, stage_options) in enumerate(zip(depths, by_stage, strict=True)):
            step = 1 if i == 0 else 2
            dilations = [dilation] * depth
            if stride * step > output_stride:  # the first block keeps the dilation of what it reads
                dilation, step = 2 * dilation, 1
                dilations[1:] = [dilation] * (depth - 1)
            if i == 3 and multi_grid is not None:
                dilations = multi_grid_dilations(dilation, depth, multi_grid)
            stride *= step
            width = 64 * 2**i
            setattr(self, f"layer{i + 1}", build_stage(stage_options, channels, width, step, dilations, dilation))
            channels = width * EXPANSION[options.block]
            self.add_block(f"stage{i + 1}", channels, stride, f"layer{i + 1}")

    def _initialise(self, last_gamma: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif last_gamma and isinstance(module, BasicBlock | Bottleneck):
                last = "bn2" if isinstance(module, BasicBlock) else "bn3"
                nn.init.zeros_(module.get_parameter(f"{last}.weight"))

    @classmethod
    def known_weights(cls, variant: str) -> dict[str, PublicWeights]:
        return torchvision_weights(variant)


_MMSEGMENTATION = Naming("mmsegmentation", ((r"^conv1\.(?=\d)", "stem."), (r"^bn1\.", "stem.7.")), classifier=("fc.",))
"""How OpenMMLab spells a deep stem; other keys are torchvision's."""


def _deep_stem_width(deep_stem: bool, stem_width: int, small_input: bool) -> int | None:
    if deep_stem and small_input:
        raise ConfigError("small_input", "found true together with deep_stem; a network has one of the two stems")
    if stem_width != STEM_WIDTH and not deep_stem:
        raise ConfigError("stem_width", f"found {stem_width}, which means nothing without deep_stem")
    return stem_width if deep_stem else None


def _classyvision(block: str) -> Naming:
    second_norm = (r"^layer(\d)\.(\d+)\.bn2\.", _SECOND_NORM[block])
    return Naming("classyvision", (second_norm, *_CLASSYVISION), classifier=("heads.", "fc."))


_DEEP_STEM = {"deep_stem": True, "stem_width": 64}
_D = {"deep_stem": True, "stem_width": 32, "avg_down": True}
_RESNEST = {"radix": 2, "avd": True, **_D}
_DEPTHS: dict[int, dict[str, Any]] = {
    18: {"block": "basic", "depths": (2, 2, 2, 2)},
    34: {"block": "basic", "depths": (3, 4, 6, 3)},
    50: {"depths": (3, 4, 6, 3)},
    101: {"depths": (3, 4, 23, 3)},
    152: {"depths": (3, 8, 36, 3)},
}

_VARIANTS: dict[str, dict[str, Any]] = {
    **{f"resnet{depth}": settings for depth, settings in _DEPTHS.items()},
    **{f"resnet{depth}s": {**_DEPTHS[depth], **_DEEP_STEM} for depth in (50, 101, 152)},
    **{f"resnet{depth}d": {**settings, **_D} for depth, settings in _DEPTHS.items()},
    "resnext50_32x4d": {**_DEPTHS[50], "groups": 32, "width_per_group": 4},
    "resnext101_32x4d": {**_DEPTHS[101], "groups": 32, "width_per_group": 4},
    "resnext101_32x8d": {**_DEPTHS[101], "groups": 32, "width_per_group": 8},
    "resnext101_64x4d": {**_DEPTHS[101], "groups": 64, "width_per_group": 4},
    "resnext152_32x4d": {**_DEPTHS[152], "groups": 32, "width_per_group": 4},
    "wide_resnet50_2": {**_DEPTHS[50], "width_per_group": 128},
    "wide_resnet101_2": {**_DEPTHS[101], "width_per_group": 128},
    "resnest50": {**_DEPTHS[50], **_RESNEST},
    "resnest50_fast": {**_DEPTHS[50], **_RESNEST, "avd_first": True},
    "resnest101": {**_DEPTHS[101], **_RESNEST, "stem_width": 64},
    "resnest101_fast": {**_DEPTHS[101], **_RESNEST, "stem_width": 64, "avd_first": True},
    "resnest200": {"depths": (3, 24, 36, 3), **_RESNEST, "stem_width": 64},
    "resnest269": {"depths": (3, 30, 48, 8), **_RESNEST, "stem_width": 64},
}
MODELS.variants(ResNet, _VARIANTS)
MODELS.variants(ResNet, with_heads(_VARIANTS))
