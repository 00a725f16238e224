"""Counts of labels: how often each true class is predicted as each other one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def check_labels(name: str, labels: Tensor, num_classes: int, ignored: Tensor) -> None:
    """Raises: `ValueError` for a label that is no class and not `ignored`, on the host only, as a GPU would wait."""
    if labels.device.type != "cpu" or not labels.numel():
        return
    low, high = (int(label) for label in labels.aminmax())
    if low < 0 or high >= num_classes:
        labels = labels.long()
        wrong = labels[((labels < 0) | (labels >= num_classes)) & ~ignored]
        if len(wrong):
            raise ValueError(f"{name}: found the label {int(wrong[0])}; accepted: 0 to {num_classes - 1}")


def is_ignored(target: Tensor, ignore_index: int) -> Tensor:
    """Where labels of any integer type are `ignore_index`. In bytes, torch would take 0 for 256, and 255 for -1."""
    compares = target.dtype != torch.uint8 or 0 <= ignore_index <= 255
    return target == ignore_index if compares else torch.zeros_like(target, dtype=torch.bool)


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """How often each pair of true class (row) and predicted class (column) occurs: (num_classes, num_classes) int64.

    `prediction` and `target` hold class indices in one shape; pixels whose target is `ignore_index` are left out.

    Raises: `ValueError` on the host as `check_labels`.
    """
    ignored = is_ignored(target, ignore_index)
    check_labels("prediction", prediction, num_classes, ignored)
    if target.dtype == torch.int64:
        pair = torch.add(prediction, target, alpha=num_classes)
    else:  # masks arrive as bytes; adding two types would take four times as long
        pair = target.long().mul_(num_classes).add_(prediction)
    pair = pair.masked_fill_(ignored, num_classes**2).flatten()
    if pair.device.type == "cpu":  # numpy counts about twice as fast as torch here, and waits for nothing elsewhere
        try:
            found = np.bincount(pair.numpy(), minlength=num_classes**2 + 1)
        except (ValueError, MemoryError):  # a negative label, or a huge one
            check_labels("target", target, num_classes, ignored)
            raise
        if len(found) > num_classes**2 + 1 or found[-1] != np.count_nonzero(ignored.numpy()):
            # The label num_classes with the prediction 0 falls into the bin of ignored pixels: only the count tells.
            check_labels("target", target, num_classes, ignored)
        counts = torch.from_numpy(found)
    else:
        counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=pair.device)
        counts.scatter_add_(0, pair, torch.ones_like(pair))
    return counts[:-1].view(num_classes, num_classes)


def flag_counts(prediction: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Of flags (N, C, H, W) by class, (4, C) int64: those set in both, in `target`, in `prediction`, and valid ones.

    Flags whose target is `ignore_index` are left out. Raises: `ValueError` on the host for a target of other numbers.
    """
    valid, true = ~is_ignored(target, ignore_index), target == 1
    if target.device.type == "cpu" and bool((valid & (target > 1)).any() or (valid & (target < 0)).any()):
        raise ValueError(f"target: found flags that are neither 0, 1 nor {ignore_index}")
    found = (prediction > 0) & valid
    return torch.stack([each.sum((0, 2, 3)) for each in (found & true, true, found, valid)])


def mean_iou_of_image(correct: Tensor, labelled: Tensor, predicted: Tensor) -> float | None:
    """The mean IoU of an image, over the classes in its label or prediction; None if every pixel is ignored.

    The arguments count the pixels of each class (num_classes,), on the host.
    """
    union = labelled + predicted - correct
    found = union > 0
    return (correct[found].double() / union[found]).mean().item() if found.any() else None
