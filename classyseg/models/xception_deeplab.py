"""XceptionDeeplab: the modified aligned Xception of DeepLabV3+, as PaddleSeg and timm have it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from classyseg.layers import NormConfig, build_norm
from classyseg.models.classy_model import ClassyModel
from classyseg.models.dilation import replace_stride_with_dilation
from classyseg.models.naming import PADDLE_LEAVES, Naming, paddle_tensor
from classyseg.models.paddle import initialise
from classyseg.registry import MODELS

ENTRY = {
    41: ((128, 2), (256, 2), (728, 2)),
    65: ((128, 2), (256, 2), (728, 2)),
    71: ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)),
}
"""Channels and stride of the entry blocks, by depth."""
MIDDLE = {41: 8, 65: 16, 71: 16}
WIDTH = 728


def _paddle_rules(layers: int) -> tuple[tuple[str, str], ...]:
    """PaddleSeg numbers the blocks of each flow from 1."""
    entry, middle = len(ENTRY[layers]), MIDDLE[layers]
    exits = [(rf"^body\.{entry + middle + i}\.", f"_exit_flow_{i + 1}.") for i in range(2)]
    middles = [
        (rf"^body\.{entry + i}\.", f"xception_{layers}/middle_flow/block{i + 1}.") for i in reversed(range(middle))
    ]
    entries = [(rf"^body\.{i}\.", f"xception_{layers}/entry_flow/block{i + 1}.") for i in range(entry)]
    return (
        *exits,
        *middles,
        *entries,
        *((rf"^stem\.{i}\.(conv|bn)", rf"_conv{i + 1}._\1") for i in range(2)),
        *((rf"\.stack\.conv{i}\.", f"._conv{i}.") for i in (1, 2, 3)),
        *((rf"\.{kind}_{part}\.", f"._{kind}{i}.") for kind in ("conv", "bn") for i, part in ((1, "dw"), (2, "pw"))),
        (r"\.shortcut\.(conv|bn)", r"._short._\1"),
        *PADDLE_LEAVES,
    )


@MODELS.register("xception_deeplab")
class XceptionDeeplab(ClassyModel):
    """Blocks `stage1` (stride 4) and `stage4` (the output stride), as PaddleSeg gives them.

    `stage2` (stride 8) and `stage3` (16) are computed on the way and are there for heads that name them.
    `output_stride` holds as in the paper. PaddleSeg's published code ignores it: `reference_strides` gives its
    networks, of stride 16 with 41 and 65 layers and of 64 with 71, whatever is asked for. The state dict has timm's
    keys with `body` for `blocks`; files of timm and PaddleSeg load.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018.
    """

    classifier_prefixes = ("head.",)

    def __init__(
        self,
        *,
        layers: Literal[41, 65, 71] = 65,
        output_stride: Literal[8, 16, 32] = 16,
        reference_strides: bool = False,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        norm: NormConfig = NormConfig(eps=1e-3, momentum=0.01),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.namings = (
            Naming("timm", ((r"^body\.", "blocks."),), ("head.",)),
            Naming("timm, features_only", ((r"^body\.", "blocks_"), (r"^stem\.", "stem_"))),
            Naming("paddleseg", _paddle_rules(layers), tensor=paddle_tensor),
        )
        self.stem = nn.Sequential(_stem_conv(in_channels, 32, 2, norm), _stem_conv(32, 64, 1, norm))
        entry = [(width, 2 if reference_strides else stride) for width, stride in ENTRY[layers]]
        blocks: list[nn.Module] = []
        channels = 64
        for width, stride in entry:
            blocks.append(_Block((channels, width, width, width), stride, norm))
            channels = width
        blocks += [_Block((WIDTH,) * 4, 1, norm) for _ in range(MIDDLE[layers])]
        blocks.append(_Block((WIDTH, WIDTH, 1024, 1024), 1 if reference_strides else 2, norm))
        blocks.append(_LastBlock((1024, 1536, 1536, 2048), 2 if reference_strides else 1, norm))
        self.body = nn.Sequential(*blocks)
        deepest = 2 ** (1 + len(entry)) if reference_strides else output_stride
        self._declare(len(entry), deepest, optional=not reference_strides)
        initialise(self)
        if not reference_strides and output_stride < 32:
            replace_stride_with_dilation(self, output_stride)

    def _declare(self, entry: int, deepest: int, *, optional: bool) -> None:
        last = len(self.body) - 1
        parts = [f"body.{i}" for i in range(len(self.body))]
        self._named = {0: "stage1", entry - 2: "stage2", last - 2: "stage3", last: "stage4"}
        widths = {"stage2": 256 if entry == 3 else WIDTH, "stage3": WIDTH}
        self.add_block("stage1", 128, 4, "stem", parts[0])
        if optional:
            self.add_block("stage2", widths["stage2"], 8, *parts[1 : entry - 1], optional=True)
            self.add_block("stage3", widths["stage3"], min(16, deepest), *parts[entry - 1 : -2], optional=True)
        self.add_block("stage4", 2048, deepest, *parts[1:])

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        features = {}
        x = self.stem(image)
        for i, block in enumerate(self.body):
            x = self.run(block, x)
            if i in self._named:
                features[self._named[i]] = x
        return features


def _stem_conv(in_channels: int, channels: int, stride: int, norm: NormConfig) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=build_norm(norm, channels), act=nn.ReLU(inplace=True)))


def _separable(
    in_channels: int, channels: int, stride: int, norm: NormConfig, *, dilation: int = 1, activate: bool = False
) -> nn.Sequential:
    """A depthwise and a pointwise convolution, each with its norm; ReLU after each of them where `activate`."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv_dw"] = nn.Conv2d(
        in_channels, in_channels, 3, stride, dilation, dilation, groups=in_channels, bias=False
    )
    parts["bn_dw"] = build_norm(norm, in_channels)
    if activate:
        parts["act_dw"] = nn.ReLU(inplace=True)
    parts["conv_pw"] = nn.Conv2d(in_channels, channels, 1, bias=False)
    parts["bn_pw"] = build_norm(norm, channels)
    if activate:
        parts["act_pw"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)


class _Block(nn.Module):
    """Three separable convolutions, each after a ReLU, beside a shortcut: projected where the size or width changes."""

    def __init__(self, channels: tuple[int, ...], stride: int, norm: NormConfig) -> None:
        super().__init__()
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels[0] != channels[-1]:
            conv = nn.Conv2d(channels[0], channels[-1], 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, bn=build_norm(norm, channels[-1])))
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(3):
            parts[f"act{i + 1}"] = nn.ReLU(inplace=i > 0)  # the first one reads what the shortcut and heads read
            parts[f"conv{i + 1}"] = _separable(channels[i], channels[i + 1], stride if i == 2 else 1, norm)
        self.stack = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x) + (x if self.shortcut is None else self.shortcut(x))


class _LastBlock(nn.Module):
    """Three separable convolutions with a ReLU after each convolution, and no shortcut."""

    def __init__(self, channels: tuple[int, ...], dilation: int, norm: NormConfig) -> None:
        super().__init__()
        parts = {
            f"conv{i + 1}": _separable(channels[i], channels[i + 1], 1, norm, dilation=dilation, activate=True)
            for i in range(3)
        }
        self.stack = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x)


MODELS.variants(XceptionDeeplab, {f"xception{layers}_deeplab": {"layers": layers} for layers in ENTRY})
