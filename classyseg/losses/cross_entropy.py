"""Cross entropy on logits of any stride: resized and compared with the mask in chunks, never held at full size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from classyseg.errors import ConfigError
from classyseg.losses.bands import Rule, as_pixels, sum_over_pixels
from classyseg.losses.classy_loss import HeadNames, HeadWeights, PerOutputLoss
from classyseg.registry import LOSSES

ClassWeights = tuple[Annotated[float, Field(ge=0)], ...]

Curve = Callable[[Tensor, int, slice], tuple[Tensor, Tensor]]
"""A function of the log-softmax (1, rows, W) of the pixels' true classes, the image and the rows. It gives each pixel's
loss and minus its derivative."""


class ClassWeightedLoss(PerOutputLoss):
    """A loss in which each pixel counts by the weight of its class, in the sum and in the divisor."""

    class_weights: Tensor | None

    def __init__(
        self,
        ignore_index: int,
        *,
        class_weights: ClassWeights | None,
        head_weights: HeadWeights | None,
        heads: tuple[str, ...] | None,
    ) -> None:
        super().__init__(ignore_index, head_weights=head_weights, heads=heads)
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def check_num_classes(self, num_classes: int) -> None:
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ConfigError(
                "loss.class_weights",
                f"found {len(self.class_weights)} weights for {num_classes} classes; expected one per class",
            )

    def count(self, target: Tensor) -> Tensor:
        return self.pixel_weights(target).sum(dtype=torch.float64)

    def pixel_weights(self, target: Tensor) -> Tensor:
        """How much each pixel (each class of a pixel, for flags) counts, in the shape of `target`: 0 if ignored."""
        valid = target != self.ignore_index
        return valid.float() if self.class_weights is None else self.class_weights[target.where(valid, 0)] * valid


@LOSSES.register("cross_entropy")
class CrossEntropyLoss(ClassWeightedLoss):
    """Cross entropy with class weights and label smoothing; the mean that `torch.nn.functional.cross_entropy` defines.

    The loss `label_smoothing` is the same with `label_smoothing: 0.1`. (ClassyVision's `smoothing_param` s is s / (1 +
    s) here.)

    A batch without a valid pixel has the loss 0. `loss` in a val record is the sum over heads that are computed in
    evaluation, without `train_only` ones. It is null if the loss reads no other head.

    Args:
        class_weights: One per class, 0 or more. As in torch, the result is the weighted mean: the sum of weight x loss
            over the valid pixels of the whole job, divided by the sum of their weights. So only the ratios of the
            weights matter.
        label_smoothing: This share of each pixel's target is spread evenly over all classes, as in torch.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        class_weights: ClassWeights | None = None,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        head_weights: HeadWeights | None = None,
        heads: HeadNames | None = None,
    ) -> None:
        super().__init__(ignore_index, class_weights=class_weights, head_weights=head_weights, heads=heads)
        self.label_smoothing = label_smoothing

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        logits, target = as_pixels(logits, target)
        rule = _smoothed_rule(target, self) if self.label_smoothing else likelihood_rule(target, self, minus_log)
        return sum_over_pixels(logits, target.shape[1:], rule)


LOSSES.variants(CrossEntropyLoss, {"label_smoothing": {"label_smoothing": 0.1}})


def likelihood_rule(target: Tensor, loss: ClassWeightedLoss, curve: Curve) -> Rule:
    """The rule of a loss that depends only on the log-softmax of a pixel's true class."""

    def rule(x: Tensor, i: int, rows: slice, wanted: bool) -> Tensor:
        labels = target[i : i + 1, rows]
        weight = loss.pixel_weights(labels).to(x.dtype)  # (1, rows, W)
        labels = labels.where(labels != loss.ignore_index, 0)
        log_share, normalizer = _exponentiate(x, labels)
        value, slope = curve(log_share, i, rows)
        if wanted:
            slope = slope * weight
            x *= slope / normalizer
            x.scatter_add_(0, labels, -slope)
        return (value * weight).sum(dtype=torch.float64)

    return rule


def _exponentiate(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Turns logits `x` (C, rows, W) into exponentials; gives the labels' log-softmax and the sum over classes."""
    x -= x.amax(0, keepdim=True)
    picked = x.gather(0, labels)
    x.exp_()
    normalizer = x.sum(0, keepdim=True)
    return picked - normalizer.log(), normalizer


def minus_log(log_share: Tensor, i: int, rows: slice) -> tuple[Tensor, Tensor]:
    return -log_share, torch.ones_like(log_share)


def _smoothed_rule(target: Tensor, loss: CrossEntropyLoss) -> Rule:
    smoothing = loss.label_smoothing

    def rule(x: Tensor, i: int, rows: slice, wanted: bool) -> Tensor:
        labels = target[i : i + 1, rows]
        valid = labels != loss.ignore_index
        share = loss.pixel_weights(labels).to(x.dtype) * (1 - smoothing)
        labels = labels.where(valid, 0)
        weights = x.new_ones(len(x)) if loss.class_weights is None else loss.class_weights.to(x.dtype)
        spread = smoothing / len(x)
        highest = x.amax(0, keepdim=True)
        mean_part = torch.tensordot(weights, x, dims=1) - weights.sum() * highest[0]
        log_share, normalizer = _exponentiate(x, labels)
        value = -(share * log_share).sum(dtype=torch.float64)
        value += spread * (valid[0] * (weights.sum() * normalizer[0].log() - mean_part)).sum(dtype=torch.float64)
        if wanted:
            x *= (share + spread * weights.sum() * valid) / normalizer
            x.scatter_add_(0, labels, -share)
            x -= spread * weights.view(-1, 1, 1) * valid
        return value

    return rule
