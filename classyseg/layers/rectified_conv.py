"""Rectified convolution: outputs at the border are scaled up for the taps that fall outside of the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RectifiedConv2d(nn.Conv2d):
    """A convolution, zeros around, whose outputs are multiplied by kernel taps / taps inside the image.

    With `average` they are divided by the taps inside instead. A position without a tap inside keeps its value, the
    bias. The keys are those of `nn.Conv2d`. (N, in, H, W) to (N, out, h, w).

    Source: H. Zhang et al., "ResNeSt: Split-Attention Networks", 2020, and PyTorch-Encoding's RFConv2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        *,
        bias: bool = True,
        average: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.average = average

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        rows, columns = (self._taps_inside(x.shape[2 + axis], out.shape[2 + axis], axis, x) for axis in (0, 1))
        inside = (rows[:, None] * columns).clamp(min=1)
        taps = 1 if self.average else self.kernel_size[0] * self.kernel_size[1]
        return out * (taps / inside).to(out.dtype)

    def _taps_inside(self, in_size: int, out_size: int, axis: int, like: Tensor) -> Tensor:
        """For each output position along one axis (0: H), how many taps fall inside the image."""
        starts = torch.arange(out_size, device=like.device) * self.stride[axis] - int(self.padding[axis])
        taps = torch.arange(self.kernel_size[axis], device=like.device) * self.dilation[axis]
        positions = starts[:, None] + taps
        return ((positions >= 0) & (positions < in_size)).sum(1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, average={self.average}"
