"""Residual encoding: differences between a map's vectors and learnt codewords, summed to a fixed size."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from classyseg.layers.norm import NormConfig, build_norm

EVAL_SCALE = -0.5
"""The mean of the scales that `DropEncoding` draws in training."""


class ResidualEncoding(nn.Module, ABC):
    """Sums of residuals to `num_codes` codewords, weighted by a softmax over them.

    Maps (N, channels, H, W) or (N, channels, L) to codes (N, num_codes, channels): E[k] = sum over positions i of
    A[i, k] (x[i] - c[k]). Neither pass holds a residual for each position and codeword: sum(A x) - sum(A) c is the
    same, by products of matrices. It is computed in float32 or wider, as differences of distances lose bits, and
    returned so, as sums over large maps exceed float16.
    """

    def __init__(self, channels: int, num_codes: int) -> None:
        super().__init__()
        self.channels = channels
        self.num_codes = num_codes
        bound = (channels * num_codes) ** -0.5
        self.codewords = nn.Parameter(torch.empty(num_codes, channels).uniform_(-bound, bound))

    @abstractmethod
    def similarity(self, x: Tensor, codewords: Tensor) -> Tensor:
        """The softmax's input: (N, L, num_codes) for vectors (N, L, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        kind = "cpu" if x.is_meta else x.device.type  # torch knows no autocast on meta
        if not torch.is_autocast_enabled(kind):
            return self._sums(x)  # in a graph for export, torch's autocast would stand as an operator
        with torch.autocast(kind, enabled=False):
            return self._sums(x)

    def _sums(self, x: Tensor) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        vectors = x.flatten(2).transpose(1, 2).to(wide)
        codewords = self.codewords.to(wide)
        weights = self.similarity(vectors, codewords).softmax(2)
        return weights.transpose(1, 2) @ vectors - weights.sum(1).unsqueeze(2) * codewords

    def extra_repr(self) -> str:
        return f"channels={self.channels}, num_codes={self.num_codes}"


class Encoding(ResidualEncoding):
    """Near vectors are similar: the squared distance, times a learnt negative `scale` for each codeword.

    Source: H. Zhang et al., "Deep TEN: Texture Encoding Network", CVPR 2017.
    """

    def __init__(self, channels: int, num_codes: int) -> None:
        super().__init__(channels, num_codes)
        self.scale = nn.Parameter(torch.empty(num_codes).uniform_(-1, 0))

    def similarity(self, x: Tensor, codewords: Tensor) -> Tensor:
        return self.scale.to(x.dtype) * _squared_distances(x, codewords)


class DropEncoding(ResidualEncoding):
    """The same with scales drawn from (-1, 0) at each training step, and their mean in evaluation."""

    def similarity(self, x: Tensor, codewords: Tensor) -> Tensor:
        distances = _squared_distances(x, codewords)
        if not self.training:
            return EVAL_SCALE * distances
        return -torch.rand(self.num_codes, dtype=x.dtype, device=x.device) * distances


class CosineEncoding(ResidualEncoding):
    """Vectors with a large product with the codeword are similar."""

    def similarity(self, x: Tensor, codewords: Tensor) -> Tensor:
        return x @ codewords.T


def _squared_distances(x: Tensor, codewords: Tensor) -> Tensor:
    """(N, L, K) of vectors (N, L, D) and codewords (K, D)."""
    return x.square().sum(2, keepdim=True) - 2 * (x @ codewords.T) + codewords.square().sum(1)


class ContextEncoding(nn.Module):
    """The context of a map (a vector per image, from its residual encoding), and the map with channels weighted by it.

    (N, channels, H, W) to the map, of the same shape, and the context (N, channels).

    Source: H. Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018.
    """

    def __init__(self, channels: int, num_codes: int, norm: NormConfig) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), build_norm(norm, channels), nn.ReLU(inplace=True)
        )
        self.encoding = Encoding(channels, num_codes)
        self.norm = build_norm(norm, num_codes, dims=1)
        self.gate = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.encoding(self.project(x)).to(self.gate.weight.dtype)
        context = self.norm(codes).relu().mean(1)
        weights = self.gate(context).sigmoid()[:, :, None, None]
        return (x + x * weights).relu(), context
