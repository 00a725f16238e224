"""Pools: means of 2x2 windows for maps of any size, means of whole images, pyramids of means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.layers.conv import ConvNormAct
from classyseg.layers.norm import NormConfig, build_norm
from classyseg.layers.resize import ALIGN_CORNERS, resize_logits


class CeilMeanPool2d(nn.AvgPool2d):
    """The mean of 2x2 windows, cut at the border: (N, C, H, W) to (N, C, H / 2, W / 2), rounded up."""

    def __init__(self) -> None:
        super().__init__(2, stride=2, ceil_mode=True, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        # Rounding up depends on the size, which an export leaves free. Repeating the last row does not change the
        # means.
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2)


def cell_means(x: Tensor, bins: int) -> Tensor:
    """The means of a map (N, C, H, W) over a grid of `bins` x `bins` cells, (N, C, bins, bins), as torch cuts them.

    In a graph for export they are products with matrices that are made of the size: what other runtimes have in the
    place of torch's pooling is right for one size alone, and silent about it.
    """
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(x, bins)
    return _cells(x.shape[2], bins, x) @ x @ _cells(x.shape[3], bins, x).T


def _cells(length: int, bins: int, like: Tensor) -> Tensor:
    """The weights (bins, length) of the means: cell i has the positions floor(i n / bins) to ceil((i + 1) n / bins)."""
    cell = torch.arange(bins, device=like.device)[:, None]
    # Rounded up without negative numbers, which OpenVINO's whole division rounds towards zero.
    start, stop = cell * length // bins, ((cell + 1) * length + bins - 1) // bins
    position = torch.arange(length, device=like.device)
    inside = (position >= start) & (position < stop)
    return inside.to(like.dtype) / (stop - start).to(like.dtype)


class ImageMean(nn.Sequential):
    """The mean of each map through a 1x1 convolution, a norm and a ReLU, the same at every position.

    (N, in, H, W) to (N, out, H, W). Without `norm` the convolution has a bias: batch norm cannot estimate a variance
    from one value per channel, which is all that a process has when it trains with a single image.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: NormConfig | None) -> None:
        norms = [] if norm is None else [build_norm(norm, out_channels)]
        super().__init__(nn.Conv2d(in_channels, out_channels, 1, bias=norm is None), *norms, nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])


class PyramidPooling(nn.Module):
    """A map joined with its means over grids of `bins` x `bins` cells, each through a 1x1 convolution, norm and ReLU.

    (N, in_channels, H, W) of any size to (N, out_channels, H, W); each grid adds `channels`. The means of whole images
    have a norm only with `norm_image` (see `ImageMean`).

    Source: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        bins: Sequence[int] = (1, 2, 3, 6),
        norm: NormConfig,
        norm_image: bool = False,
        align_corners: bool = ALIGN_CORNERS,
    ) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.align_corners = align_corners
        self.out_channels = in_channels + channels * len(bins)
        self.branches = nn.ModuleList(
            ImageMean(in_channels, channels, norm if norm_image else None)
            if size == 1
            else ConvNormAct(in_channels, channels, kernel=1, norm=norm)
            for size in bins
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for size, branch in zip(self.bins, self.branches, strict=True):
            if size == 1:
                maps.append(branch(x))
            else:
                pooled = branch(cell_means(x, size))
                maps.append(resize_logits(pooled, x.shape[2:], align_corners=self.align_corners))
        return torch.cat(maps, 1)
