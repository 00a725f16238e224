"""The unit of most heads: a convolution without bias, a norm, a ReLU."""

from __future__ import annotations

from torch import nn

from classyseg.layers.norm import NormConfig, build_norm


class ConvNormAct(nn.Sequential):
    """Convolution, norm and ReLU; keeps the size at stride 1: (N, in, H, W) to (N, out, H / stride, W / stride)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: NormConfig | None = None,
    ) -> None:
        padding = dilation * (kernel - 1) // 2
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False),
            build_norm(norm or NormConfig(), out_channels),
            nn.ReLU(inplace=True),
        )


def separable_conv(in_channels: int, out_channels: int, *, dilation: int = 1, norm: NormConfig) -> nn.Sequential:
    """A depthwise 3x3 and a pointwise convolution, each with norm and ReLU, in the place of one `ConvNormAct`."""
    return nn.Sequential(
        ConvNormAct(in_channels, in_channels, dilation=dilation, groups=in_channels, norm=norm),
        ConvNormAct(in_channels, out_channels, kernel=1, norm=norm),
    )
