"""Average precision: how well the scores of a class order the images, the mean over classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from classyseg.distributed import gather_over_processes
from classyseg.meters.classy_meter import ClassyMeter
from classyseg.registry import METERS

UNKNOWN = -1
"""The flag of a class that is not known of an image."""


@METERS.register("average_precision")
class AveragePrecisionMeter(ClassyMeter):
    """`average_precision` of each class, and `mean_average_precision` over the classes that some image has.

    It is the area under the precision-recall curve in steps: the sum of precision times the gain in recall, over all
    thresholds. An image has one class, or a flag for each. Flags that are `ignore_index` are left out. Images with
    equal scores have one threshold. All scores are kept until a phase ends.

    Source: scikit-learn's `average_precision_score`.

    Args:
        head: The head whose predictions count.
    """

    reads = "scores"
    of_whole_images = True
    number_names = ("mean_average_precision",)
    class_number_names = ("average_precision",)
    best_is = "largest"

    def __init__(self, classes: Sequence[str], ignore_index: int, *, head: str | None = None) -> None:
        self.classes, self.ignore_index, self.head = tuple(classes), ignore_index, head
        self.reset()

    def reset(self) -> None:
        self._scores: list[Tensor] = []
        self._flags: list[Tensor] = []

    def update(self, prediction: Tensor, target: Tensor) -> None:
        if target.dim() == 1:
            target = target.long()  # a byte cannot hold every `ignore_index`
            ignored = target == self.ignore_index
            flags = torch.nn.functional.one_hot(target.masked_fill(ignored, 0), len(self.classes))
            flags = flags.masked_fill(ignored[:, None], UNKNOWN)
        else:
            flags = (target > 0).long().masked_fill(target == self.ignore_index, UNKNOWN)
        self._scores.append(prediction.float())
        self._flags.append(flags.to(torch.int8))

    def compute(self) -> dict[str, Any]:
        scores = _of_job(self._scores, torch.zeros(0, len(self.classes)))
        flags = _of_job(self._flags, torch.zeros(0, len(self.classes), dtype=torch.int8))
        each = {name: average_precision(scores[:, i], flags[:, i]) for i, name in enumerate(self.classes)}
        self.unseen_classes = tuple(name for name, value in each.items() if value is None)
        known = [value for value in each.values() if value is not None]
        return {
            "mean_average_precision": sum(known) / len(known) if known else None,
            "average_precision": each,
        }


def average_precision(scores: Tensor, flags: Tensor) -> float | None:
    """Of one class, from the scores (N,) of images and whether they have it (N,); None where none has."""
    known = flags != UNKNOWN
    scores, flags = scores[known], flags[known].double()
    if not flags.any():
        return None
    scores, order = scores.sort(descending=True, stable=True)
    right = flags[order].cumsum(0)
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = scores[1:] != scores[:-1]  # the last image of each threshold
    right, taken = right[last], torch.arange(1, len(scores) + 1)[last]
    gained = right.diff(prepend=right.new_zeros(1)) / right[-1]
    return float((gained * right / taken).sum())


def _of_job(parts: Sequence[Tensor], empty: Tensor) -> Tensor:
    """The rows of all processes, on the host; a process may have none."""
    own = torch.cat([part.cpu() for part in parts]) if parts else empty
    most = int(gather_over_processes(torch.tensor(len(own))).max())
    padded = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
    counts = gather_over_processes(torch.tensor(len(own))).reshape(-1).tolist()
    return torch.cat([rows[:count] for rows, count in zip(gather_over_processes(padded), counts, strict=True)])
