"""The mean pool of shortcuts that halve a map of any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CeilMeanPool2d(nn.AvgPool2d):
    """The mean of what is there of 2x2 windows: (N, C, H, W) to (N, C, H / 2, W / 2), rounded up."""

    def __init__(self) -> None:
        super().__init__(2, stride=2, ceil_mode=True, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        # Rounding up asks for the size, which an export leaves free; a repeated last row leaves the means as they are.
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2)
