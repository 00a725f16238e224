"""The focal loss: cross entropy that cares less about pixels which are right already."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from classyseg import PerOutputLoss
from classyseg.layers import resize_logits


class FocalLoss(PerOutputLoss):
    """`-(1 - p) ** gamma * log(p)` of the share `p` that a pixel's own class gets; cross entropy for `gamma` 0.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        gamma: Annotated[float, Field(ge=0)] = 2.0,
        head_weights: dict[str, Annotated[float, Field(ge=0)]] | None = None,
    ) -> None:
        super().__init__(ignore_index, head_weights=head_weights)
        self.gamma = gamma

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        if logits.dim() == 4:
            logits = resize_logits(logits, target.shape[1:])
        valid = target != self.ignore_index
        log_share = logits.float().log_softmax(1).gather(1, target.where(valid, 0).unsqueeze(1)).squeeze(1)
        rest = (-log_share.expm1()).clamp(min=1e-6)  # a power below 1 has no finite gradient at 0
        return -(rest**self.gamma * log_share * valid).sum()
