"""Attention of a map on itself, with several heads. Each head may mix several softmaxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.errors import ConfigError
from classyseg.layers.norm import NormConfig, build_norm
from classyseg.layers.resize import div_mod


class ACFAttention(nn.Module):
    """Each position becomes a mean of all values, weighted by the similarity of queries and keys; maps of any size.

    Queries and keys come from one convolution of `num_heads` x `key_channels`. Each head splits its channels into
    `num_mixtures` softmaxes, and mixes these by weights from the image's mean query. `pooling` halves the map of keys
    and values. The result passes a 1x1 convolution and a norm and is added to the map, (N, channels, H, W); with
    `concat` it is put before the map, in 2 x channels.

    Raises: `ConfigError` where the mixtures cannot share the key channels evenly.
    Source: the released form of H. Zhang et al., "Co-occurrent Features in Semantic Segmentation", CVPR 2019; the
    mixture: Yang et al., "Breaking the Softmax Bottleneck", ICLR 2018.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        key_channels: int,
        value_channels: int,
        num_mixtures: int = 1,
        pooling: bool = True,
        concat: bool = False,
        dropout: float = 0.1,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        if key_channels % num_mixtures:
            raise ConfigError(
                "num_mixtures", f"found {num_mixtures}, which does not divide the {key_channels} key channels of a head"
            )
        self.num_heads = num_heads
        self.num_mixtures = num_mixtures
        self.key_channels = key_channels
        self.concat = concat
        self.query = nn.Conv2d(channels, num_heads * key_channels, 1)
        self.value = nn.Conv2d(channels, num_heads * value_channels, 1)
        nn.init.normal_(self.query.weight, std=math.sqrt(2 / (channels + key_channels)))
        nn.init.normal_(self.value.weight, std=math.sqrt(2 / (channels + value_channels)))
        self.mixture: nn.Parameter | None = None
        if num_mixtures > 1:
            bound = key_channels**-0.5
            self.mixture = nn.Parameter(torch.empty(num_mixtures, key_channels).uniform_(-bound, bound))
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Conv2d(num_heads * value_channels, channels, 1, bias=False)
        self.norm = build_norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        seen = half_means(x) if self.pooling else x
        queries, keys, values = self._split(self.query(x)), self._split(self.query(seen)), self._split(self.value(seen))
        attended = self._attend(queries, keys, values).transpose(2, 3).flatten(1, 2)
        out = self.norm(self.project(attended.unflatten(2, x.shape[2:])))
        return torch.cat([out, x], 1) if self.concat else x + out

    def _split(self, x: Tensor) -> Tensor:
        """(N, heads * C, H, W) to (N, heads, H * W, C)."""
        return x.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(N, heads, L, C) queries on the keys and values (N, heads, M, C); each of the weights may drop out."""
        scale, drop = self.key_channels**-0.5, self.dropout.p if self.training else 0.0
        if self.mixture is None:
            return F.scaled_dot_product_attention(queries, keys, values, dropout_p=drop, scale=scale)
        parts = [
            F.scaled_dot_product_attention(query, key, values, dropout_p=drop, scale=scale)
            for query, key in zip(queries.chunk(self.num_mixtures, 3), keys.chunk(self.num_mixtures, 3), strict=True)
        ]
        shares = (queries.mean(2) @ self.mixture.T).softmax(2)  # (N, heads, mixtures)
        return (torch.stack(parts, 2) * shares[..., None, None]).sum(2)


def half_means(x: Tensor) -> Tensor:
    """The means of 3x3 windows at every second position, in one column: (N, C, H, W) to (N, C, M, 1)."""
    if not torch.compiler.is_compiling():
        return F.avg_pool2d(x, 3, 2, 1, count_include_pad=False).flatten(2).unsqueeze(3)
    # A trace fixes whether a map has one row; positions in one column avoid that. It also fixes whether there is one
    # position: so a single one comes twice, which changes nothing in attention.
    rows, columns = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
    count = rows * columns
    # The larger one of `count` and 2; OpenVINO has no form of `torch.sym_max`.
    index = torch.arange(count + 1 // count, device=x.device).clamp(max=count - 1)
    row, column = div_mod(index, columns)
    position = row * 2 * x.shape[3] + column * 2
    means = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return means.flatten(2).index_select(2, position).unsqueeze(3)
