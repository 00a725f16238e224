"""DropBlock: drops squares of a feature map in training, more and more of them as it goes on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DropBlock2d(nn.Module):
    """Zeroes squares of `block_size` in maps (N, C, H, W) in training, and scales the rest; in eval mode nothing.

    About `probability` of the values are dropped: the same ones for all images of a batch, and with `share_channels`
    for all channels. The probability rises linearly from 0 over the first `ramp` (0..1) of the training; `set_progress`
    tells how much is done. Nothing of this is saved, as the run's progress is. Maps smaller than a square lose all or
    nothing.

    Raises: `ValueError` for an even `block_size`.

    Source: Ghiasi et al., "DropBlock: A regularization method for convolutional networks", NeurIPS 2018.
    """

    reached: Tensor

    def __init__(
        self, probability: float, block_size: int = 3, *, ramp: float = 0.0, share_channels: bool = False
    ) -> None:
        super().__init__()
        if block_size % 2 == 0:
            raise ValueError(f"block_size: found {block_size}, expected an odd number")
        self.probability = probability
        self.block_size = block_size
        self.ramp = ramp
        self.share_channels = share_channels
        self.register_buffer("reached", torch.tensor(0.0 if ramp else 1.0), persistent=False)

    def set_progress(self, share_done: float) -> None:
        """Sets the share of `probability` that holds when `share_done` (0..1) of the training is done."""
        self.reached.fill_(min(1.0, share_done / self.ramp) if self.ramp else 1.0)

    def rate(self, height: int, width: int) -> Tensor:
        """How often a position must be the centre of a square, so that `probability` of all positions are dropped."""
        size = self.block_size
        inner = max(1, height - size + 1) * max(1, width - size + 1)
        return self.reached * (self.probability / size**2 * (height * width) / inner)

    def keep_mask(self, centres: Tensor) -> Tensor:
        """1 for what stays and 0 for what lies in a square around one of `centres` (..., H, W), given as ones."""
        return 1 - F.max_pool2d(centres, self.block_size, stride=1, padding=self.block_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        _, channels, height, width = x.shape
        noise = torch.rand(1, 1 if self.share_channels else channels, height, width, device=x.device)
        keep = self.keep_mask((noise < self.rate(height, width)).float())
        scale = keep.numel() / keep.sum().clamp(min=1)  # an all-dropped map is zero, not NaN
        return x * (keep * scale).to(x.dtype)

    def extra_repr(self) -> str:
        return f"probability={self.probability}, block_size={self.block_size}, ramp={self.ramp}"
