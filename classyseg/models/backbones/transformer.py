"""What vision transformers are made of: attention, blocks, an encoder, and a backbone that makes maps of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import MLP

from classyseg.config import MAX_CHANNELS
from classyseg.errors import ConfigError
from classyseg.layers.resize import ceil_div, resample
from classyseg.models.classy_model import ClassyModel
from classyseg.models.position_grids import resized_positions
from classyseg.structures import PositionGrid

EPS = 1e-6
PYRAMID_STRIDES = (4, 8, 16, 32)
Classifier = Literal["token", "gap"]
Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
ImageSize = Count | tuple[Count, Count]
"""Height and width of images in pixels; one number is both."""


class SelfAttention(nn.Module):
    """Multi-head attention of tokens (N, S, C) to each other, with the keys of `nn.MultiheadAttention`."""

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        num, length, channels = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = qkv.view(num, length, 3, self.num_heads, channels // self.num_heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.out_proj(x.transpose(1, 2).reshape(num, length, channels))


class EncoderBlock(nn.Module):
    """Attention and an MLP, each after a layer norm and with a shortcut; tokens (N, S, C)."""

    def __init__(
        self, channels: int, num_heads: int, mlp_channels: int, *, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(channels, eps=EPS)
        self.self_attention = SelfAttention(channels, num_heads, attention_dropout)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = nn.LayerNorm(channels, eps=EPS)
        self.mlp = MLP(channels, [mlp_channels, channels], activation_layer=nn.GELU, inplace=None, dropout=dropout)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attention(self.ln_1(x)))
        return x + self.mlp(self.ln_2(x))


class EncoderOptions(NamedTuple):
    """What an encoder is made of."""

    num_layers: int
    channels: int
    num_heads: int
    mlp_channels: int
    dropout: float
    attention_dropout: float


class Encoder(nn.Module):
    """`length` position embeddings, blocks and a last norm; `TransformerModel` runs them one by one."""

    def __init__(self, length: int, options: EncoderOptions) -> None:
        super().__init__()
        channels = options.channels
        self.pos_embedding = nn.Parameter(torch.empty(1, length, channels).normal_(std=0.02))
        self.dropout = nn.Dropout(options.dropout)
        self.layers = nn.Sequential()
        for i in range(options.num_layers):
            block = EncoderBlock(
                channels,
                options.num_heads,
                options.mlp_channels,
                dropout=options.dropout,
                attention_dropout=options.attention_dropout,
            )
            self.layers.add_module(f"encoder_layer_{i}", block)
        self.ln = nn.LayerNorm(channels, eps=EPS)


class TransformerModel(ClassyModel):
    """A backbone whose last part is an encoder over a grid of patches, of any size, with or without a class token.

    Optional blocks: `block1` to `blockN`, the maps after each layer of the encoder, and `pre_logits` (N, C, 1, 1), what
    the reference's classifier reads: the class token or the mean over all tokens.
    """

    class_token: nn.Parameter | None

    def add_encoder(self, options: EncoderOptions, grid: tuple[int, int], stride: int, classifier: Classifier) -> None:
        """Adds an encoder whose position embeddings are for a `grid` (rows, columns) of patches of `stride` pixels."""
        channels = options.channels
        encoder = Encoder(math.prod(grid) + (classifier == "token"), options)
        self.grid = grid
        self.class_token = nn.Parameter(torch.zeros(1, 1, channels)) if classifier == "token" else None
        self.encoder = encoder
        for i in range(1, len(encoder.layers) + 1):
            self.add_block(f"block{i}", channels, stride, f"encoder.layers.encoder_layer_{i - 1}", optional=True)
        self.add_block("pre_logits", channels, stride, "encoder.ln", optional=True)

    def layers_by_depth(self) -> Sequence[Sequence[str]]:
        """What is before the encoder (a network's blocks, then the embedding), then each of its layers."""
        blocks = super().layers_by_depth()
        before = [layers for layers in blocks if not any(layer.startswith("encoder.") for layer in layers)]
        embedding = ("conv_proj", "class_token", "encoder.pos_embedding")
        each = [(f"encoder.layers.{name}",) for name, _ in self.encoder.layers.named_children()]
        return [*before, embedding, *each]

    def encode(self, grid: Tensor, stages: dict[int, str]) -> dict[str, Tensor]:
        """The maps of the patches' embeddings (N, C, rows, columns) after the layers that `stages` names, from 1.

        The map after the last layer is the one behind the encoder's norm; the optional blocks are those before it.
        """
        size, num_layers = grid.shape[2:], len(self.encoder.layers)
        x = grid.flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1)
        num_extra = 0 if self.class_token is None else 1
        x = self.encoder.dropout(x + resized_positions(self.encoder.pos_embedding, num_extra, self.grid, size))
        features = {}
        for i, layer in enumerate(self.encoder.layers, start=1):
            x = self.run_layer(layer, x)
            if self.is_wanted(f"block{i}"):
                features[f"block{i}"] = _map(x, num_extra, size)
            if i == num_layers:
                x = self.encoder.ln(x)
            if i in stages:
                features[stages[i]] = _map(x, num_extra, size)
        if self.is_wanted("pre_logits"):
            features["pre_logits"] = (x.mean(1) if self.class_token is None else x[:, 0])[:, :, None, None]
        return features

    def position_grids(self) -> Mapping[str, PositionGrid]:
        return {"encoder.pos_embedding": PositionGrid(*self.grid, 0 if self.class_token is None else 1)}


