"""What an integer confusion matrix tells: IoU, Dice, accuracies, the matrix itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from classyseg.label_counts import confusion_matrix, flag_counts
from classyseg.layers import argmax_at, flags_at
from classyseg.meters.classy_meter import ClassyMeter, sum_of_job
from classyseg.registry import METERS

Absent = Literal["skip", "zero"]
"""Whether a class without a value is left out of a mean over classes or counts as 0."""


def class_values(classes: Sequence[str], part: Tensor, whole: Tensor) -> dict[str, float | None]:
    """`part / whole` (C,) by the names of the classes; None where `whole` is 0."""
    quotient = (part.double() / whole.double()).tolist()
    return {name: None if empty else value for name, value, empty in zip(classes, quotient, whole == 0, strict=True)}


def mean_over_classes(values: Mapping[str, float | None], absent: Absent) -> float | None:
    """The mean of the classes' values; those that have none are left out or count as 0."""
    counted = [value or 0.0 for value in values.values() if value is not None or absent == "zero"]
    return float(np.mean(counted)) if counted else None


class _Counts(NamedTuple):
    """What is counted of each class (C,): `hits` are of it and predicted so, `true` of it, `predicted` predicted so.

    `right` of all `valid` pixels are right. Where pixels have several classes, `right` and `valid` count their flags.
    """

    hits: Tensor
    true: Tensor
    predicted: Tensor
    right: int
    valid: int


class _ConfusionMeter(ClassyMeter):
    """Accumulates the confusion matrix of a phase on the device.

    Where pixels have several classes (`takes_flags`), it counts the pixels of each class by itself.
    """

    best_is = "largest"
    takes_flags = True

    def __init__(self, classes: Sequence[str], ignore_index: int, *, head: str | None = None) -> None:
        self.classes = tuple(classes)
        self.ignore_index = ignore_index
        self.head = head
        self.reset()

    def reset(self) -> None:
        number = len(self.classes)
        self.sums = torch.zeros(number + 4, number, dtype=torch.int64)
        """The confusion matrix. Below it, of flags by class: hits, true, predicted and valid ones."""

    @property
    def matrix(self) -> Tensor:
        """The confusion matrix of this process."""
        return self.sums[: len(self.classes)]

    def update(self, prediction: Tensor, target: Tensor) -> None:
        number = len(self.classes)
        if target.dim() == 4:
            if prediction.is_floating_point():
                prediction = flags_at(prediction, target.shape[2:])
            counts, rows = flag_counts(prediction, target, self.ignore_index), slice(number, None)
        else:
            if prediction.is_floating_point():
                prediction = argmax_at(prediction, target.shape[1:])
            counts, rows = confusion_matrix(prediction, target, number, self.ignore_index), slice(number)
        self.sums = self.sums.to(counts.device)
        self.sums[rows] += counts

    def total(self) -> Tensor:
        """The matrix of the whole job, on the host. Every process calls it."""
        return self._totals()[0]

    def counts(self) -> _Counts:
        """The counts of the whole job, on the host. Every process calls it."""
        matrix, flags = self._totals()
        if not flags.any():
            return _Counts(matrix.diag(), matrix.sum(1), matrix.sum(0), int(matrix.trace()), int(matrix.sum()))
        hits, true, predicted, valid = flags
        wrong = int((true + predicted - 2 * hits).sum())
        return _Counts(hits, true, predicted, int(valid.sum()) - wrong, int(valid.sum()))

    def _totals(self) -> tuple[Tensor, Tensor]:
        """The matrix and the counts of flags of the whole job: a process that had no batch does not know the kind."""
        whole = sum_of_job(self.sums)
        matrix, flags = whole[: len(self.classes)], whole[len(self.classes) :]
        true = matrix.sum(1) + flags[1]
        self.unseen_classes = [name for name, pixels in zip(self.classes, true, strict=True) if not pixels]
        return matrix, flags


