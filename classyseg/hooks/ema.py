"""The hook that averages the weights while a run trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from classyseg.averaging import AveragingConfig
from classyseg.hooks.classy_hook import ClassyHook
from classyseg.registry import HOOKS


@HOOKS.register("ema")
class EMAHook(ClassyHook):
    """Keeps an exponential moving average of the weights: `average = decay * average + (1 - decay) * weights`.

    The average is what `val` and `test` measure, what `best` compares, and what `model/`, `predict` and `evaluate` use.
    Training itself goes on with the weights; checkpoints hold both. It takes the memory of the weights once more, and
    no second model. A run has one average.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 1992;
    the warm-up is TensorFlow's, `tf.train.ExponentialMovingAverage(num_updates=...)`.

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

    def __init__(
        self,
        *,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.999,
        warmup: bool = True,
        start_step: Annotated[int, Field(ge=0)] = 0,
        every: Annotated[int, Field(ge=1)] = 1,
        buffers: Literal["average", "copy"] = "average",
    ) -> None:
        self.averaging = AveragingConfig(
            decay=decay, warmup=warmup, start_step=start_step, every=every, buffers=buffers
        )
