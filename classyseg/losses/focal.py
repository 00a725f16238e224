"""The focal loss: cross entropy with less weight on pixels that are right already."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from classyseg.errors import ConfigError
from classyseg.losses.bands import Rule, as_pixels, sum_over_pixels
from classyseg.losses.classy_loss import HeadNames, HeadWeights, are_flags
from classyseg.losses.cross_entropy import ClassWeightedLoss, ClassWeights, likelihood_rule
from classyseg.registry import LOSSES


@LOSSES.register("focal")
class FocalLoss(ClassWeightedLoss):
    """The mean over pixels of `-(1 - p) ** gamma * log(p)`, where `p` is the softmax of a pixel's true class.

    Cross entropy for `gamma` 0. `class_weights` (the paper's alpha) count as in `cross_entropy`.

    Masks with a flag for each class (`multi_label`) give the sigmoid form: the mean over all flags of all pixels, where
    `p` is the sigmoid of a flag that is set, and 1 minus the sigmoid of one that is not.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Args:
        gamma: 0 is cross entropy.
        class_weights: As in `cross_entropy`; with flags, of the flags of each class.
        alpha: With flags alone: a flag that is set counts so much, one that is not 1 minus it. 0.25 is the paper's;
            null: both count 1.
    """

    takes_flags = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        gamma: Annotated[float, Field(ge=0)] = 2.0,
        class_weights: ClassWeights | None = None,
        alpha: Annotated[float, Field(ge=0, le=1)] | None = None,
        head_weights: HeadWeights | None = None,
        heads: HeadNames | None = None,
    ) -> None:
        super().__init__(ignore_index, class_weights=class_weights, head_weights=head_weights, heads=heads)
        self.gamma = gamma
        self.alpha = alpha

    def check_flags(self, flags: bool) -> None:
        if self.alpha is not None and not flags:
            raise ConfigError(
                "loss.alpha",
                f"found {self.alpha}, but each pixel has one class; it is for masks with a flag for each class "
                "(multi_label): use class_weights",
            )

    def count(self, target: Tensor) -> Tensor:
        if not are_flags(target):
            return super().count(target)
        valid = (target != self.ignore_index).sum((0, 2, 3)).double()
        return (valid if self.class_weights is None else valid * self.class_weights.double()).sum()

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        if are_flags(target):
            return sum_over_pixels(logits, target.shape[2:], self._flags_rule(target))
        logits, target = as_pixels(logits, target)
        return sum_over_pixels(logits, target.shape[1:], likelihood_rule(target, self, self._curve))

    def _flags_rule(self, target: Tensor) -> Rule:
        def rule(x: Tensor, i: int, rows: slice, wanted: bool) -> Tensor:
            flags = target[i, :, rows]
            weight = (flags != self.ignore_index).to(x.dtype)
            is_set = flags == 1
            if self.class_weights is not None:
                weight *= self.class_weights.to(x.dtype).view(-1, 1, 1)
            if self.alpha is not None:
                weight *= torch.where(is_set, self.alpha, 1 - self.alpha)
            toward = torch.where(is_set, x, -x)  # the logit of what is true
            value, slope = self._curve(functional.logsigmoid(toward), i, rows)
            if wanted:
                slope = slope.mul_((-toward).sigmoid_()).mul_(weight)
                torch.where(is_set, -slope, slope, out=x)
            return (value * weight).sum(dtype=torch.float64)

        return rule

    def _curve(self, log_share: Tensor, i: int, rows: slice) -> tuple[Tensor, Tensor]:
        rest = (-torch.expm1(log_share)).clamp(min=torch.finfo(log_share.dtype).tiny)
        focus = rest**self.gamma
        # log(p) / (1 - p) tends to -1: the power below 1 that would be infinite never stands alone.
        slope = focus * (1 - self.gamma * log_share.exp() * log_share / rest)
        return -focus * log_share, slope
