"""What the families after PaddleSeg share: Paddle's initial weights, and its padding `same`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def initialise(model: nn.Module) -> None:
    """Draws the convolutions' weights as Paddle does: normal, with the variance 2 / (kernel area x input channels).

    The input channels are all of the layer's, also where it has groups. Biases become zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            nn.init.normal_(module.weight, std=(2 / (height * width * module.in_channels)) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class SameConv2d(nn.Conv2d):
    """A convolution with an odd kernel at stride 2, padded as TensorFlow's `SAME`: (N, C, H, W) to (H / 2, W / 2).

    Sizes round up. An even side gets one zero less before it than after it, so that the kernel's centre is on the odd
    positions, where padding both ends alike would put it on the even ones.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=2, groups=groups, bias=False)
        self.reach = (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        height, width = x.shape[2:]
        x = F.pad(x, (self.reach, self.reach + 1) * 2)
        # A window of a length without a parity in it: an export can then reason about the sizes.
        x = x.narrow(2, 1 - height % 2, height + 2 * self.reach).narrow(3, 1 - width % 2, width + 2 * self.reach)
        return super().forward(x)
