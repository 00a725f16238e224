"""Xception as DeepLabv3+ changed it: strided separable convolutions in the place of pools."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.layers import NormConfig, build_norm
from classyseg.models.backbones.dilation import replace_stride_with_dilation
from classyseg.models.backbones.paddle import initialise
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS
from classyseg.weights.key_maps import PADDLE_LEAVES, Naming, paddle_tensor

ENTRY = {41: (128, 256, 728), 65: (128, 256, 728), 71: (128, 256, 256, 728, 728)}
ENTRY_STRIDES = {41: (2, 2, 2), 65: (2, 2, 2), 71: (2, 1, 2, 1, 2)}
NUM_MIDDLE = {41: 8, 65: 16, 71: 16}
EXIT = ((728, 1024, 1024), (1536, 1536, 2048))
Widths = tuple[int, int, int]


class ConvNorm(nn.Module):
    """A convolution without bias and a norm, and a ReLU unless it is a shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int, stride: int, relu: bool, norm: NormConfig
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.bn = build_norm(norm, out_channels)
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class SeparableConv(nn.Module):
    """A 3x3 convolution of each channel by itself, then a 1x1 one across channels, each with a norm.

    `relu` puts a ReLU after both norms.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, relu: bool, norm: NormConfig) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.bn_dw = build_norm(norm, in_channels)
        self.act_dw = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.conv_pw = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.bn_pw = build_norm(norm, out_channels)
        self.act_pw = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act_dw(self.bn_dw(self.conv_dw(x)))
        return self.act_pw(self.bn_pw(self.conv_pw(x)))


class XceptionBlock(nn.Module):
    """Three separable convolutions, the last one with the stride: (N, in, H, W) to (N, widths[2], H / s, W / s).

    A block with a `skip` begins each of them with a ReLU and adds its input, fitted where it has to be; one without
    has its ReLUs after the norms.
    """

    def __init__(self, in_channels: int, widths: Widths, stride: int, *, skip: bool, norm: NormConfig) -> None:
        super().__init__()
        self.shortcut: nn.Module | None = None
        if skip:
            fits = stride == 1 and in_channels == widths[2]
            self.shortcut = (
                nn.Identity()
                if fits
                else ConvNorm(in_channels, widths[2], kernel=1, stride=stride, relu=False, norm=norm)
            )
        self.stack = nn.Sequential()
        for i, width in enumerate(widths, start=1):
            if skip:
                self.stack.add_module(f"act{i}", nn.ReLU(inplace=i > 1))
            conv = SeparableConv(in_channels, width, stride=stride if i == 3 else 1, relu=not skip, norm=norm)
            self.stack.add_module(f"conv{i}", conv)
            in_channels = width

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x) if self.shortcut is None else self.stack(x) + self.shortcut(x)


@MODELS.register("xception_deeplab")
class XceptionDeeplab(ClassyModel):
    """Two blocks: `stage1` at stride 4 (128 channels) and `stage4` (2048), which are what DeepLabv3+ reads.

    `depth` is 41, 65 or 71. At an `output_stride` of 16 or 8 dilation takes the place of the strides beyond it, as in
    the paper and in timm, and the values at the coarse positions stay what they were. PaddleSeg's published code only
    means to: `reference_strides` builds what it does. There every block of the entry flow strides, so that 71 layers
    come to a stride of 64; the exit flow strides for an `output_stride` of 32 alone; and just the last block is
    dilated, by 2.

    The state dict has timm's keys, with `layers` for its `blocks`, and is the same at every output stride. (At 8, timm
    leaves the convolution out of the fifth shortcut of 71 layers; the paper's network and PaddleSeg's keep it.)

    Files of PaddleSeg and timm load.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018;
    PaddleSeg's XceptionDeeplab.

    Args:
        depth: 41, 65 or 71.
        output_stride: 8, 16 or 32: the stride of `stage4`; dilation takes the place of the strides beyond it.
        reference_strides: Stride and dilate as PaddleSeg's published code does, for which the output stride hardly
            matters: 16 for 8 and 16 (with 71 layers 64), 32 (128) for 32.
    """

    classifier_prefixes = ("head.",)

    def __init__(
        self,
        *,
        depth: Literal[41, 65, 71] = 65,
        output_stride: Literal[8, 16, 32] = 16,
        reference_strides: bool = False,
        in_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        norm: NormConfig = NormConfig(eps=1e-3, momentum=0.01),
    ) -> None:
        super().__init__()
        self.namings = (*type(self).namings, *_namings(depth))  # type: ignore[misc]  # PaddleSeg's keys hold the depth
        self.in_channels = in_channels
        self.stem = nn.Sequential(
            ConvNorm(in_channels, 32, kernel=3, stride=2, relu=True, norm=norm),
            ConvNorm(32, 64, kernel=3, stride=1, relu=True, norm=norm),
        )
        entry = ENTRY[depth]
        strides = [2] * len(entry) if reference_strides else list(ENTRY_STRIDES[depth])
        exit_stride = 1 if reference_strides and output_stride < 32 else 2
        rows: list[tuple[Widths, int]] = [((c, c, c), stride) for c, stride in zip(entry, strides, strict=True)]
        rows += [((728, 728, 728), 1)] * NUM_MIDDLE[depth]
        rows += [(EXIT[0], exit_stride), (EXIT[1], 1)]
        self.layers = nn.ModuleList()
        channels, stride = 64, 2
        for i, (widths, block_stride) in enumerate(rows):
            self.layers.append(XceptionBlock(channels, widths, block_stride, skip=i < len(rows) - 1, norm=norm))
            channels, stride = widths[2], stride * block_stride
        self.add_block("stage1", entry[0], 4, "stem", "layers.0")
        deep = [f"layers.{i}" for i in range(1, len(rows))]
        self.add_block("stage4", channels, stride if reference_strides else output_stride, *deep)
        if reference_strides:
            _dilate(self.layers[-1], 2)
        elif output_stride < 32:
            replace_stride_with_dilation(self, output_stride)
        initialise(self)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x, features = self.run_layer(self.stem, image), {}
        for i, layer in enumerate(self.layers):
            x = self.run_layer(layer, x)
            if i == 0:
                features["stage1"] = x
        features["stage4"] = x
        return features


def _dilate(block: nn.Module, dilation: int) -> None:
    for conv in block.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
            conv.dilation = conv.padding = (dilation, dilation)


def _namings(depth: int) -> tuple[Naming, ...]:
    num_entry = len(ENTRY[depth])
    num_before_exit = num_entry + NUM_MIDDLE[depth]
    flows = [
        *((f"xception_{depth}/entry_flow/block{i + 1}", i) for i in range(num_entry)),
        *((f"xception_{depth}/middle_flow/block{i + 1 - num_entry}", i) for i in range(num_entry, num_before_exit)),
        *((f"_exit_flow_{i + 1}", num_before_exit + i) for i in range(2)),
    ]
    paddle = (
        *((rf"^layers\.{i}\.", f"{name}.") for name, i in flows),
        (r"^stem\.0\.", "_conv1."),
        (r"^stem\.1\.", "_conv2."),
        (r"\.shortcut\.", "._short."),
        (r"\.stack\.conv(\d)\.", r"._conv\1."),
        (r"\.(conv|bn)_dw\.", r"._\g<1>1."),
        (r"\.(conv|bn)_pw\.", r"._\g<1>2."),
        (r"\.(conv|bn)\.", r"._\1."),
        *PADDLE_LEAVES,
    )
    flat = ((r"^stem\.", "stem_"), (r"^layers\.", "blocks_"))
    return (
        Naming("paddleseg", paddle, classifier=("out.", "fc."), tensor=paddle_tensor),
        Naming("timm", ((r"^layers\.", "blocks."),), classifier=("head.",)),
        Naming("timm_features", flat),  # of what `timm.create_model(..., features_only=True)` saves
    )


MODELS.variants(XceptionDeeplab, {f"xception{depth}_deeplab": {"depth": depth} for depth in ENTRY})
