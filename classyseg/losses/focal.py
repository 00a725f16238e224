"""The focal loss: cross entropy with less weight on pixels that are right already."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from classyseg.losses.bands import as_pixels, sum_over_pixels
from classyseg.losses.classy_loss import HeadNames, HeadWeights
from classyseg.losses.cross_entropy import ClassWeightedLoss, ClassWeights, likelihood_rule
from classyseg.registry import LOSSES


@LOSSES.register("focal")
class FocalLoss(ClassWeightedLoss):
    """The mean over pixels of `-(1 - p) ** gamma * log(p)`, where `p` is the softmax of a pixel's true class.

    Cross entropy for `gamma` 0. `class_weights` (the paper's alpha) count as in `cross_entropy`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Args:
        gamma: 0 is cross entropy.
        class_weights: As in `cross_entropy`.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        gamma: Annotated[float, Field(ge=0)] = 2.0,
        class_weights: ClassWeights | None = None,
        head_weights: HeadWeights | None = None,
        heads: HeadNames | None = None,
    ) -> None:
        super().__init__(ignore_index, class_weights=class_weights, head_weights=head_weights, heads=heads)
        self.gamma = gamma

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        logits, target = as_pixels(logits, target)
        return sum_over_pixels(logits, target.shape[1:], likelihood_rule(target, self, self._curve))

    def _curve(self, log_share: Tensor, i: int, rows: slice) -> tuple[Tensor, Tensor]:
        rest = (-torch.expm1(log_share)).clamp(min=torch.finfo(log_share.dtype).tiny)
        focus = rest**self.gamma
        # log(p) / (1 - p) tends to -1: the power below 1 that would be infinite never stands alone.
        slope = focus * (1 - self.gamma * log_share.exp() * log_share / rest)
        return -focus * log_share, slope