class _MeanOverClassesMeter(_ConfusionMeter):
    """Gives a value of each class and their mean."""

    def __init__(
        self, classes: Sequence[str], ignore_index: int, *, absent: Absent = "skip", head: str | None = None
    ) -> None:
        super().__init__(classes, ignore_index, head=head)
        self.absent: Absent = absent

    def _by_class(self, name: str, part: Tensor, whole: Tensor) -> dict[str, Any]:
        """`part / whole` of each class under `name`, and its mean over classes."""
        values = class_values(self.classes, part, whole)
        return {f"mean_{name}": mean_over_classes(values, self.absent), name: values}


@METERS.register("mean_iou")
class MeanIoUMeter(_MeanOverClassesMeter):
    """`mean_iou`, the `iou` of each class and `pixel_accuracy`, from one confusion matrix over the whole set.

    A class that is neither in the masks nor predicted has no IoU: `absent: skip` leaves it out of the mean, `absent:
    zero` counts it as 0 (as PyTorch-Encoding does); its `iou` is null either way.

    The IoU of a class counts all valid pixels of the measured set: those of the class that are predicted so, divided by
    those that are of the class or predicted so. Where pixels have several classes (`multi_label`), each class is
    counted by itself, and `pixel_accuracy` is the share of right flags.

    Args:
        absent: `zero` counts a class that is neither in the masks nor predicted as 0 in the mean (its `iou` is null
            either way).
        head: The head whose predictions count.
    """

    number_names = ("mean_iou", "pixel_accuracy")
    class_number_names = ("iou",)

    def compute(self) -> dict[str, Any]:
        found = self.counts()
        values = self._by_class("iou", found.hits, found.predicted + found.true - found.hits)
        return {"mean_iou": values["mean_iou"], "pixel_accuracy": _pixel_accuracy(found), "iou": values["iou"]}


@METERS.register("dice")
class DiceMeter(_MeanOverClassesMeter):
    """`mean_dice` and the `dice` of each class: twice the pixels found, by those in the masks plus those predicted.

    The same as the F1 score of each class. A class that is neither in the masks nor predicted has none, as with
    `mean_iou`.

    Args:
        absent: As of `mean_iou`.
        head: The head whose predictions count.
    """

    number_names = ("mean_dice",)
    class_number_names = ("dice",)

    def compute(self) -> dict[str, Any]:
        found = self.counts()
        return self._by_class("dice", 2 * found.hits, found.predicted + found.true)


@METERS.register("class_accuracy")
class ClassAccuracyMeter(_MeanOverClassesMeter):
    """`mean_class_accuracy` and the `class_accuracy` of each class: the share of its pixels that are found.

    A class that is in no mask has none.

    Args:
        absent: `zero` counts a class that is in no mask as 0 in the mean.
        head: The head whose predictions count.
    """

    number_names = ("mean_class_accuracy",)
    class_number_names = ("class_accuracy",)

    def compute(self) -> dict[str, Any]:
        found = self.counts()
        return self._by_class("class_accuracy", found.hits, found.true)


@METERS.register("pixel_accuracy")
class PixelAccuracyMeter(_ConfusionMeter):
    """`pixel_accuracy`: the share of valid pixels whose class is right.

    Args:
        head: The head whose predictions count.
    """

    number_names = ("pixel_accuracy",)

    def compute(self) -> dict[str, Any]:
        return {"pixel_accuracy": _pixel_accuracy(self.counts())}


@METERS.register("confusion_matrix")
class ConfusionMatrixMeter(_ConfusionMeter):
    """`confusion_matrix`: rows of true, columns of predicted classes, in pixels, as a list of lists.

    The newest one lies in the run's folder as `confusion_matrix.csv`, too, with the names of the classes (that of
    another head as `HEAD_confusion_matrix.csv`).

    Args:
        head: The head whose predictions count.
    """

    number_names = ()
    takes_flags = False

    def compute(self) -> dict[str, Any]:
        return {"confusion_matrix": self.total().tolist()}

    def files(self, values: Mapping[str, Any]) -> dict[str, str]:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["true \\ predicted", *self.classes])
        writer.writerows([name, *row] for name, row in zip(self.classes, values["confusion_matrix"], strict=True))
        return {"confusion_matrix.csv": text.getvalue()}


def _pixel_accuracy(found: _Counts) -> float | None:
    return found.right / found.valid if found.valid else None
