"""The contract of schedules: factors of an optimizer's option over a run. The curves are fvcore's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from fvcore.common import param_scheduler as fvcore_schedules
from fvcore.common.param_scheduler import ParamScheduler as Curve
from pydantic import Field

from classyseg.errors import ConfigError
from classyseg.registry import Configurable
from classyseg.structures import RunLength

Epochs = Annotated[float, Field(ge=0)]
Steps = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=1e6)]
MinRate = Annotated[float, Field(ge=0, le=1e6)] | None

IntervalScaling = Literal["rescaled", "fixed"]
"""How a warm-up changes the curve, in the words of ClassyVision and fvcore."""
UpdateInterval = Literal["step", "epoch"]
"""When the factor changes, in the words of ClassyVision."""

GRID = 10**9
"""fvcore's milestones are integers: a run is cut into so many parts for them."""


class ClassyScheduler(Configurable, ABC):
    """Built as `Schedule(length, *, options)`; called before every step with the share of the run that is done.

    For `warmup_epochs`, or `warmup_steps`, the factor rises linearly from `warmup_factor` to where the curve goes on.
    With `interval_scaling` `rescaled`, the whole curve is squeezed into the rest of the run: each value comes later
    than without a warm-up. With `fixed`, the curve is that of the whole run, and the warm-up replaces its beginning:
    nothing else moves. ClassyVision's "fixed", detectron2 and, for steps, PyTorch-Encoding do the same.

    With `update_interval` `epoch`, every step of an epoch has the factor of its first one. `min_lr` is a learning rate;
    see `take_base`.

    `length` is the run's. Options in a unit that it does not tell (epochs of a run in steps, before its data are
    opened) are not checked.
    """

    replaced = {"__init__(num_epochs)": "take `length`, a `RunLength` with `epochs` and `steps`, in its place"}

    def __new__(cls, length: RunLength | None = None, *args: Any, **options: Any) -> Self:
        """Raises: `TypeError` for something else than a length, before a subclass reads it."""
        RunLength.require(length)
        return super().__new__(cls)

    def __init__(
        self,
        length: RunLength,
        warmup_epochs: float = 0.0,
        warmup_factor: float = 0.0,
        interval_scaling: IntervalScaling = "rescaled",
        warmup_steps: int = 0,
        *,
        update_interval: UpdateInterval = "step",
        min_lr: float | None = None,
    ) -> None:
        if warmup_epochs and warmup_steps:
            raise ConfigError(f"found warmup_epochs {warmup_epochs} and warmup_steps {warmup_steps}; keep one")
        share = _share_of_warmup("warmup_steps", warmup_steps, length.steps, "steps") if warmup_steps else None
        if warmup_epochs:
            share = _share_of_warmup("warmup_epochs", warmup_epochs, length.epochs, "epochs")
        self._warmup = (share, warmup_factor, interval_scaling)
        self.update_interval = update_interval
        self._epochs = length.epochs if update_interval == "epoch" else None
        self.min_lr = min_lr
        self.min_factor = min_lr
        """`min_lr` as a factor of the base rate, which is 1 until `take_base` tells it."""
        self.whole_curve = self._with_warmup(self.curve())

    @abstractmethod
    def curve(self) -> Curve:
        """The factor over [0, 1), without warm-up."""

    def __call__(self, where: float) -> float:
        """The factor of the base value when the share `where` of the run, in [0, 1), is done."""
        if self._epochs:
            # The sum keeps an epoch's first step in it, though its share is rounded.
            where = math.floor(where * self._epochs + 1e-9) / self._epochs
        return float(self.whole_curve(where))

    def take_base(self, lr: float) -> None:
        """Tells the base learning rate: `min_lr` then becomes a factor of it. Called once, by the optimizer.

        Raises: `ConfigError` for a `min_lr` above it.
        """
        if self.min_lr is None:
            return
        if self.min_lr > lr:
            raise ConfigError("min_lr", f"found {self.min_lr}, above the base rate {lr}; give at most that")
        self.min_factor = self.min_lr / lr
        self.whole_curve = self._with_warmup(self.curve())

    def refuse_min_lr(self) -> None:
        """Raises: `ConfigError` for a `min_lr`, where the option that it schedules is no learning rate."""
        if self.min_lr is not None:
            raise ConfigError("min_lr", f"found {self.min_lr}, but this option is no learning rate; write end_factor")

    def _with_warmup(self, curve: Curve) -> Curve:
        share, factor, scaling = self._warmup
        if not share:
            return curve
        reached = curve(0.0 if scaling == "rescaled" else share)
        warmup = fvcore_schedules.LinearParamScheduler(factor, reached)
        return fvcore_schedules.CompositeParamScheduler(
            [warmup, curve], lengths=[share, 1 - share], interval_scaling=["rescaled", scaling]
        )

    def end(self, end_factor: float | None, default: float) -> float:
        """Where a curve ends that has the options `end_factor` and `min_lr`. Raises: `ConfigError` for both."""
        if end_factor is None:
            return default if self.min_factor is None else self.min_factor
        if self.min_lr is not None:
            raise ConfigError("min_lr", f"found {self.min_lr} together with end_factor {end_factor}; keep one of them")
        return end_factor

    def not_below(self, curve: Curve) -> Curve:
        """`curve`, which then stays at the factor of `min_lr`."""
        return curve if self.min_factor is None else Floor(curve, self.min_factor)


class Floor(Curve):
    """A curve that never falls below `least`."""

    def __init__(self, curve: Curve, least: float) -> None:
        self.curve, self.least = curve, least

    def __call__(self, where: float) -> float:
        return max(float(self.curve(where)), self.least)


def _share_of_warmup(key: str, warmup: float, whole: float | None, unit: str) -> float | None:
    """The share of the run that a warm-up takes; None if the run's length is not known, or nothing is trained.

    Raises: `ConfigError` for a warm-up of the whole run.
    """
    if not whole:
        return None
    if warmup >= whole:
        raise ConfigError(
            key,
            f"found {warmup}; the run has {whole} {unit}, and the warm-up takes fewer: shorten it, or write 0",
        )
    return warmup / whole


def on_grid(key: str, milestones: Sequence[float], whole: float | None, unit: str) -> list[int]:
    """The milestones as numbers of `GRID` parts of a run. Raises: `ConfigError` unless they rise."""
    if list(milestones) != sorted(set(milestones)) or (whole and milestones[-1] >= whole):
        below = f" below {whole}" if whole else ""
        raise ConfigError(key, f"found {list(milestones)}; expected rising {unit}{below}")
    whole = whole or milestones[-1] + 1  # the run's length is not known yet, or it has no steps
    return [round(milestone / whole * GRID) for milestone in milestones]
