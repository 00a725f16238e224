"""Online hard example mining: cross entropy over the pixels where the model is least sure."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from classyseg.distributed import sum_over_processes
from classyseg.losses.bands import as_pixels, full_precision_products, over_bands, resized, sum_over_pixels
from classyseg.losses.classy_loss import HeadNames, HeadWeights
from classyseg.losses.cross_entropy import ClassWeightedLoss, ClassWeights, likelihood_rule, minus_log
from classyseg.registry import LOSSES


@LOSSES.register("ohem_cross_entropy")
class OhemCrossEntropyLoss(ClassWeightedLoss):
    """The mean cross entropy of hard pixels: the softmax of their true class is at most `threshold`.

    The hardest `min_kept` valid pixels of the whole job's batch are always kept, and those that are as hard as the last
    of them. With `class_weights` it is a weighted mean. There are two passes; the first keeps one number per pixel. In
    eval mode it is plain cross entropy: the hard pixels would depend on the batches.

    Source: Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016; the
    defaults are PyTorch-Encoding's.

    Args:
        threshold: Over 0, at most 1.
        min_kept: Pixels of the whole job's batch.
        class_weights: As in `cross_entropy`: a weighted mean over the hard pixels.
    """

    is_additive = False

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        threshold: Annotated[float, Field(gt=0, le=1)] = 0.7,
        min_kept: Annotated[int, Field(ge=0)] = 100_000,
        class_weights: ClassWeights | None = None,
        head_weights: HeadWeights | None = None,
        heads: HeadNames | None = None,
    ) -> None:
        super().__init__(ignore_index, class_weights=class_weights, head_weights=head_weights, heads=heads)
        self.threshold = threshold
        self.min_kept = min_kept

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum over this process's kept pixels, scaled.

        Divided by the count, which is all valid pixels of the job, the sums of all processes give the mean over the
        kept pixels. All outputs of the job decide which pixels are kept: in training, processes exchange data here.
        """
        logits, target = as_pixels(logits, target)
        if not self.training:
            return sum_over_pixels(logits, target.shape[1:], likelihood_rule(target, self, minus_log))
        kept = self._kept(logits.detach(), target)
        weights = self.pixel_weights(target)
        sums = torch.stack([weights.sum(dtype=torch.float64), (weights * kept).sum(dtype=torch.float64)])
        valid, hard = sum_over_processes(sums)

        def curve(log_share: Tensor, i: int, rows: slice) -> tuple[Tensor, Tensor]:
            chosen = kept[i : i + 1, rows].to(log_share.dtype)
            return -log_share * chosen, chosen

        total = sum_over_pixels(logits, target.shape[1:], likelihood_rule(target, self, curve))
        return total * (valid / hard.clamp(min=1e-12)).to(total.dtype)

    def _kept(self, logits: Tensor, target: Tensor) -> Tensor:
        """Which pixels are hard, (N, H, W)."""
        valid = target != self.ignore_index
        hardness = torch.zeros(target.shape, device=logits.device)  # minus the log-softmax of the true class
        labels = target.where(valid, 0)
        with full_precision_products(logits):
            for i, image in enumerate(resized(logits, target.shape[1:])):

                def work(rows: slice, x: Tensor, i: int = i) -> None:
                    picked = x.gather(0, labels[i : i + 1, rows])[0]
                    hardness[i, rows] = x.logsumexp(0) - picked

                over_bands(image, work)
        hardness = hardness.clamp(min=0) + 0.0  # minus zero must become zero: as an integer its bits are a large number
        limit = torch.full((), -math.log(self.threshold), device=logits.device)
        if self.min_kept:
            limit = torch.minimum(limit, kth_largest(hardness[valid], self.min_kept))
        return valid & (hardness >= limit)


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest of all processes' non-negative float32 `values`, exactly; 0 where there are fewer.

    As integers, the bits of such numbers have the same order. So the upper 16 bits are found first, then the lower
    ones.
    """
    bits = values.view(torch.int32).long()
    found = torch.zeros((), dtype=torch.int64, device=values.device)
    wanted = torch.full((), k, device=values.device)
    for shift in (16, 0):
        candidates = bits[(bits >> 16) == (found >> 16)] if shift == 0 else bits
        histogram = sum_over_processes(torch.bincount((candidates >> shift) & 0xFFFF, minlength=1 << 16))
        at_least = histogram.flip(0).cumsum(0).flip(0)  # how many are in this bin or above
        digit = (at_least >= wanted).sum() - 1
        if digit < 0:
            return values.new_zeros(())
        wanted = wanted - (at_least[digit] - histogram[digit])
        found = found | (digit << shift)
    return found.int().view(torch.float32)
