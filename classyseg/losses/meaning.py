"""What a batch means, to training and to measuring alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from classyseg.losses.classy_loss import Terms
from classyseg.structures import Sample


class Meaning(Protocol):
    """What a batch means to a task: how images become outputs, and outputs the terms of a loss."""

    def complete(self, batch: Sample) -> Sample:
        """The batch with all that must be read or computed only once, though `outputs` may be called twice."""

    def outputs(self, batch: Sample) -> Mapping[str, Tensor]: ...

    def compute(self, batch: Sample) -> tuple[Mapping[str, Tensor], Terms | None]:
        """The outputs of a batch, and the terms of the loss; None where no loss is measured."""
