"""Swin Transformers, versions 1 and 2: torchvision's layers, with windows on maps of any and of symbolic sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import swin_transformer as reference

from classyseg.config import MAX_CHANNELS
from classyseg.errors import ConfigError
from classyseg.layers.resize import ceil_div, div_mod
from classyseg.models.backbones.transformer import channels_second, padded
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS
from classyseg.weights.cache import PublicWeights, torchvision_weights
from classyseg.weights.key_maps import Naming

Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Rate = Annotated[float, Field(ge=0, lt=1)]

PATCH_SIZE = 4
OTHER_REGION = -100.0
"""Added to the attention between positions that the shift brought into one window from opposite borders."""
MAX_LOGIT_SCALE = math.log(100.0)


class WindowAttention(reference.ShiftedWindowAttention):
    """Attention within (shifted) windows of a map (N, H, W, C), with a bias for each relative position."""

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(_in_windows(self, x), self.qkv.weight, self.qkv.bias)
        query, key, value = _by_head(self, qkv)
        tokens = F.scaled_dot_product_attention(query, key, value, _bias(self, x), _dropout(self))
        return _on_map(self, self.proj(_flat(tokens)), x)


class CosineWindowAttention(reference.ShiftedWindowAttentionV2):
    """The same with scaled cosines in place of dot products: version 2. Keys have no bias."""

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[3]
        bias = torch.cat([self.qkv.bias[:channels], x.new_zeros(channels), self.qkv.bias[2 * channels :]])
        query, key, value = _by_head(self, F.linear(_in_windows(self, x), self.qkv.weight, bias))
        query = F.normalize(query, dim=-1) * self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        key = F.normalize(key, dim=-1)
        tokens = F.scaled_dot_product_attention(query, key, value, _bias(self, x), _dropout(self), scale=1.0)
        return _on_map(self, self.proj(_flat(tokens)), x)


class PatchMerging(reference.PatchMerging):
    """A map (N, H, W, C) at twice its stride and channels: each 2 x 2 positions, normed and projected."""

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(_merged(x)))


class PatchMergingV2(reference.PatchMergingV2):
    """The same, projected and then normed."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(_merged(x)))


KINDS: dict[int, dict[str, Any]] = {
    1: {"block": reference.SwinTransformerBlock, "attention": WindowAttention, "merging": PatchMerging},
    2: {"block": reference.SwinTransformerBlockV2, "attention": CosineWindowAttention, "merging": PatchMergingV2},
}
TIMM_RULES = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    *((rf"^features\.{2 * i + 1}\.(\d+)\.", rf"layers.{i}.blocks.\1.") for i in range(4)),
)


