"""What an integer confusion matrix tells: mean IoU, pixel accuracy, the matrix itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from classyseg.distributed import sum_over_processes
from classyseg.layers import argmax_at
from classyseg.meters.classy_meter import ClassyMeter
from classyseg.registry import METERS


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """How often (row) was the true and (column) the predicted class: (num_classes, num_classes) int64.

    `prediction` and `target` hold class indices in one shape; pixels whose target is `ignore_index` are left out.
    """
    pair = torch.where(target == ignore_index, num_classes**2, target * num_classes + prediction).flatten()
    if pair.device.type == "cpu":  # numpy counts about twice as fast as torch here, and waits for nothing elsewhere
        counts = torch.from_numpy(np.bincount(pair.numpy(), minlength=num_classes**2 + 1))
    else:
        counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=pair.device)
        counts.scatter_add_(0, pair, torch.ones_like(pair))
    return counts[:-1].view(num_classes, num_classes)


class _ConfusionMeter(ClassyMeter):
    """Accumulates the confusion matrix of a phase on the device."""

    def __init__(self, classes: Sequence[str], ignore_index: int) -> None:
        self.classes = tuple(classes)
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        self.matrix = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        if prediction.is_floating_point():
            prediction = argmax_at(prediction, target.shape[1:])
        counts = confusion_matrix(prediction, target, len(self.classes), self.ignore_index)
        self.matrix = self.matrix.to(counts.device) + counts

    def total(self) -> Tensor:
        """The matrix of the whole job, on the host. Every process calls it."""
        return sum_over_processes(self.matrix.clone()).cpu()


@METERS.register("mean_iou")
class MeanIoUMeter(_ConfusionMeter):
    """`mean_iou`, the `iou` of each class and `pixel_accuracy`, from one confusion matrix over the whole set.

    A class that is neither in the masks nor predicted has no IoU: `absent: skip` leaves it out of the mean, `absent:
    zero` counts it as 0 (as PyTorch-Encoding does); its `iou` is null either way.
    """

    numbers = ("mean_iou", "pixel_accuracy")

    def __init__(
        self,
        classes: Sequence[str],
        ignore_index: int,
        *,
        absent: Literal["skip", "zero"] = "skip",
        head: str | None = None,
    ) -> None:
        super().__init__(classes, ignore_index)
        self.absent = absent
        self.head = head

    def compute(self) -> dict[str, Any]:
        matrix = self.total().double()
        union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
        iou = matrix.diag() / union  # 0 / 0 is NaN: absent
        counted = iou.nan_to_num(0.0) if self.absent == "zero" else iou[union > 0]
        return {
            "mean_iou": counted.mean().item() if len(counted) else None,
            "pixel_accuracy": _pixel_accuracy(matrix),
            "iou": {
                name: None if value != value else value for name, value in zip(self.classes, iou.tolist(), strict=True)
            },
        }


@METERS.register("pixel_accuracy")
class PixelAccuracyMeter(_ConfusionMeter):
    """`pixel_accuracy`: the share of valid pixels whose class is right."""

    numbers = ("pixel_accuracy",)

    def __init__(self, classes: Sequence[str], ignore_index: int, *, head: str | None = None) -> None:
        super().__init__(classes, ignore_index)
        self.head = head

    def compute(self) -> dict[str, Any]:
        return {"pixel_accuracy": _pixel_accuracy(self.total().double())}


@METERS.register("confusion_matrix")
class ConfusionMatrixMeter(_ConfusionMeter):
    """`confusion_matrix`: rows of true, columns of predicted classes, in pixels, as a list of lists."""

    numbers = ()

    def __init__(self, classes: Sequence[str], ignore_index: int, *, head: str | None = None) -> None:
        super().__init__(classes, ignore_index)
        self.head = head

    def compute(self) -> dict[str, Any]:
        return {"confusion_matrix": self.total().tolist()}


def _pixel_accuracy(matrix: Tensor) -> float | None:
    return (matrix.diag().sum() / matrix.sum()).item() if matrix.any() else None
