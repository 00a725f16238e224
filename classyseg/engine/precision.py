"""The numbers that a step computes with: 32 or 16 bits, and the scaling that 16 bits need."""

from __future__ import annotations

import torch
from torch import Tensor

from classyseg.engine.runtime import RuntimeConfig


class Precision:
    """Runs a network in the runtime's precision; float16 also scales losses, as small gradients would become 0."""

    def __init__(self, runtime: RuntimeConfig, device: torch.device) -> None:
        self.dtype = runtime.dtype()
        self.device_type = device.type
        self.scaler = torch.amp.GradScaler(device.type) if self.dtype == torch.float16 else None

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
