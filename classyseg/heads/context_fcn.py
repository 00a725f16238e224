"""Two convolutions with attention between them: to all positions, to the whole image, or along rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.config import MAX_CHANNELS
from classyseg.heads.classy_head import CONV_MODULE, ClassyHead, HeadKeys
from classyseg.heads.concatenation import Concatenation
from classyseg.layers import ConvNormAct, NormConfig, build_dropout, build_norm
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

TEMPERATURE = 0.05
"""By which the disentangled attention is divided in mmsegmentation."""


class NonLocal(nn.Module):
    """Every position of (N, C, H, W) reads all others by attention; begins as the identity.

    `disentangled`: queries and keys lose their means, and one attention of the whole image is added.
    """

    def __init__(self, channels: int, inner: int, norm: NormConfig, disentangled: bool) -> None:
        super().__init__()
        self.value = nn.Conv2d(channels, inner, kernel_size=1)
        self.query = nn.Conv2d(channels, inner, kernel_size=1)
        self.key = nn.Conv2d(channels, inner, kernel_size=1)
        self.mask = nn.Conv2d(channels, 1, kernel_size=1) if disentangled else None
        self.out = nn.Sequential(nn.Conv2d(inner, channels, kernel_size=1, bias=False), build_norm(norm, channels))
        for conv in (self.value, self.query, self.key):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.out[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2).transpose(1, 2)[:, None] for conv in (self.query, self.key, self.value))
        scale = query.shape[3] ** -0.5
        if self.mask is not None:
            query, key = query - query.mean(2, keepdim=True), key - key.mean(2, keepdim=True)
            scale /= TEMPERATURE
        read = F.scaled_dot_product_attention(query, key, value, scale=scale)
        if self.mask is not None:
            read = read + self.mask(x).flatten(2).softmax(2)[:, None] @ value
        # A copy: in a trace, the strides of a view would bind free sizes.
        return x + self.out(read[:, 0].transpose(1, 2).contiguous().unflatten(2, x.shape[2:]))


class GlobalContext(nn.Module):
    """One attention of the whole image, transformed and added to every position of (N, C, H, W)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.mask = nn.Conv2d(channels, 1, kernel_size=1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, inner, kernel_size=1),
            nn.LayerNorm([inner, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, channels, kernel_size=1),
        )
        nn.init.kaiming_normal_(self.mask.weight)
        nn.init.zeros_(self.mask.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.transform[3].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.transform[3].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        context = x.flatten(2) @ self.mask(x).flatten(2).softmax(2).transpose(1, 2)
        return x + self.transform(context[..., None])


class CrissCross(nn.Module):
    """Every position of (N, C, H, W) reads those of its row and column, twice, by the same weights."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, inner, kernel_size=1)
        self.key = nn.Conv2d(channels, inner, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self._once(x)
        return x

    def _once(self, x: Tensor) -> Tensor:
        query, key, value, height = self.query(x), self.key(x), self.value(x), x.shape[2]
        column = torch.einsum("nchw,nciw->nhwi", query, key)
        row = torch.einsum("nchw,nchj->nhwj", query, key)
        place = torch.arange(height, device=x.device)
        itself = (place[:, None] == place)[:, None]  # a position is in its row and its column: it counts once
        attention = torch.cat([column.masked_fill(itself, float("-inf")), row], 3).softmax(3)
        read = torch.einsum("nciw,nhwi->nchw", value, attention[..., :height])
        read = read + torch.einsum("nchj,nhwj->nchw", value, attention[..., height:])
        return x + self.gamma * read


CONTEXTS = {"non_local": 2, "disentangled": 2, "global": 4, "criss_cross": 8}
"""The kinds, and by what their channels are divided inside by default."""
KEYS = {
    "non_local": (("value", "nl_block.g.conv"), ("query", "nl_block.theta.conv"), ("key", "nl_block.phi.conv")),
    "disentangled": (("value", "dnl_block.g.conv"), ("query", "dnl_block.theta.conv"), ("key", "dnl_block.phi.conv")),
    "global": (("mask", "gc_block.conv_mask"), ("transform", "gc_block.channel_add_conv")),
    "criss_cross": (("query", "cca.query_conv"), ("key", "cca.key_conv"), ("value", "cca.value_conv")),
}
MORE_KEYS = (
    (r"^context\.out\.0\.", "{block}.conv_out.conv."),
    (r"^context\.out\.1\.", "{block}.conv_out.bn."),
    (r"^context\.mask\.", "{block}.conv_mask."),
    (r"^context\.gamma$", "{block}.gamma.scale"),
)


@HEADS.register("context_fcn")
class ContextFCNHead(ClassyHead):
    """The head `fcn` of two convolutions, with a layer between them that reads far beyond a kernel.

    | `context` | what a position reads | source |
    |---|---|---|
    | `non_local` | all positions, by attention | Wang et al., "Non-local Neural Networks", CVPR 2018 |
    | `disentangled` | what distinguishes them, and the whole image apart | Yin et al., "Disentangled Non-Local Neural Networks", ECCV 2020 |
    | `global` | one sum of the whole image | Cao et al., "GCNet", ICCV Workshops 2019 |
    | `criss_cross` | its row and column, twice | Huang et al., "CCNet", ICCV 2019 |

    `non_local` and `disentangled` compare all pairs of positions: on a map of 64 x 128, 67 million for each image.

    Args:
        context: The layer between the convolutions.
        channels: Of the convolutions.
        reduction: The channels inside the layer are divided by this; null: 2, of `global` 4, of `criss_cross` 8.
        concat_input: One more convolution reads what the first one reads and what the last one gives, side by side.
        dropout: Before the classifier.
        drop_channels: Dropout drops whole channels, as mmsegmentation does.
    """  # noqa: E501

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        context: Literal["non_local", "disentangled", "global", "criss_cross"] = "non_local",
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 512,
        reduction: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] | None = None,
        concat_input: bool = True,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        drop_channels: bool = False,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.kind = context
        self.concatenation = Concatenation(blocks)
        inputs = self.concatenation.channels
        inner = max(1, channels // (reduction or CONTEXTS[context]))
        self.convs = nn.ModuleList(ConvNormAct(width, channels, norm=norm) for width in (inputs, channels))
        self.context: nn.Module
        if context == "global":
            self.context = GlobalContext(channels, inner)
        elif context == "criss_cross":
            self.context = CrissCross(channels, inner)
        else:
            self.context = NonLocal(channels, inner, norm, context == "disentangled")
        self.conv_joined = ConvNormAct(inputs + channels, channels, norm=norm) if concat_input else None
        self.dropout = build_dropout(dropout, drop_channels)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def mmsegmentation_keys(self) -> HeadKeys:
        block = KEYS[self.kind][0][1].partition(".")[0]
        own = [(rf"^context\.{ours}\.", f"{theirs}.") for ours, theirs in KEYS[self.kind]]
        more = [(ours, theirs.format(block=block)) for ours, theirs in MORE_KEYS]
        convs = [(rf"^(convs\.\d|conv_cat)\.{i}\.", rf"\1.{name}.") for i, name in enumerate(("conv", "bn"))]
        return HeadKeys((*own, *more, (r"^conv_joined\.", "conv_cat."), *convs, CONV_MODULE[2]))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        joined = self.concatenation(features)
        first, second = self.convs
        x = second(self.context(first(joined)))
        if self.conv_joined is not None:
            x = self.conv_joined(torch.cat([joined, x], 1))
        return self.classifier(self.dropout(x))