def _joined_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In files of version 2, queries and values have a bias each, and keys none; torchvision has one, partly unused."""
    joined = dict(tensors)
    for key, query in tensors.items():
        start = key.removesuffix("q_bias")
        if start != key and f"{start}v_bias" in tensors:
            value = joined.pop(f"{start}v_bias")
            joined[f"{start}qkv.bias"] = torch.cat([joined.pop(key), torch.zeros_like(query), value])
    return joined


OPENMMLAB = (
    (r"^features\.0\.0\.", "patch_embed.projection."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"^norm\.", "norm3."),
    (r"^norms\.(\d)\.", r"norm\1."),
    (r"\.attn\.", ".attn.w_msa."),
    (r"\.mlp\.0\.", ".ffn.layers.0.0."),
    (r"\.mlp\.3\.", ".ffn.layers.1."),
    *((rf"^features\.{2 * i + 1}\.(\d+)\.", rf"stages.{i}.blocks.\1.") for i in range(4)),
    *((rf"^features\.{2 * i}\.", f"stages.{i - 1}.downsample.") for i in (1, 2, 3)),
)
_MERGED = re.compile(r"^features\.[246]\.(reduction|norm)\.")


def _as_merged_here(key: str, tensor: Tensor) -> Tensor:
    """OpenMMLab merges patches channel by channel, row by row of a patch; here, patches are joined whole."""
    if not _MERGED.match(key):
        return tensor
    by_channel = tensor.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]]
    return by_channel.transpose(-1, -2).flatten(-2)


@MODELS.register("swin")
class SwinTransformer(ClassyModel):
    """Blocks `stage1` to `stage4` at the strides 4 to 32, and `norm`, the last one behind the last norm.

    Images of any size: they are padded to patches of 4 x 4 pixels, and maps to whole windows. The state dict has
    torchvision's keys, without its `head`. There is no output stride, as patches are merged, not convolved.

    Source: Liu et al., "Swin Transformer", ICCV 2021; `version` 2: Liu et al., "Swin Transformer V2", CVPR 2022.

    Args:
        version: 1 or 2.
        embed_dim: Channels of the first stage; each later one has twice as many.
        depths: Layers of the four stages.
        num_heads: Attention heads of the four stages; each divides its channels.
        window_size: The side of a window, in positions of the map.
        mlp_ratio: Channels inside an MLP for each channel of the stage.
        dropout: Behind the attention and in the MLP.
        attention_dropout: Of the attention's weights.
        stochastic_depth: The rate at which the last layer is skipped in training; it grows from 0 at the first.
        norm_stages: The blocks `stage1` to `stage3` pass a layer norm each, which the next stage does not read: for
            pixels, as the authors and mmsegmentation have it, whose heads read `norm` in place of `stage4`.
    """

    classifier_prefixes = ("head.",)
    namings = (
        Naming(
            "timm",
            (*TIMM_RULES, *((rf"^features\.{2 * i}\.", f"layers.{i}.downsample.") for i in (1, 2, 3))),
            ("head.",),
            join=_joined_biases,
        ),
        Naming(
            "microsoft",
            (*TIMM_RULES, *((rf"^features\.{2 * i}\.", f"layers.{i - 1}.downsample.") for i in (1, 2, 3))),
            ("head.",),
            join=_joined_biases,
        ),
        Naming("mmsegmentation", OPENMMLAB, ("head.",), _as_merged_here),
    )

    def __init__(
        self,
        *,
        version: Literal[1, 2] = 1,
        embed_dim: Count = 96,
        depths: tuple[Count, Count, Count, Count] = (2, 2, 6, 2),
        num_heads: tuple[Count, Count, Count, Count] = (3, 6, 12, 24),
        window_size: Annotated[int, Field(ge=2)] = 7,
        mlp_ratio: Annotated[float, Field(gt=0, le=1000)] = 4.0,
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        stochastic_depth: Rate = 0.1,
        norm_stages: bool = False,
        in_channels: Count = 3,
    ) -> None:
        super().__init__()
        for i, heads in enumerate(num_heads):
            if embed_dim * 2**i % heads:
                raise ConfigError("num_heads", f"found {heads}, which does not divide the {embed_dim * 2**i} channels")
        kind = KINDS[version]

        def block(*args: Any, **options: Any) -> nn.Module:
            return kind["block"](*args, **options, attn_layer=kind["attention"])

        layers = reference.SwinTransformer(
            [PATCH_SIZE, PATCH_SIZE],
            embed_dim,
            list(depths),
            list(num_heads),
            [window_size, window_size],
            mlp_ratio,
            dropout,
            attention_dropout,
            stochastic_depth,
            num_classes=1,
            block=block,
            downsample_layer=kind["merging"],
        )
        self.in_channels = in_channels
        self.features: Any = layers.features
        if in_channels != 3:
            self.features[0][0] = nn.Conv2d(in_channels, embed_dim, PATCH_SIZE, PATCH_SIZE)
        widths = [embed_dim * 2**i for i in range(3)] if norm_stages else []
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        for i in range(4):
            made_by = (f"features.{2 * i}", f"features.{2 * i + 1}", *([f"norms.{i}"] if i < len(widths) else []))
            self.add_block(f"stage{i + 1}", embed_dim * 2**i, PATCH_SIZE * 2**i, *made_by)
        self.norm = layers.norm
        self.add_block("norm", embed_dim * 8, PATCH_SIZE * 8, "norm")

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x, features = padded(image, PATCH_SIZE), {}
        for i, layer in enumerate(self.features):
            x = self.run_layer(layer, x)
            if i % 2:
                normed = self.norms[i // 2](x) if i // 2 < len(self.norms) else x
                features[f"stage{(i + 1) // 2}"] = channels_second(normed)
        features["norm"] = channels_second(self.norm(x))
        return features

    def layers_by_depth(self) -> Sequence[Sequence[str]]:
        """The embedding, then each transformer block; the first of a stage has the merging before it."""
        found = [["features.0"]]
        for stage in range(1, len(self.features), 2):
            for i in range(len(self.features[stage])):
                merging = [f"features.{stage - 1}"] if i == 0 and stage > 1 else []
                last = i == len(self.features[stage]) - 1 and stage // 2 < len(self.norms)
                found.append([*merging, f"features.{stage}.{i}", *([f"norms.{stage // 2}"] if last else [])])
        return found

    @classmethod
    def known_weights(cls, variant: str) -> dict[str, PublicWeights]:
        return torchvision_weights(variant)


# -- windows ---------------------------------------------------------------------------------------------------------
#
# A map (N, H, W, C) becomes tokens (N * windows * positions, C), window by window, and a map again, both by index: a
# trace with free sizes asks nothing of them then. A size that could be 1 would be asked for, hence the spare window.


class _Windows(NamedTuple):
    """The windows of a map: their number and their sides, in rows and columns, and the shift, none for one window."""

    rows: int
    columns: int
    height: int
    width: int
    down: int
    right: int


def _layout(layer: Any, x: Tensor) -> _Windows:
    height, width = layer.window_size
    rows, columns = ceil_div(x.shape[1], height), ceil_div(x.shape[2], width)
    down, right = layer.shift_size
    # None for one window, without a question that would fix the size; OpenVINO has no form of `torch.sym_min`.
    return _Windows(rows, columns, height, width, down * (1 - 1 // rows), right * (1 - 1 // columns))


def _places(at: _Windows, window: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """The row and the column, on the shifted map of whole windows, of positions inside windows."""
    window_row, window_column = div_mod(window, at.columns)
    row, column = div_mod(inside, at.width)
    return window_row * at.height + row, window_column * at.width + column


def _wrapped(index: Tensor, size: int) -> Tensor:
    return div_mod(index, size)[1]


def _in_windows(layer: Any, x: Tensor) -> Tensor:
    """Beyond the map there are zeros."""
    at, (num, height, width, _) = _layout(layer, x), x.shape
    area, num_windows = at.height * at.width, at.rows * at.columns
    window, inside = div_mod(torch.arange(num * num_windows * area, device=x.device), area)
    image, window = div_mod(window, num_windows)
    row, column = _places(at, window, inside)
    row, column = _wrapped(row + at.down, at.rows * at.height), _wrapped(column + at.right, at.columns * at.width)
    index = (image * height + row) * width + column
    tokens = x.flatten(0, 2)
    if torch.compiler.is_compiling() or (height, width) != (at.rows * at.height, at.columns * at.width):
        index = torch.where((row < height) & (column < width), index, num * height * width)
        tokens = F.pad(tokens, (0, 0, 0, 1))
    return tokens.index_select(0, index)


def _on_map(layer: Any, tokens: Tensor, like: Tensor) -> Tensor:
    """`_in_windows` undone, for a map of the size of `like`."""
    at, (num, height, width, _) = _layout(layer, like), like.shape
    line, column = div_mod(torch.arange(num * height * width, device=like.device), width)
    image, row = div_mod(line, height)
    row = _wrapped(row + at.rows * at.height - at.down, at.rows * at.height)
    column = _wrapped(column + at.columns * at.width - at.right, at.columns * at.width)
    (window_row, row), (window_column, column) = div_mod(row, at.height), div_mod(column, at.width)
    window = (image * at.rows + window_row) * at.columns + window_column
    return tokens.index_select(0, (window * at.height + row) * at.width + column).view(like.shape)


def _spare() -> int:
    return 1 if torch.compiler.is_compiling() else 0


def _by_head(layer: Any, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (windows, heads, positions, C / heads) of tokens (windows * positions, 3 C)."""
    area = layer.window_size[0] * layer.window_size[1]
    if _spare():
        qkv = F.pad(qkv, (0, 0, 0, area))
    qkv = qkv.unflatten(0, (-1, area)).unflatten(2, (3, layer.num_heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return query, key, value


def _flat(x: Tensor) -> Tensor:
    """Tokens (windows * positions, C) of (windows, heads, positions, C / heads)."""
    return x.transpose(1, 2).contiguous().flatten(2).flatten(0, 1)


def _bias(layer: Any, x: Tensor) -> Tensor:
    """Added to the attention: (1, heads, positions, positions), or one for each window where maps are shifted."""
    bias = layer.get_relative_position_bias()
    if not any(layer.shift_size):
        return bias
    at = _layout(layer, x)
    area, num_windows = at.height * at.width, at.rows * at.columns
    window, inside = div_mod(torch.arange((x.shape[0] * num_windows + _spare()) * area, device=x.device), area)
    row, column = _places(at, _wrapped(window, num_windows), inside)
    below = (row >= (at.rows - 1) * at.height).int() + (row >= at.rows * at.height - at.down).int()
    right = (column >= (at.columns - 1) * at.width).int() + (column >= at.columns * at.width - at.right).int()
    region = (3 * below + right).unflatten(0, (-1, area))
    apart = (region[:, None, :, None] != region[:, None, None]).to(bias.dtype)
    return bias + apart * OTHER_REGION


def _dropout(layer: Any) -> float:
    return layer.attention_dropout if layer.training else 0.0


def _merged(x: Tensor) -> Tensor:
    """Each 2 x 2 positions of (N, H, W, C) as one of 4 C channels, column by column."""
    num, height, width, channels = x.shape
    rows, columns = ceil_div(height, 2), ceil_div(width, 2)
    x = F.pad(x, (0, 0, 0, 2 * columns - width, 0, 2 * rows - height))
    x = x.view(num, rows, 2, columns, 2, channels)
    return x.permute(0, 1, 3, 4, 2, 5).reshape(num, rows, columns, 4 * channels)


SMALL = {"depths": (2, 2, 18, 2), "stochastic_depth": 0.3}
BASE = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "stochastic_depth": 0.5}

MODELS.variants(
    SwinTransformer,
    {
        "swin_t": {"stochastic_depth": 0.2},
        "swin_s": SMALL,
        "swin_b": BASE,
        "swin_v2_t": {"version": 2, "window_size": 8, "stochastic_depth": 0.2},
        "swin_v2_s": {"version": 2, "window_size": 8, **SMALL},
        "swin_v2_b": {"version": 2, "window_size": 8, **BASE},
    },
)
