"""SegFormer's Mix Transformers: maps at four strides, from patches that overlap, without position embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from classyseg.config import MAX_CHANNELS
from classyseg.errors import ConfigError
from classyseg.models.backbones.transformer import EPS, SelfAttention, channels_second
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS
from classyseg.weights.key_maps import Naming

Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Four = tuple[Count, Count, Count, Count]


class PatchEmbedding(nn.Module):
    """A strided convolution whose patches overlap, and a norm: an image (N, C, H, W) becomes a map (N, h, w, C)."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class ReducedAttention(SelfAttention):
    """Attention of all positions of a map (N, h, w, C) to those of the same map, `reduction` times smaller."""

    def __init__(self, channels: int, num_heads: int, reduction: int, dropout: float) -> None:
        super().__init__(channels, num_heads, dropout)
        self.reduction = reduction
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[3]
        few, mask = self._reduced(x) if self.reduction > 1 else (x, None)
        query = F.linear(x.flatten(1, 2), self.in_proj_weight[:channels], self.in_proj_bias[:channels])
        both = F.linear(few.flatten(1, 2), self.in_proj_weight[channels:], self.in_proj_bias[channels:])
        query = query.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        key, value = both.unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        tokens = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return self.out_proj(tokens.transpose(1, 2).flatten(2)).view(x.shape)

    def _reduced(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The smaller map, without a remainder of less than `reduction` rows, but of one position at least.

        A trace with free sizes asks whether a size is 1: there, the map has a spare row and column, which are masked.
        """
        (height, width), side = x.shape[1:3], self.reduction
        spare = torch.compiler.is_compiling()
        more_rows, more_columns = (side, side) if spare else (max(side - height, 0), max(side - width, 0))
        if more_rows or more_columns:
            x = F.pad(x, (0, 0, 0, more_columns, 0, more_rows))
        x = self.norm(self.sr(channels_second(x)).permute(0, 2, 3, 1))
        if not spare:
            return x, None
        row, column = (torch.arange(size, device=x.device) for size in x.shape[1:3])
        # The first one counts in any case; OpenVINO has no form of `torch.sym_max`.
        kept_rows, kept_columns = (row < height // side) | (row < 1), (column < width // side) | (column < 1)
        return x, (kept_rows[:, None] & kept_columns).flatten()[None]


class MixMLP(nn.Module):
    """An MLP for each position of a map (N, h, w, C), with a depthwise 3x3 convolution, by which it knows borders."""

    def __init__(self, channels: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, inner)
        self.dwconv = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)
        self.fc2 = nn.Linear(inner, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(channels_second(self.fc1(x))).permute(0, 2, 3, 1)
        return self.dropout(self.fc2(self.dropout(F.gelu(x))))


class MixBlock(nn.Module):
    """Attention and an MLP, each after a layer norm and with a shortcut that may stand alone in training."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        reduction: int,
        mlp_ratio: float,
        dropout: float,
        attention_dropout: float,
        stochastic_depth: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=EPS)
        self.attn = ReducedAttention(channels, num_heads, reduction, attention_dropout)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(channels, eps=EPS)
        self.mlp = MixMLP(channels, int(channels * mlp_ratio), dropout)
        self.stochastic_depth = StochasticDepth(stochastic_depth, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.stochastic_depth(self.dropout(self.attn(self.norm1(x))))
        return x + self.stochastic_depth(self.mlp(self.norm2(x)))


class MixStage(nn.Module):
    """The layers of one stride; the model runs them one by one."""

    def __init__(self, embedding: PatchEmbedding, blocks: Sequence[MixBlock]) -> None:
        super().__init__()
        self.patch_embed = embedding
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(embedding.proj.out_channels, eps=EPS)


def _joined_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Files of the authors, and of Hugging Face, keep queries apart from keys and values; here they are one tensor."""
    joined = dict(tensors)
    for key in tensors:
        for query, others in ((".attn.q.", (".attn.kv.",)), (".self.query.", (".self.key.", ".self.value."))):
            start, found, leaf = key.partition(query)
            names = [key, *(f"{start}{other}{leaf}" for other in others)]
            if found and all(name in joined for name in names):
                place = ".attn." if query == ".attn.q." else ".self."
                joined[f"{start}{place}in_proj_{leaf}"] = torch.cat([joined.pop(name) for name in names])
    return joined


def _as_linear(key: str, tensor: Tensor) -> Tensor:
    """mmsegmentation writes the linear layers of the MLP as 1x1 convolutions."""
    return tensor.flatten(1) if tensor.shape[2:] == (1, 1) and ".mlp.fc" in key else tensor


OPENMMLAB = (
    (r"^stages\.(\d+)\.patch_embed\.proj\.", r"layers.\1.0.projection."),
    (r"^stages\.(\d+)\.patch_embed\.norm\.", r"layers.\1.0.norm."),
    (r"^stages\.(\d+)\.norm\.", r"layers.\1.2."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"layers.\1.1.\2."),
    (r"\.attn\.(in_proj_|out_proj\.)", r".attn.attn.\1"),
    (r"\.mlp\.fc1\.", ".ffn.layers.0."),
    (r"\.mlp\.dwconv\.", ".ffn.layers.1."),
    (r"\.mlp\.fc2\.", ".ffn.layers.4."),
)
AUTHORS = (
    (r"^stages\.(\d+)\.patch_embed\.", lambda found: f"patch_embed{int(found[1]) + 1}."),
    (r"^stages\.(\d+)\.norm\.", lambda found: f"norm{int(found[1]) + 1}."),
    (r"^stages\.(\d+)\.blocks\.", lambda found: f"block{int(found[1]) + 1}."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.dwconv\.", ".dwconv.dwconv."),
)
HUGGING_FACE = (
    (r"^stages\.(\d+)\.patch_embed\.proj\.", r"encoder.patch_embeddings.\1.proj."),
    (r"^stages\.(\d+)\.patch_embed\.norm\.", r"encoder.patch_embeddings.\1.layer_norm."),
    (r"^stages\.(\d+)\.norm\.", r"encoder.layer_norm.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"encoder.block.\1."),
    (r"\.norm([12])\.", r".layer_norm_\1."),
    (r"\.attn\.out_proj\.", ".attention.output.dense."),
    (r"\.attn\.norm\.", ".attention.self.layer_norm."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc(\d)\.", r".mlp.dense\1."),
    (r"\.dwconv\.", ".dwconv.dwconv."),
)


@MODELS.register("mix_transformer")
class MixTransformer(ClassyModel):
    """Blocks `stage1` to `stage4` at the strides 4 to 32, each behind a norm of its own.

    Images of any size, as no position is embedded. There is no output stride.

    Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", NeurIPS
    2021.

    Args:
        channels: Of the four stages.
        depths: Layers of the four stages.
        num_heads: Attention heads of the four stages; each divides its channels.
        reductions: Keys and values of the four stages are of maps so many times smaller.
        mlp_ratio: Channels inside an MLP for each channel of the stage.
        dropout: Behind the attention and in the MLP.
        attention_dropout: Of the attention's weights.
        stochastic_depth: The rate at which the last layer is skipped in training; it grows from 0 at the first.
    """

    classifier_prefixes = ("head.",)
    namings = (
        Naming("mmsegmentation", OPENMMLAB, tensor=_as_linear),
        Naming("nvlabs", AUTHORS, ("head.",), join=_joined_attention),
        Naming("transformers", HUGGING_FACE, ("classifier.",), join=_joined_attention),
    )

    def __init__(
        self,
        *,
        channels: Four = (32, 64, 160, 256),
        depths: Four = (2, 2, 2, 2),
        num_heads: Four = (1, 2, 5, 8),
        reductions: Four = (8, 4, 2, 1),
        mlp_ratio: Annotated[float, Field(gt=0, le=1000)] = 4.0,
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        stochastic_depth: Rate = 0.1,
        in_channels: Count = 3,
    ) -> None:
        super().__init__()
        for width, heads in zip(channels, num_heads, strict=True):
            if width % heads:
                raise ConfigError("num_heads", f"found {heads}, which does not divide the {width} channels")
        self.in_channels = in_channels
        self.stages = nn.ModuleList()
        total, before, stride = sum(depths), in_channels, 1
        for i, (width, depth) in enumerate(zip(channels, depths, strict=True)):
            embedding = PatchEmbedding(before, width, 7 if i == 0 else 3, 4 if i == 0 else 2)
            first = sum(depths[:i])
            blocks = [
                MixBlock(
                    width,
                    num_heads[i],
                    reduction=reductions[i],
                    mlp_ratio=mlp_ratio,
                    dropout=dropout,
                    attention_dropout=attention_dropout,
                    stochastic_depth=stochastic_depth * (first + j) / max(1, total - 1),
                )
                for j in range(depth)
            ]
            self.stages.append(MixStage(embedding, blocks))
            before, stride = width, stride * (4 if i == 0 else 2)
            names = (f"stages.{i}.blocks.{j}" for j in range(depth))
            self.add_block(f"stage{i + 1}", width, stride, f"stages.{i}.patch_embed", *names, f"stages.{i}.norm")
        self.apply(_initialise)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x, features = image, {}
        for i, stage in enumerate(self.stages, start=1):
            x = self.run_layer(stage.patch_embed, x)  # type: ignore[arg-type]
            for block in stage.blocks:  # type: ignore[union-attr]
                x = self.run_layer(block, x)
            x = features[f"stage{i}"] = channels_second(stage.norm(x))  # type: ignore[operator]
        return features

    def layers_by_depth(self) -> Sequence[Sequence[str]]:
        """Each transformer block; the first of a stage has the embedding before it, the last one the norm behind it."""
        found = []
        for i, stage in enumerate(self.stages):
            last = len(stage.blocks) - 1  # type: ignore[arg-type]
            for j in range(last + 1):
                embedding = [f"stages.{i}.patch_embed"] if j == 0 else []
                norm = [f"stages.{i}.norm"] if j == last else []
                found.append([*embedding, f"stages.{i}.blocks.{j}", *norm])
        return found


def _initialise(layer: nn.Module) -> None:
    """As the authors do: normal weights of a deviation of 0.02, or by the fan-out of a convolution."""
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    elif isinstance(layer, SelfAttention):
        nn.init.trunc_normal_(layer.in_proj_weight, std=0.02)
    elif isinstance(layer, nn.Conv2d):
        fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
        nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


WIDE = {"channels": (64, 128, 320, 512)}

MODELS.variants(
    MixTransformer,
    {
        "mit_b0": {},
        "mit_b1": WIDE,
        "mit_b2": {**WIDE, "depths": (3, 4, 6, 3)},
        "mit_b3": {**WIDE, "depths": (3, 4, 18, 3)},
        "mit_b4": {**WIDE, "depths": (3, 8, 27, 3)},
        "mit_b5": {**WIDE, "depths": (3, 6, 40, 3)},
    },
)
