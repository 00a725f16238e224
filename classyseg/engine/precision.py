"""The numbers that a step computes with: 32 or 16 bits, and the scaling that 16 bits need."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from classyseg.engine.runtime import RuntimeConfig
from classyseg.inference.network import autocast, known_precision


class Precision:
    """Runs a network in the runtime's precision. With float16 it also scales losses: small gradients would become 0."""

    def __init__(self, runtime: RuntimeConfig, device: torch.device) -> None:
        self.name = known_precision(runtime.precision)
        self.device_type = device.type
        self.scaler = torch.amp.GradScaler(device.type) if self.name == "float16" else None

    def autocast(self) -> AbstractContextManager[object]:
        return autocast(self.device_type, self.name)

    def backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
