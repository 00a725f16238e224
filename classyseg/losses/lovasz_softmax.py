"""The Lovász-softmax loss: a convex surrogate of the mean IoU, one class at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from classyseg.losses.bands import ResizedImage, over_bands, resized, with_gradient
from classyseg.losses.classy_loss import HeadNames, HeadWeights
from classyseg.losses.sharing import on_one_thread, share_out
from classyseg.losses.tversky import Classes, ImageLoss
from classyseg.registry import LOSSES


@LOSSES.register("lovasz_softmax")
class LovaszSoftmaxLoss(ImageLoss):
    """The Lovász extension of the Jaccard loss of each class of an image, the mean over classes, then over images.

    A class needs the sorted errors of all pixels: a few numbers per pixel, whatever the number of classes. There are
    three passes over the resized logits: for the softmax's denominators, for the sorted errors of each class, and for
    the gradient through the denominators.

    Source: Berman et al., "The Lovász-Softmax loss: a tractable surrogate for the optimization of the
    intersection-over-union measure in neural networks", CVPR 2018 (its `per_image` form).

    Args:
        classes: As in `tversky`.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        classes: Classes = "present",
        head_weights: HeadWeights | None = None,
        heads: HeadNames | None = None,
    ) -> None:
        super().__init__(ignore_index, head_weights=head_weights, heads=heads)
        self.classes = classes

    def total(self, logits: Tensor, target: Tensor) -> Tensor:

        def run(logits: Tensor, gradient: Tensor | None) -> Tensor:
            total = torch.zeros((), dtype=torch.float64, device=logits.device)
            for i, image in enumerate(resized(logits, target.shape[1:])):
                total += self._image_loss(image, target[i], wanted=gradient is not None)
                if gradient is not None:
                    gradient[i] = on_one_thread(image.gradient, image.threads)
            return total

        return with_gradient(logits, run)

    def _image_loss(self, image: ResizedImage, target: Tensor, *, wanted: bool) -> Tensor:
        valid = target != self.ignore_index
        total = torch.zeros((), dtype=torch.float64, device=target.device)
        pixels = valid.flatten().nonzero()[:, 0]
        labels = target.flatten()[pixels]
        every = torch.arange(image.num_classes, device=target.device)
        classes = (labels.unique() if self.classes == "present" or not len(labels) else every).tolist()
        log_normalizer = torch.zeros(target.shape, dtype=image.dtype, device=target.device)
        over_bands(image, lambda rows, x: log_normalizer[rows].copy_(x.logsumexp(0)))
        passed_back = torch.zeros_like(log_normalizer)

        def of_class(index: int) -> tuple[Tensor, Tensor, Tensor] | Tensor:
            share = (image.of_class(index) - log_normalizer).exp_()
            is_class = labels == index
            value, slope = _lovasz(share.flatten()[pixels], is_class)
            if not wanted:
                return value
            # The error is 1 - softmax for pixels of the class, and the softmax for other pixels.
            slope = torch.where(is_class, -slope, slope).div_(len(classes))
            gradient = torch.zeros_like(share).flatten().index_copy_(0, pixels, slope).view_as(share).mul_(share)
            return value, gradient, image.back_of_class(gradient)

        def take(index: int, found: tuple[Tensor, Tensor, Tensor] | Tensor) -> None:
            value = found if isinstance(found, Tensor) else found[0]
            total.add_(value / len(classes))
            if not isinstance(found, Tensor):
                passed_back.add_(found[1])
                image.add_class(index, found[2])

        share_out(classes, of_class, take, image.threads)
        if wanted and classes:
            over_bands(
                image,
                lambda rows, x: image.back(rows, x.sub_(log_normalizer[rows]).exp_().mul_(passed_back[rows].neg())),
                image.add,
            )
        return total


def _lovasz(shares: Tensor, is_class: Tensor) -> tuple[Tensor, Tensor]:
    """One class's loss and its derivative by the errors, from the softmax (P,) of the valid pixels for that class."""
    errors = torch.where(is_class, 1 - shares, shares)
    errors, order = errors.sort(descending=True)
    inside = is_class[order].to(torch.int64)
    missed = inside.cumsum(0)
    size = missed[-1]
    union = size + torch.arange(1, len(inside) + 1, device=shares.device) - missed
    jaccard = 1 - ((size - missed).double() / union).to(shares.dtype)
    steps = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    slope = torch.empty_like(shares).scatter_(0, order, steps)
    return torch.dot(errors, steps).double(), slope
