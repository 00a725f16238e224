"""Cross entropy of each class by itself: for images and pixels that have several classes."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from classyseg.errors import ConfigError
from classyseg.losses.bands import as_pixels, sum_over_pixels
from classyseg.losses.classy_loss import HeadNames, HeadWeights, are_flags
from classyseg.losses.soft_target import DenseTargetLoss
from classyseg.registry import LOSSES


@LOSSES.register("binary_cross_entropy")
class BinaryCrossEntropyLoss(DenseTargetLoss):
    """The mean over classes and images of the binary cross entropy of each class: classes need not exclude each other.

    Targets are flags or shares (N, C), or (N, C, H, W) for pixels; class indices stand for a flag of one class. Entries
    that are `ignore_index` do not count. Without options it is torch's `BCEWithLogitsLoss`. A single class is one
    logit: binary segmentation.

    Args:
        positive_weights: One per class, 0 or more: how much a flag that is set counts, as torch's `pos_weight`.
        label_smoothing: This share of each flag is replaced by one half, in training only.
    """

    takes_flags = True
    min_classes = 1
    positive_weights: Tensor | None

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        positive_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        head_weights: HeadWeights | None = None,
        heads: HeadNames | None = None,
    ) -> None:
        super().__init__(ignore_index, head_weights=head_weights, heads=heads)
        weights = None if positive_weights is None else torch.tensor(positive_weights)
        self.register_buffer("positive_weights", weights, persistent=False)
        self.label_smoothing = label_smoothing

    def check_num_classes(self, num_classes: int) -> None:
        if self.positive_weights is not None and len(self.positive_weights) != num_classes:
            raise ConfigError(
                "loss.positive_weights",
                f"found {len(self.positive_weights)} weights for {num_classes} classes; expected one per class",
            )

    def is_dense(self, target: Tensor) -> bool:
        return super().is_dense(target) or are_flags(target)

    def count(self, target: Tensor) -> Tensor:
        if not self.is_dense(target):
            return super().count(target)
        return (target != self.ignore_index).sum().double() / target.shape[1]

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        logits, target = as_pixels(logits, target)
        smoothing = self.label_smoothing if self.training else 0.0

        def rule(x: Tensor, i: int, rows: slice, wanted: bool) -> Tensor:
            flags, valid = self.band_of(target, i, rows, x)
            flags = flags * (1 - smoothing) + smoothing / 2
            positive = flags if self.positive_weights is None else flags * self.positive_weights.to(x).view(-1, 1, 1)
            negative = 1 - flags
            value = positive * functional.softplus(-x) + negative * functional.softplus(x)
            share = 1 / len(x)
            if wanted:
                slope = negative * x.sigmoid() - positive * (-x).sigmoid()
                torch.mul(slope, valid * share, out=x)
            return (value * valid).sum(dtype=torch.float64) * share

        return sum_over_pixels(logits, target.shape[-2:], rule)
