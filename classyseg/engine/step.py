"""One training step: the gradients of a batch, whole or in parts, of a loss that may need all parts at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from classyseg.distributed import sum_over_processes, world_size
from classyseg.engine.accumulation import whole_batch_step
from classyseg.engine.precision import Precision
from classyseg.engine.replication import no_sync
from classyseg.losses import Meaning, Terms
from classyseg.structures import Sample


class Computed(NamedTuple):
    """What a batch gives: the outputs of the network by name, and the terms of the loss."""

    outputs: Mapping[str, Tensor]
    terms: Terms


class BatchWork(Meaning, Protocol):
    """What the engine must be given for a step, in addition to the meaning of a batch."""

    @property
    def is_additive(self) -> bool:
        """Whether `counts` are known before the whole batch is computed. Then its parts are computed one by one."""

    def counts(self, outputs: Mapping[str, Tensor], batch: Sample) -> Tensor:
        """The counts of the terms of `batch`. `outputs` may be those of a part of it; their values do not matter."""

    def terms(self, outputs: Mapping[str, Tensor], batch: Sample) -> Terms: ...

    def compute(self, batch: Sample) -> Computed: ...


def gradients(batch: Sample, work: BatchWork, network: nn.Module, precision: Precision, num_parts: int) -> Tensor:
    """Adds the gradients of the batch's loss to those of `network`; gives the loss, on the device.

    The batch is computed in `num_parts` parts, one after the other. That takes the memory of one part.
    """
    if num_parts > 1 and not work.is_additive:
        return _of_whole_batch(batch, work, network, precision, num_parts)
    total: Tensor | None = None
    counts: Tensor | None = None
    for i, part in enumerate(batch.chunk(num_parts)):
        with no_sync(network, unless=i == num_parts - 1):
            outputs, terms = work.compute(work.complete(part))
            if counts is None:
                counts = terms.counts if num_parts == 1 else work.counts(outputs, batch)
                counts = sum_over_processes(counts)
            # Distributed training averages gradients over processes; the factor makes that average a sum.
            value = terms.divided(counts, float(world_size()))
            precision.backward(value)
        total = value.detach() if total is None else total + value.detach()
    return torch.zeros(()) if total is None else total


def _of_whole_batch(batch: Sample, work: BatchWork, network: nn.Module, precision: Precision, num_parts: int) -> Tensor:
    """As `gradients`, for a loss that must see the outputs of all parts at once."""
    parts = [work.complete(part) for part in batch.chunk(num_parts)]
    return whole_batch_step(
        network,
        lambda i: work.outputs(parts[i]),
        num_parts,
        lambda outputs: work.terms(outputs, batch).job_loss(),
        precision.backward,
        lambda exchanges: no_sync(network, unless=exchanges),
    )
