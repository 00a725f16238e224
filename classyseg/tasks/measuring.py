"""What a test phase measures: the loss over all of it, and the meters."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from classyseg.heads.classy_head import LOGITS, ClassyHead, outputs_of
from classyseg.losses import ClassyLoss, LossSum
from classyseg.meters import ClassyMeter
from classyseg.models import ClassyModel
from classyseg.tasks.checks import joined_files, joined_metrics


class Measuring:
    """Counts the batches of a phase in a loss and in meters; `files` and `unseen_classes` are the last phase's."""

    def __init__(self, loss: ClassyLoss, meters: Sequence[ClassyMeter], model: ClassyModel) -> None:
        self.loss, self.meters, self.model = loss, meters, model
        self.files: dict[str, str] = {}
        self.unseen_classes: Collection[str] = ()

    def begin(self) -> None:
        for meter in self.meters:
            meter.reset()
        self._loss = LossSum()

    def update(self, outputs: Mapping[str, Tensor], target: Tensor) -> None:
        self._loss.add(self.loss.terms(outputs, target))
        made: dict[tuple[str, str], Any] = {}
        for meter in self.meters:
            name = meter.head or self.model.main_head
            own = outputs_of(outputs, name)
            reads = "logits" if meter.takes_logits and LOGITS in own else meter.reads
            if (name, reads) not in made:
                made[name, reads] = prediction(self.model.head(name), own, target.shape[1:], reads)
            meter.update(made[name, reads], target)

    def result(self) -> dict[str, Any]:
        """The numbers of the whole job. Every process calls it."""
        loss, main_head = self._loss.value(), self.model.main_head
        values = [meter.compute() for meter in self.meters]
        self.files = joined_files(self.meters, values, main_head)
        self.unseen_classes = {name for meter in self.meters for name in meter.unseen_classes}
        return {"loss": loss, **joined_metrics(self.meters, values, main_head)}


def prediction(head: ClassyHead, own: Mapping[str, Tensor], size: Sequence[int], reads: str) -> Any:
    """What a meter that `reads` it is given of a head's own outputs, at `size` (H, W)."""
    if reads == "logits":
        return own[LOGITS]
    if reads == "outputs":
        return own
    return head.labels(own, size) if reads == "labels" else head.scores(own, size)
