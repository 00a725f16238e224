"""The boundary loss: the softmax of a class is weighted by the distance to the class's border."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from classyseg.losses.bands import CHUNK_BYTES, DEFAULT_CHUNK_BYTES, sum_over_pixels
from classyseg.losses.classy_loss import MASKS, HeadNames, HeadWeights, PerOutputLoss, fits_masks
from classyseg.registry import LOSSES


@LOSSES.register("boundary")
class BoundaryLoss(PerOutputLoss):
    """The softmax times the signed distance to each class's border, summed over classes; the mean over pixels.

    Distances are Euclidean, positive outside and negative inside a class. The two pixels at a border have the distances
    1 (outside) and 0 (inside). Distances are clipped to `max_distance` pixels on both sides and divided by it, so they
    lie in -1..1. A class that is not in an image does not count, and ignored pixels make no border. The loss of a good
    model is negative. Use `sum_arbitrary` to add it to another loss.

    Source: Kervadec et al., "Boundary loss for highly unbalanced segmentation", MIDL 2019.

    Args:
        max_distance: Pixels (1 to 1000) at which signed distances are cut, and by which they are divided: weights lie
            in -1..1, and reach both ends. Time grows with it, and with the number of classes in an image.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        max_distance: Annotated[int, Field(ge=1, le=1000)] = 20,
        head_weights: HeadWeights | None = None,
        heads: HeadNames | None = None,
    ) -> None:
        super().__init__(ignore_index, head_weights=head_weights, heads=heads)
        self.max_distance = max_distance

    needs = MASKS

    def fits(self, output: Tensor, target: Tensor) -> bool:
        return fits_masks(output, target)

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        num_classes = logits.shape[1]
        present = [labels[labels != self.ignore_index].unique() for labels in target]

        def rule(x: Tensor, i: int, rows: slice, wanted: bool) -> Tensor:
            distance = self.distances(target[i], rows, present[i], num_classes).to(x.dtype)
            share = x.softmax(0).mul_(target[i, rows] != self.ignore_index)
            x.copy_(distance.mul_(share))
            value = x.sum(0)
            if wanted:
                x -= share.mul_(value)
            return value.sum(dtype=torch.float64)

        return sum_over_pixels(logits, target.shape[1:], rule)

    def distances(self, target: Tensor, rows: slice, present: Tensor, num_classes: int) -> Tensor:
        """The weights (num_classes, rows, W), in -1..1, for a band of a mask (H, W) of the classes `present`."""
        limit = self.max_distance
        reach = limit + 1  # inside, 1 is subtracted from the distance: so the search goes one pixel further
        start, stop = max(0, rows.start - reach), min(len(target), rows.stop + reach)
        window = target[start:stop]
        near = window[window != self.ignore_index].unique()
        height, width = rows.stop - rows.start, target.shape[1]
        weights = torch.zeros(num_classes, height, width, device=target.device)
        weights[present] = 1.0
        if not len(near):
            return weights
        others = torch.full((height, width), float(reach), device=target.device)  # how far another class is
        chunk_bytes = CHUNK_BYTES.get(target.device.type, DEFAULT_CHUNK_BYTES)  # for about four numbers a pixel
        for classes in near.split(max(1, chunk_bytes // (16 * window.numel()))):
            squares = _row_distances(window == classes.view(-1, 1, 1), reach).square_()
            best = torch.full((len(classes), height, width), float(reach * reach), device=target.device)
            for shift in range(-reach, reach + 1):
                first, last = max(start, rows.start + shift), min(stop, rows.stop + shift)
                if first < last:
                    here = best[:, first - shift - rows.start : last - shift - rows.start]
                    torch.minimum(here, squares[:, first - start : last - start] + shift * shift, out=here)
            outside = best.sqrt_()
            own = target[rows] == classes.view(-1, 1, 1)
            torch.minimum(others, outside.masked_fill(own, float(reach)).amin(0), out=others)
            weights[classes] = outside.clamp(max=limit) / limit
        labels = target[rows].where(target[rows] != self.ignore_index, near[0])  # ignored pixels may have any weight
        return weights.scatter_(0, labels[None], (1 - others[None]) / limit)


def _row_distances(found: Tensor, limit: int) -> Tensor:
    """The distance of each pixel (..., W) to the nearest marked pixel of its row, at most `limit`."""
    width = found.shape[-1]
    position = torch.arange(width, dtype=torch.float32, device=found.device)
    before = torch.where(found, position, float(-limit)).cummax(-1).values
    after = torch.where(found, position, float(width + limit)).flip(-1).cummin(-1).values.flip(-1)
    return torch.minimum(position - before, after - position).clamp_(max=limit)
