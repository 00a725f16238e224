"""Split attention: a convolution of several splits. Each image chooses a mixture of them, channel by channel."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from classyseg.layers.norm import NormConfig, build_norm

MIN_HIDDEN = 32


class SplitAttentionConv2d(nn.Module):
    """A 3x3 convolution to `radix` splits of `channels`, norm, ReLU, and their sum weighted by attention.

    The weights come from the mean of all splits over the map through two 1x1 convolutions and a softmax over the
    splits (with one split: a sigmoid). `conv` makes the first convolution, as `nn.Conv2d` would; `drop` follows its
    norm. (N, in, H, W) to (N, channels, H / stride, W / stride). The keys are those of PyTorch-Encoding's SplAtConv2d.

    Source: H. Zhang et al., "ResNeSt: Split-Attention Networks", 2020.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        radix: int = 2,
        reduction: int = 4,
        conv: Callable[..., nn.Module] = nn.Conv2d,
        drop: nn.Module | None = None,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.radix = radix
        self.groups = groups
        hidden = max(in_channels * radix // reduction, MIN_HIDDEN)
        self.conv = conv(
            in_channels, channels * radix, 3, stride, dilation, dilation=dilation, groups=groups * radix, bias=False
        )
        self.bn0 = build_norm(norm, channels * radix)
        self.drop = drop or nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Conv2d(channels, hidden, 1, groups=groups)
        self.bn1 = build_norm(norm, hidden)
        self.fc2 = nn.Conv2d(hidden, channels * radix, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.drop(self.bn0(self.conv(x))))
        splits = x.unflatten(1, (self.radix, -1))
        pooled = splits.sum(1).mean((2, 3), keepdim=True)
        logits = self.fc2(self.relu(self.bn1(self.fc1(pooled))))
        return (splits * self._weights(logits)).sum(1)

    def _weights(self, logits: Tensor) -> Tensor:
        """(N, groups * radix * C', 1, 1) to (N, radix, groups * C', 1, 1), summing to 1 over the splits."""
        if self.radix == 1:
            return logits.sigmoid().unsqueeze(1)
        by_group = logits.unflatten(1, (self.groups, self.radix, -1))
        return by_group.transpose(1, 2).softmax(1).flatten(2, 3)
