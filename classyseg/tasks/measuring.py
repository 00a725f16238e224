"""What a val phase measures: the loss over all of it, and the meters."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from classyseg import distributed
from classyseg.layers import argmax_at
from classyseg.losses import ClassyLoss
from classyseg.meters import ClassyMeter
from classyseg.tasks.checks import joined_files, joined_metrics


class Measuring:
    """Counts the batches of a phase in a loss and in meters; `files` and `unseen_classes` are the last phase's."""

    def __init__(self, loss: ClassyLoss, meters: Sequence[ClassyMeter], main_head: str) -> None:
        self.loss, self.meters, self.main_head = loss, meters, main_head
        self.files: dict[str, str] = {}
        self.unseen_classes: Collection[str] = ()

    def begin(self, device: torch.device) -> None:
        for meter in self.meters:
            meter.reset()
        self._loss = torch.zeros(2, self.loss.num_terms, dtype=torch.float64, device=device)

    def update(self, outputs: Mapping[str, Tensor], target: Tensor) -> None:
        if self.loss.names_read(outputs, target):  # else the record has no loss
            counts = self.loss.counts(target)
            self._loss += torch.stack([self.loss.terms(outputs, target).double() * counts, counts])
        labels: dict[str, Tensor] = {}
        for meter in self.meters:
            head = meter.head or self.main_head
            if meter.reads_labels and head not in labels:
                labels[head] = argmax_at(outputs[head], target.shape[1:])
            meter.update(labels[head] if meter.reads_labels else outputs[head], target)

    def result(self) -> dict[str, Any]:
        """The numbers of the whole job. Every process calls it."""
        totals, counts = distributed.sum_over_processes(self._loss.cpu())
        loss = (totals / counts.clamp(min=1e-12)).sum().item()
        values = [meter.compute() for meter in self.meters]
        self.files = joined_files(self.meters, values, self.main_head)
        self.unseen_classes = {name for meter in self.meters for name in meter.unseen_classes}
        return {"loss": loss if counts.any() else None, **joined_metrics(self.meters, values, self.main_head)}
