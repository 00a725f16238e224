"""IoU only near the outlines of classes: there, plain IoU hardly sees mistakes of large objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from classyseg.label_counts import check_labels
from classyseg.layers import argmax_at
from classyseg.meters.classy_meter import ClassyMeter, sum_of_job
from classyseg.meters.confusion import Absent, class_values, mean_over_classes
from classyseg.registry import METERS


@METERS.register("boundary_iou")
class BoundaryIoUMeter(ClassyMeter):
    """`mean_boundary_iou` and the `boundary_iou` of each class: the IoU of two bands along the outlines of a class.

    The band of a class has the pixels of the class that are at most d pixels away from another class, an ignored pixel
    or the image's border, in any of eight directions. d is `dilation_ratio` of the image's diagonal, at least 1.
    Intersection and union of the bands of masks and predictions are summed over the whole set. `absent` is as in
    `mean_iou`.

    Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021.

    Args:
        dilation_ratio: d as a share of the image's diagonal, rounded, at least 1.
        absent: As of `mean_iou`.
        head: The head whose predictions count.
    """

    number_names = ("mean_boundary_iou",)
    class_number_names = ("boundary_iou",)
    best_is = "largest"

    def __init__(
        self,
        classes: Sequence[str],
        ignore_index: int,
        *,
        dilation_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.02,
        absent: Absent = "skip",
        head: str | None = None,
    ) -> None:
        self.classes = tuple(classes)
        self.ignore_index = ignore_index
        self.dilation_ratio = dilation_ratio
        self.absent: Absent = absent
        self.head = head
        self.reset()

    def reset(self) -> None:
        self.counts = torch.zeros(3, len(self.classes), dtype=torch.int64)
        """Pixels by class in both bands, in the masks' and in the predictions'."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        if prediction.is_floating_point():
            prediction = argmax_at(prediction, target.shape[1:])
        num_classes = len(self.classes)
        prediction, target = prediction.long(), target.long()
        ignored = target == self.ignore_index
        for name, labels in (("prediction", prediction), ("target", target)):
            check_labels(name, labels, num_classes, ignored)
        distance = max(1, round(self.dilation_ratio * math.hypot(*target.shape[1:])))
        true = _band(target.masked_fill(ignored, num_classes), distance, num_classes)
        found = _band(prediction.masked_fill(ignored, num_classes), distance, num_classes)
        both = true.masked_fill(true != found, num_classes)
        counts = torch.stack([_count(labels, num_classes) for labels in (both, true, found)])
        self.counts = self.counts.to(counts.device) + counts

    def compute(self) -> dict[str, Any]:
        both, true, found = sum_of_job(self.counts)
        self.unseen_classes = [name for name, pixels in zip(self.classes, true, strict=True) if not pixels]
        values = class_values(self.classes, both, true + found - both)
        return {"mean_boundary_iou": mean_over_classes(values, self.absent), "boundary_iou": values}


def _band(labels: Tensor, distance: int, outside: int) -> Tensor:
    """`labels` (N, H, W) with `outside` wherever all pixels at most `distance` away have the same label."""
    # Marks where two neighbours in a row (then in a column) differ; the image's border counts as a difference.
    across = functional.pad(labels[:, :, 1:] != labels[:, :, :-1], (1, 1), value=True)
    down = functional.pad(labels[:, 1:] != labels[:, :-1], (0, 0, 1, 1), value=True)
    row_is_mixed = _any_within(across, distance - 1, distance, axis=2, length=labels.shape[2])
    # If no row of the window is mixed, its middle column tells whether the rows differ.
    mixed = _any_within(row_is_mixed, distance, distance, axis=1, length=labels.shape[1])
    mixed |= _any_within(down, distance - 1, distance, axis=1, length=labels.shape[1])
    return labels.masked_fill(~mixed, outside)


def _any_within(flags: Tensor, before: int, after: int, axis: int, length: int) -> Tensor:
    """Whether any flag is set from `before` before to `after` after each of `length` positions along `axis`."""
    counted = functional.pad(flags.cumsum(axis, dtype=torch.int32), (1, 0) if axis == 2 else (0, 0, 1, 0))
    position = torch.arange(length, device=flags.device)
    first = (position - before).clamp(min=0)
    last = (position + after + 1).clamp(max=flags.shape[axis])
    return counted.index_select(axis, last) > counted.index_select(axis, first)


def _count(labels: Tensor, num_classes: int) -> Tensor:
    """How many pixels have each class, (num_classes,) int64; the label `num_classes` is not counted."""
    counts = torch.zeros(num_classes + 1, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(0, labels.flatten(), torch.ones_like(labels).flatten())[:-1]
