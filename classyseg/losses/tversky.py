"""Overlap losses, dice and Tversky: first sums over the pixels of an image, then the gradient."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from classyseg.errors import ConfigError
from classyseg.losses.bands import ResizedImage, over_bands, resized, with_gradient
from classyseg.losses.classy_loss import MASKS, HeadNames, HeadWeights, PerOutputLoss, are_flags, fits_masks
from classyseg.losses.sharing import on_one_thread
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

    Masks with a flag for each class (`multi_label`) give the sigmoid form: each class by itself, over the pixels whose
    flag of that class is not ignored. An image in which no flag is set counts only with `classes: all`.

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

    takes_flags = True

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

    def count(self, target: Tensor) -> Tensor:
        if not are_flags(target) or self.classes == "all":
            return super().count(target)
        return (target == 1).flatten(1).any(1).sum().double()

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        flags = are_flags(target)
        valid = target != self.ignore_index
        labels = target == 1 if flags else target.where(valid, 0)
        loss_of = self._loss_of_flags if flags else self._image_loss

        def run(logits: Tensor, gradient: Tensor | None) -> Tensor:
            total = torch.zeros((), dtype=torch.float64, device=logits.device)
            for i, image in enumerate(resized(logits, target.shape[-2:])):
                value, gradient_of_image = loss_of(image, labels[i], valid[i], wanted=gradient is not None)
                total += value
                if gradient is not None and gradient_of_image is not None:
                    gradient[i] = gradient_of_image
            return total

        return with_gradient(logits, run)

    def _image_loss(
        self, image: ResizedImage, labels: Tensor, valid: Tensor, *, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """An image's loss and its gradient, if wanted; `labels` has a class for ignored pixels, too."""
        sums = torch.zeros(3, image.num_classes, dtype=torch.float64, device=labels.device)

        def add_up(rows: slice, x: Tensor) -> tuple[Tensor, Tensor]:
            share = x.softmax(0).mul_(valid[rows])
            return share.gather(0, labels[None, rows])[0].flatten().double(), share.sum((1, 2))

        def take(rows: slice, found: tuple[Tensor, Tensor]) -> None:
            own, shares = found
            flat = labels[rows].flatten()
            sums[0].index_add_(0, flat, own)
            sums[1] += shares
            sums[2].index_add_(0, flat, valid[rows].flatten().double())

        over_bands(image, add_up, take)
        if not wanted:
            return self._value(*sums), None
        value, slopes = self._value_and_slopes(sums)
        slopes = slopes.to(image.dtype)

        def pass_back(rows: slice, x: Tensor) -> Tensor:
            x = x.softmax(0).mul_(valid[rows])
            labels_here = labels[None, rows]
            own = x.gather(0, labels_here) * slopes[0][labels_here]
            mixed = torch.tensordot(slopes[1], x, dims=1) + own[0]
            x *= slopes[1].view(-1, 1, 1) - mixed
            return image.back(rows, x.scatter_add_(0, labels_here, own))

        over_bands(image, pass_back, image.add)
        return value, on_one_thread(image.gradient, image.threads)

    def _loss_of_flags(
        self, image: ResizedImage, is_set: Tensor, valid: Tensor, *, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `_image_loss`, of sigmoids; `is_set` and `valid` (C, H, W) are where flags are 1, and not ignored."""
        sums = torch.zeros(3, image.num_classes, dtype=torch.float64, device=valid.device)

        def add_up(rows: slice, x: Tensor) -> Tensor:
            share = x.sigmoid_().mul_(valid[:, rows])
            return torch.stack([each.sum((1, 2), dtype=torch.float64) for each in (share * is_set[:, rows], share)])

        over_bands(image, add_up, lambda rows, found: sums[:2].add_(found))
        sums[2] = is_set.sum((1, 2))
        counted = valid.flatten(1).any(1) if self.classes == "all" else sums[2] > 0
        if not wanted:
            return self._value(sums[0], sums[1], sums[2], counted), None
        value, slopes = self._value_and_slopes(sums, counted)
        slopes = slopes.to(image.dtype)[..., None, None]

        def pass_back(rows: slice, x: Tensor) -> Tensor:
            share = x.sigmoid_()
            slope = share * (1 - share)
            slope *= valid[:, rows]
            return image.back(rows, slope.mul_(slopes[1] + slopes[0] * is_set[:, rows]))

        over_bands(image, pass_back, image.add)
        return value, on_one_thread(image.gradient, image.threads)

    def _value_and_slopes(self, sums: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """An image's loss and its derivatives by the first two sums; see `_value`."""
        with torch.enable_grad():
            leaf = sums[:2].clone().requires_grad_()
            value = self._value(leaf[0], leaf[1], sums[2], counted)
            (slopes,) = torch.autograd.grad(value, leaf)
        return value.detach(), slopes

    def _value(self, hits: Tensor, shares: Tensor, pixels: Tensor, counted: Tensor | None = None) -> Tensor:
        """An image's loss, of three sums (C) for each class: the softmax over its own pixels, the softmax over all
        pixels, and the number of its pixels. `counted` says which classes count; None: as `classes` says."""
        false_positives, false_negatives = shares - hits, pixels - hits
        missed = self.false_positive_weight * false_positives + self.false_negative_weight * false_negatives
        index = (hits + self.smooth) / (hits + missed + self.smooth).clamp(min=1e-12)
        distance = 1 - index
        missing = distance > 0  # at 0, a power below 1 has no finite slope
        loss = distance.where(missing, 1.0) ** self.exponent * missing
        if counted is None:
            counted = pixels > 0 if self.classes == "present" else pixels.any().expand(pixels.shape)
        return (loss * counted).sum() / counted.sum().clamp(min=1)


LOSSES.variants(TverskyLoss, {"dice": {"false_positive_weight": 0.5, "false_negative_weight": 0.5}})