def grid_for(image_size: ImageSize, stride: int, what: str) -> tuple[int, int]:
    """The rows and columns of patches of `stride` pixels, called `what` in messages, that images of that size have.

    Raises: `ConfigError` for a side that is no multiple of `stride`.
    """
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if height % stride or width % stride:
        near = [max(1, round(side / stride)) * stride for side in (height, width)]
        found = list(image_size) if isinstance(image_size, tuple) else image_size
        raise ConfigError(
            "image_size", f"found {found}, no multiple of {what} {stride}; try {near if height != width else near[0]}"
        )
    return height // stride, width // stride


def evenly(num_layers: int, num_stages: int) -> list[int]:
    """The layers, counted from 1, after which each of `num_stages` equal parts of `num_layers` layers ends."""
    return [num_layers * i // num_stages for i in range(1, num_stages + 1)]


def resized_kernel(kernel: Tensor, size: int) -> Tensor:
    """The kernel (O, I, h, w) that embeds patches of another `size` as `kernel` embeds them before they are resized.

    Exactly for larger patches, resized bicubic; the nearest in the mean square for smaller ones. Source: Beyer et al.,
    "FlexiViT: One Model for All Patch Sizes", CVPR 2023.
    """
    height, width = kernel.shape[2:]
    pixels = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    resize = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).flatten(1)
    resized = kernel.flatten(2).double() @ torch.linalg.pinv(resize).T
    return resized.unflatten(2, (size, size)).to(kernel.dtype)


def to_pyramid(features: dict[str, Tensor], stride: int, image: Tensor) -> dict[str, Tensor]:
    """Four maps at `stride` as maps at the strides 4, 8, 16 and 32, of ceil(H / stride) x ceil(W / stride)."""
    height, width = image.shape[2:]
    return {
        name: resample(x, stride, target, (ceil_div(height, target), ceil_div(width, target)))
        for (name, x), target in zip(features.items(), PYRAMID_STRIDES, strict=True)
    }


def padded(image: Tensor, multiple: int) -> Tensor:
    """`image` with zeros at the bottom and the right, up to a multiple of `multiple` on each side."""
    height, width = ((side + multiple - 1) // multiple * multiple for side in image.shape[2:])
    return F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2]))


def channels_second(x: Tensor) -> Tensor:
    """A map (N, H, W, C) as (N, C, H, W): a view; in a trace, whose free sizes such strides would bind, a copy."""
    x = x.permute(0, 3, 1, 2)
    return x.contiguous() if torch.compiler.is_compiling() else x


def check_heads(channels: int, num_heads: int) -> None:
    """Raises: `ConfigError` where `channels` cannot be split."""
    if channels % num_heads:
        raise ConfigError("num_heads", f"found {num_heads}, which does not divide hidden_dim {channels}")


def _map(tokens: Tensor, num_extra: int, size: tuple[int, ...]) -> Tensor:
    return channels_second(tokens[:, num_extra:].unflatten(1, size))
