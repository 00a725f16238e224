"""Tasks of a plugin that segment, and mean something else by a batch than the base does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from registered import forgotten
from torch import Tensor

from classyseg.losses import Terms
from classyseg.registry import TASKS
from classyseg.structures import Sample
from classyseg.tasks import Computed, SegmentationTask


class PenaltyTask(SegmentationTask):
    """Adds to the loss how large the logits are, over all of the job's logits."""

    def terms(self, outputs: Mapping[str, Tensor], batch: Sample) -> Terms:
        own = super().terms(outputs, batch)
        count = torch.tensor(float(outputs["main"].numel()))
        return Terms.of(
            [*zip(own.sums, own.counts, strict=True), (outputs["main"].square().sum(), count)], batch.target.device
        )


class BrighterTask(SegmentationTask):
    """The network sees brighter images."""

    def outputs(self, batch: Sample) -> Mapping[str, Tensor]:
        return super().outputs(batch.replace(image=batch.image + 2))


class TurnedTask(SegmentationTask):
    """Both in one piece: the outputs are of the image upside down, turned back; the loss is doubled."""

    def compute(self, batch: Sample) -> Computed:
        found = self.outputs(batch.replace(image=batch.image.flip(2)))
        outputs = {name: value.flip(2) for name, value in found.items()}
        own = self.terms(outputs, batch)
        return Computed(outputs, own._replace(sums=2 * own.sums))


TASKS_OF_PLUGIN: dict[str, type[SegmentationTask]] = {
    "penalty": PenaltyTask,
    "brighter": BrighterTask,
    "turned": TurnedTask,
}


@contextmanager
def registered() -> Iterator[None]:
    with forgotten(TASKS):
        for name, task in TASKS_OF_PLUGIN.items():
            TASKS.register(name)(task)
        yield
