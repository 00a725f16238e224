"""What the families after PaddleSeg share: Paddle's initial weights."""

from __future__ import annotations

from torch import nn


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
