"""Convolutions that pad as TensorFlow's SAME does."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.layers.resize import ceil_div


class SameConv2d(nn.Conv2d):
    """(N, in, H, W) to (N, out, H / stride, W / stride), rounded up; where padding is odd, the end gets one more.

    With `grid` g, it reads and gives a map g times finer than it was made for: the taps lie g apart, and at every g-th
    position the values are those of the coarse map. `keeps_size` then also drops the stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        grid: int = 1,
        keeps_size: bool = False,
    ) -> None:
        if kernel < stride:
            raise ValueError(f"found a kernel {kernel} at stride {stride}; a kernel must be at least as large")
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            1 if keeps_size else stride,
            dilation=grid,
            groups=groups,
            bias=False,
        )
        self.made_for = stride

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        (top, bottom), (left, right) = self._borders(x.shape[2], 0), self._borders(x.shape[3], 1)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _borders(self, size: int, axis: int) -> tuple[int, int]:
        kernel, grid = self.kernel_size[axis], self.dilation[axis]
        coarse = ceil_div(size, grid)
        total = (ceil_div(coarse, self.made_for) - 1) * self.made_for + kernel - coarse
        before = total // 2 * grid
        return before, (kernel - 1 if self.stride[axis] < self.made_for else total) * grid - before
