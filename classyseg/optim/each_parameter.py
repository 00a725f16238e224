"""The loop of torch optimizers that update each parameter by itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor


class EachParameter(torch.optim.Optimizer):
    """Calls `update` for each parameter that has a gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, group)

    @abstractmethod
    def update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Changes `parameter` and its state, by the options of its group; `grad` stays as it is."""
