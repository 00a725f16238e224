"""The hook that replaces moving averages of batch norm before the model is measured and saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from classyseg.errors import ConfigError
from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.layers import batch_norms_in_training
from classyseg.registry import HOOKS


@HOOKS.register("precise_batch_norm")
class PreciseBatchNormHook(ClassyHook):
    """Before each `val` phase, and after the last step, computes the running statistics of batch norm anew.

    In training, they are moving averages over batches of which each had other weights. This hook runs the next batches
    of training through the network with the weights as they are, in training mode, in all processes together. The
    statistics are then mean and variance of all values that came to each norm. With the hook [`ema`](#hook-ema), they
    are those of the averaged weights.

    They take the place of the moving averages in the model. So what is measured is what the checkpoint at the end of
    the training phase, the best one and `model/` hold. Training does not read them: its losses stay as they are, bit
    for bit. Checkpoints of the steps between hold moving averages. Frozen norms stay as they are.

    It costs as many forward passes as it takes batches, which are loaded in addition.

    Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021; as `fvcore.nn.precise_bn`, over all processes.

    Args:
        num_batches: Batches of the whole job; at most those of an epoch are taken.
    """

    def __init__(self, *, num_batches: Annotated[int, Field(ge=1)] = 200) -> None:
        self.num_batches = num_batches
        self._done_at = -1
        """The step whose weights the statistics are of."""

    def check(self, model: nn.Module) -> None:
        if not batch_norms_in_training(model):
            raise ConfigError(
                "precise_batch_norm: the model has no batch norm that trains; leave the hook out (other norms keep no "
                "running statistics)"
            )

    def on_phase_start(self, task: WatchedTask) -> None:
        # A run that was asked to stop while it computed them, or to end by another hook, has none yet.
        if task.progress.phase == "val":
            self._recompute(task)

    def on_phase_end(self, task: WatchedTask) -> None:
        if task.metrics["phase"] == "train" and (task.progress.phase != "train" or task.training_is_over):
            self._recompute(task)

    def _recompute(self, task: WatchedTask) -> None:
        step = task.progress.step
        if step not in (0, self._done_at) and task.recompute_batch_norm(self.num_batches):
            self._done_at = step

    def state(self) -> dict[str, Any]:
        return {"done_at": self._done_at}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if type(state["done_at"]) is not int:
            raise ValueError(f"found {state['done_at']!r}; expected a step as `done_at`")
        self._done_at = state["done_at"]
