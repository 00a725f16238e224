"""The hook that ends a training which does not get better any more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.hooks.numbers import direction_of, number_of
from classyseg.registry import HOOKS
from classyseg.structures import BestIs


@HOOKS.register("early_stopping")
class EarlyStoppingHook(ClassyHook):
    """Ends the training when a number of the val record has not become better for `patience` val phases.

    The run then ends as a finished one does: the last step is saved and measured, and `test` follows. It stays ended
    when it is resumed, also with another `patience`. To use the best weights, give the hook `checkpoint` a `best`.

    Args:
        best: A number of the val record, as for the hook [`checkpoint`](#hook-checkpoint): `loss`, `mean_iou`,
            `iou/person`.
        patience: So many val phases in a row without a better value end the training. A phase in which the number is
            null, because nothing valid was measured, counts as one of them.
        min_delta: A value is better only if it differs from the best one by more than this.
        best_is: `largest` or `smallest`; null: as the number declares it. It is needed only if a plugin's meter does
            not declare it.
        target: The training also ends as soon as the number is at least as good as this.
    """

    def __init__(
        self,
        *,
        best: Annotated[str, Field(min_length=1)] = "loss",
        patience: Annotated[int, Field(ge=1)] = 3,
        min_delta: Annotated[float, Field(ge=0)] = 0.0,
        best_is: BestIs | None = None,
        target: float | None = None,
    ) -> None:
        self.best: str = best
        self.patience = patience
        self.min_delta = min_delta
        self.best_is = best_is
        self.target = target
        self._begin()

    def _begin(self) -> None:
        self.best_value: float | None = None
        self.best_step = 0
        self.waited = 0
        """Val phases since the best one."""

    def on_phase_end(self, task: WatchedTask) -> None:
        record = task.metrics
        if record["phase"] != "val":
            return
        # With -1, the smallest is best among the negated values: one comparison serves both directions.
        sign = 1 if direction_of(task, self.best, self.best_is, "early_stopping") == "largest" else -1
        value = number_of(record, self.best, "early_stopping")
        if value is not None and self.target is not None and sign * value >= sign * self.target:
            task.request_stop(f"early_stopping: {self.best} is {value:.6g}, and the target is {self.target:.6g}")
        before = self.best_value
        if value is not None and (before is None or sign * value > sign * before + self.min_delta):
            self.best_value, self.best_step, self.waited = value, record["step"], 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            known = "was never measured" if before is None else f"is not better than {before:.6g} of step"
            at = "" if before is None else f" {self.best_step}"
            task.request_stop(f"early_stopping: {self.best} {known}{at}, for {self.waited} val phases")

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "value": self.best_value, "step": self.best_step, "waited": self.waited}

    def load_state(self, state: Mapping[str, Any]) -> None:
        number, value, step, waited = (state[key] for key in ("best", "value", "step", "waited"))
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (value is None or is_number) or not all(type(count) is int and count >= 0 for count in (step, waited)):
            raise ValueError(
                f"found {dict(state)}; expected a number or null as `value`, counts as `step` and `waited`"
            )
        if number == self.best:  # else the config names another number now, with which the wait begins anew
            self.best_value, self.best_step, self.waited = value, step, waited
