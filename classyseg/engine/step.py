"""One training step: the gradients of a batch, whole or in parts, of a loss that may need all parts at once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from classyseg.distributed import sum_over_processes
from classyseg.engine.accumulation import whole_batch_step
from classyseg.engine.precision import Precision
from classyseg.engine.replication import no_sync
from classyseg.losses import ClassyLoss
from classyseg.structures import Sample


class Computed(NamedTuple):
    """What a batch gives: the outputs of the network by name, and the terms that add up to the loss."""

    outputs: Mapping[str, Tensor]
    terms: Tensor


class Work(Protocol):
    """What a step is handed: how images become outputs, and outputs the terms of a loss."""

    def complete(self, batch: Sample) -> Sample:
        """The batch with what is read or computed once, however often `outputs` is called."""

    def outputs(self, batch: Sample) -> Mapping[str, Tensor]: ...

    def terms(self, outputs: Mapping[str, Tensor], batch: Sample) -> Tensor: ...

    def compute(self, batch: Sample) -> Computed: ...


def gradients(
    batch: Sample, work: Work, network: nn.Module, loss: ClassyLoss, precision: Precision, num_parts: int
) -> Tensor:
    """Adds the gradients of the batch's loss to those of `network`; gives the loss, on the device.

    The batch is computed in `num_parts` parts, one after the other, which takes the memory of one.
    """
    if num_parts > 1 and not loss.is_additive:
        return _of_whole_batch(batch, work, network, precision, num_parts)
    parts = batch.chunk(num_parts)
    total: Tensor | float = 0.0
    for i, (part, share) in enumerate(zip(parts, _shares(parts, loss), strict=True)):
        with no_sync(network, unless=i == num_parts - 1):
            value = (work.compute(work.complete(part)).terms * share).sum()
            precision.backward(value)
        total = total + value.detach()
    return torch.as_tensor(total)


def _shares(parts: Sequence[Sample], loss: ClassyLoss) -> Sequence[Tensor | float]:
    """By part: how much of what counts in the batch of the whole job is in it, for each term of the loss."""
    if len(parts) == 1:
        return [1.0]
    counts = sum_over_processes(torch.stack([loss.counts(part.target) for part in parts]))
    return list((counts / counts.sum(0).clamp(min=1e-12)).float())


def _of_whole_batch(batch: Sample, work: Work, network: nn.Module, precision: Precision, num_parts: int) -> Tensor:
    """Of a loss that must see the outputs of all parts at once."""
    parts = [work.complete(part) for part in batch.chunk(num_parts)]
    passes = itertools.count(1)

    def run(i: int) -> Mapping[str, Tensor]:
        with no_sync(network, unless=next(passes) == 2 * num_parts):
            return work.outputs(parts[i])

    return whole_batch_step(
        network, run, num_parts, lambda outputs: work.terms(outputs, batch).sum(), precision.backward
    )
