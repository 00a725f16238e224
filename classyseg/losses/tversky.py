"""Overlap losses, dice and Tversky: first sums over the pixels of an image, then the gradient."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from classyseg.errors import ConfigError
from classyseg.losses.bands import resized, with_gradient
from classyseg.losses.classy_loss import MASKS, HeadNames, HeadWeights, PerOutputLoss, fits_masks
from classyseg.registry import LOSSES

Classes = Literal["present", "all"]


class ImageLoss(PerOutputLoss):
    """A loss of each image: the mean over the job's images with a valid pixel."""

    needs = MASKS

    def fits(self, output: Tensor, target: Tensor) -> bool:
        return fits_masks(output, target)

    def count(self, target: Tensor) -> Tensor:
        return (target != self.ignore_index).flatten(1).any(1).sum().double()


@LOSSES.register("tversky")
class TverskyLoss(ImageLoss):
    """1 minus the overlap of the softmax with the mask, `hits / (hits + a x false positives + b x false negatives)`.

    It is computed for each class of an image, then averaged over the classes (those in the mask, or `all`), then over
    images. `smooth` is added to numerator and denominator; `exponent` is that of the focal Tversky loss. `dice` is this
    loss with both weights 1/2.

    There are two passes, for the sums and for the gradient, so nothing of full size is held.

    Raises: `ConfigError` where both weights are 0: every overlap would be 1.

    Source: Salehi et al., "Tversky loss function for image segmentation using 3D fully convolutional deep networks",
    MLMI 2017; Abraham and Khan, "A novel focal Tversky loss function", ISBI 2019.

    Args:
        false_positive_weight: a.
        false_negative_weight: b.
        smooth: Added above and below the fraction, in pixels.
        exponent: Of the loss of a class; 0.75 is the focal Tversky loss of its paper.
        classes: `present`: the mean over the classes that the mask of the image holds; `all`: over all classes, so that
            false positives of absent ones count.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        false_positive_weight: Annotated[float, Field(ge=0)] = 0.3,
        false_negative_weight: Annotated[float, Field(ge=0)] = 0.7,
        smooth: Annotated[float, Field(ge=0)] = 1.0,
        exponent: Annotated[float, Field(gt=0)] = 1.0,
        classes: Classes = "present",
        head_weights: HeadWeights | None = None,
        heads: HeadNames | None = None,
    ) -> None:
        super().__init__(ignore_index, head_weights=head_weights, heads=heads)
        if not false_positive_weight + false_negative_weight:
            raise ConfigError(
                "false_positive_weight", "found 0, and false_negative_weight 0, too; one of them must be above 0"
            )
        self.false_positive_weight = false_positive_weight
        self.false_negative_weight = false_negative_weight
        self.smooth = smooth
        self.exponent = exponent
        self.classes = classes

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        valid = target != self.ignore_index
        labels = target.where(valid, 0)

        def run(logits: Tensor, gradient: Tensor | None) -> Tensor:
            total = torch.zeros((), dtype=torch.float64, device=logits.device)
            for i, image in enumerate(resized(logits, target.shape[1:])):
                sums = torch.zeros(3, logits.shape[1], dtype=torch.float64, device=logits.device)
                for rows, x in image:
                    share = x.softmax(0).mul_(valid[i, rows])
                    own = share.gather(0, labels[i : i + 1, rows])[0]
                    flat = labels[i, rows].flatten()
                    sums[0].index_add_(0, flat, own.flatten().double())
                    sums[1] += share.sum((1, 2))
                    sums[2].index_add_(0, flat, valid[i, rows].flatten().double())
                value, slopes = self._value_and_slopes(sums)
                total += value
                if gradient is None:
                    continue
                slopes = slopes.to(image.wide.dtype)
                for rows, x in image:
                    x = x.softmax(0).mul_(valid[i, rows])
                    labels_here = labels[i : i + 1, rows]
                    own = x.gather(0, labels_here) * slopes[0][labels_here]
                    mixed = torch.tensordot(slopes[1], x, dims=1) + own[0]
                    x *= slopes[1].view(-1, 1, 1) - mixed
                    image.add_gradient(rows, x.scatter_add_(0, labels_here, own))
                gradient[i] = image.gradient()
            return total

        return with_gradient(logits, run)

    def _value_and_slopes(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """An image's loss and its derivatives by the first two sums.

        `sums` (3, C) has for each class: the softmax summed over its own pixels, the softmax summed over all pixels,
        and its number of pixels.
        """
        with torch.enable_grad():
            hits, shares = sums[:2].clone().requires_grad_().unbind()
            leaf = hits._base if hits._base is not None else hits
            false_positives, false_negatives = shares - hits, sums[2] - hits
            missed = self.false_positive_weight * false_positives + self.false_negative_weight * false_negatives
            index = (hits + self.smooth) / (hits + missed + self.smooth).clamp(min=1e-12)
            distance = 1 - index
            missing = distance > 0  # at 0, a power below 1 has no finite slope
            loss = distance.where(missing, 1.0) ** self.exponent * missing
            counted = sums[2] > 0 if self.classes == "present" else torch.full_like(sums[2], bool(sums[2].any()))
            value = (loss * counted).sum() / counted.sum().clamp(min=1)
            (slopes,) = torch.autograd.grad(value, leaf)
        return value.detach(), slopes


LOSSES.variants(TverskyLoss, {"dice": {"false_positive_weight": 0.5, "false_negative_weight": 0.5}})
