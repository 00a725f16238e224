"""How the weights of a run are averaged. What does it is `classyseg.engine.averaging`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from classyseg.config import Bool, ConfigRecord, Float, Int


class AveragingConfig(ConfigRecord):
    """An exponential moving average of the weights. A hook asks for it by its attribute `averaging`.

    After a step, `average = decay * average + (1 - decay) * weights`.

    Args:
        decay: How much of the average an update keeps. 0.999 averages over some thousand updates. Choose it so that
            the run has many times `1 / (1 - decay)` updates.
        warmup: The first updates keep less: update n, from 0 on, keeps at most `(1 + n) / (10 + n)`. So the initial
            weights are soon forgotten.
        start_step: In the steps before this one the average is a copy of the weights.
        every: Steps from one update to the next.
        buffers: `average`: running statistics of batch norm are averaged as the weights are. `copy`: those of the
            model in training are taken. Integers are always taken from it.
    """

    decay: Annotated[Float, Field(ge=0, lt=1)] = 0.999
    warmup: Bool = True
    start_step: Annotated[Int, Field(ge=0)] = 0
    every: Annotated[Int, Field(ge=1)] = 1
    buffers: Literal["average", "copy"] = "average"

    def decay_of(self, num_updates: int) -> float:
        """How much of the average the next update keeps, after `num_updates` of them."""
        return min(self.decay, (1 + num_updates) / (10 + num_updates)) if self.warmup else self.decay
