"""Between numpy's images and torch's."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def image_tensor(array: npt.NDArray[Any]) -> Tensor:
    """A numpy image (H, W, C) as a tensor (C, H, W), the channels of a pixel side by side in memory.

    The tensor shares memory that may be written; other memory is copied.
    """
    return torch.from_numpy(array if array.flags.writeable else array.copy()).permute(2, 0, 1)
