"""Cross entropy with soft targets (a share for each class), as mixup and cutmix make them."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from classyseg.losses.bands import as_pixels, sum_over_pixels
from classyseg.losses.classy_loss import HeadNames, HeadWeights, PerOutputLoss
from classyseg.registry import LOSSES


class DenseTargetLoss(PerOutputLoss):
    """A loss whose target may have a number for each class: (N, C) for images, (N, C, H, W) for pixels.

    Entries that are `ignore_index` do not count; nor do pixels (images) that have only such entries. Class indices,
    (N,) and (N, H, W), are taken, too: as 1 for that class.
    """

    takes_soft_targets = True

    def is_dense(self, target: Tensor) -> bool:
        return target.is_floating_point()

    def count(self, target: Tensor) -> Tensor:
        if not self.is_dense(target):
            return super().count(target)
        return (target != self.ignore_index).any(1).sum().double()

    def band_of(self, target: Tensor, i: int, rows: slice, like: Tensor) -> tuple[Tensor, Tensor]:
        """The band's target as a new tensor (C, rows, W) like the logits, 0 where it does not count; and where it
        counts."""
        if self.is_dense(target):
            valid = target[i, :, rows] != self.ignore_index
            return target[i, :, rows].to(like.dtype).masked_fill(~valid, 0), valid
        labels = target[i : i + 1, rows]
        valid = labels != self.ignore_index
        dense = torch.zeros_like(like).scatter_(0, labels.where(valid, 0), valid.to(like.dtype))
        return dense, valid.expand_as(like)


@LOSSES.register("soft_target_cross_entropy")
class SoftTargetCrossEntropyLoss(DenseTargetLoss):
    """Cross entropy with soft targets, (N, C), or (N, C, H, W) for pixels. Class indices are taken, too.

    `normalize_targets` divides the shares of an image (a pixel) by their sum. `label_smoothing` spreads that share of
    the loss evenly over the classes, in training only. Entries that are `ignore_index` do not count.

    `multi_label_smooth`, PyTorch-Encoding's loss for mixup, is the same with `normalize_targets: false,
    label_smoothing: 0.1`.

    Source: ClassyVision's `soft_target_cross_entropy`; as `multi_label_smooth`, PyTorch-Encoding's
    `NLLMultiLabelSmooth`.

    Args:
        normalize_targets: Divides the shares by their sum.
        label_smoothing: This share of the loss is spread evenly over the classes, in training only.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        normalize_targets: bool = True,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        head_weights: HeadWeights | None = None,
        heads: HeadNames | None = None,
    ) -> None:
        super().__init__(ignore_index, head_weights=head_weights, heads=heads)
        self.normalize_targets = normalize_targets
        self.label_smoothing = label_smoothing

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        logits, target = as_pixels(logits, target)
        smoothing = self.label_smoothing if self.training else 0.0

        def rule(x: Tensor, i: int, rows: slice, wanted: bool) -> Tensor:
            shares, valid = self.band_of(target, i, rows, x)
            if self.normalize_targets:
                shares /= shares.sum(0, keepdim=True).clamp(min=torch.finfo(x.dtype).eps)
            if smoothing:
                shares.mul_(1 - smoothing).add_(valid.any(0), alpha=smoothing / len(x))
            log_softmax = x.log_softmax(0)
            value = -torch.dot(shares.flatten(), log_softmax.flatten())
            if wanted:
                torch.mul(log_softmax.exp_(), shares.sum(0, keepdim=True), out=x)
                x -= shares
            return value.double()

        return sum_over_pixels(logits, target.shape[-2:], rule)


LOSSES.variants(
    SoftTargetCrossEntropyLoss, {"multi_label_smooth": {"normalize_targets": False, "label_smoothing": 0.1}}
)


@LOSSES.register("barron")
class BarronLoss(DenseTargetLoss):
    """The general robust loss of `logits - target`, the mean over classes (channels) and pixels.

    Targets are numbers (N, C), or (N, C, H, W) for pixels; class indices stand for vectors of one 1. Entries that are
    `ignore_index` do not count.

    Source: Barron, "A General and Adaptive Robust Loss Function", CVPR 2019.

    Args:
        alpha: From -1e6 to 2: 2 is half the squared error, 1 a smooth absolute error, 0 Cauchy's loss, -2
            Geman-McClure's, null (minus infinity) Welsch's.
        scale: The unit of errors (the paper's c).
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        alpha: Annotated[float, Field(ge=-1e6, le=2)] | None = 1.0,
        scale: Annotated[float, Field(gt=0)] = 1.0,
        head_weights: HeadWeights | None = None,
        heads: HeadNames | None = None,
    ) -> None:
        super().__init__(ignore_index, head_weights=head_weights, heads=heads)
        self.alpha = alpha
        self.scale = scale

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        logits, target = as_pixels(logits, target)

        def rule(x: Tensor, i: int, rows: slice, wanted: bool) -> Tensor:
            wished, valid = self.band_of(target, i, rows, x)
            error = (x - wished).mul_(valid).div_(self.scale)
            value, slope = self._value_and_slope(error)
            share = 1 / len(x)
            if wanted:
                torch.mul(slope, share / self.scale, out=x)
            return value.sum(dtype=torch.float64) * share

        return sum_over_pixels(logits, target.shape[-2:], rule)

    def _value_and_slope(self, error: Tensor) -> tuple[Tensor, Tensor]:
        squared = error.square()
        if self.alpha is None:
            decay = (-0.5 * squared).exp()
            return 1 - decay, error * decay
        if self.alpha == 2:
            return 0.5 * squared, error
        if abs(self.alpha) < 1e-12:  # here the quotient of the general form leaves float32's range
            return (0.5 * squared).log1p(), error / (0.5 * squared + 1)
        rest = abs(self.alpha - 2)
        log_base = (squared / rest).log1p()  # by `log1p`: float32 would round a number near 1 before the power
        value = rest / self.alpha * torch.expm1(self.alpha / 2 * log_base)
        return value, error * torch.exp((self.alpha / 2 - 1) * log_base)
