"""The schedules: constant, linear, cosine, exponential, polynomial, in steps, and one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Literal

from fvcore.common import param_scheduler as fvcore_schedules
from pydantic import Field

from classyseg.errors import ConfigError, within
from classyseg.optim.classy_scheduler import (
    GRID,
    ClassyScheduler,
    Curve,
    Epochs,
    Factor,
    IntervalScaling,
    MinRate,
    Share,
    Steps,
    UpdateInterval,
    on_grid,
)
from classyseg.registry import SCHEDULERS, ScheduleConfig
from classyseg.structures import RunLength

MAX_PARTS = 100_000
FACTOR = 0.1
"""By this a rate is multiplied where a config does not say."""


@SCHEDULERS.register("constant")
class Constant(ClassyScheduler):
    """The base rate throughout.

    Args:
        factor: Multiplies the base rate.
        warmup_epochs: For so many epochs at the start, fewer than the run has, the factor rises linearly to `factor`.
        warmup_steps: The same in steps; give one of the two.
        warmup_factor: Where the warm-up begins, 0 to 1.
    """

    def __init__(
        self,
        length: RunLength,
        *,
        factor: Factor = 1.0,
        warmup_epochs: Epochs = 0.0,
        warmup_steps: Steps = 0,
        warmup_factor: Share = 0.001,
    ) -> None:
        self.factor = factor
        super().__init__(length, warmup_epochs, warmup_factor, warmup_steps=warmup_steps)

    def curve(self) -> Curve:
        return fvcore_schedules.ConstantParamScheduler(self.factor)


@SCHEDULERS.register("linear")
class Linear(ClassyScheduler):
    """A line from `start_factor` to `end_factor`, down or up.

    Args:
        start_factor: Where it begins.
        end_factor: Where it ends; null: 0, or at `min_lr`.
        min_lr: The learning rate at which it ends, in place of `end_factor`. A group's `lr_factor` multiplies it, too.
        warmup_epochs: For so many epochs at the start, the factor rises linearly to the curve.
        warmup_steps: The same in steps; give one of the two.
        warmup_factor: Where the warm-up begins, 0 to 1.
        interval_scaling: `rescaled` or `fixed`; see Schedules.
        update_interval: `step`, or `epoch`: all steps of an epoch have the rate of its first one.
    """

    def __init__(
        self,
        length: RunLength,
        *,
        start_factor: Factor = 1.0,
        end_factor: Factor | None = None,
        min_lr: MinRate = None,
        warmup_epochs: Epochs = 0.0,
        warmup_steps: Steps = 0,
        warmup_factor: Share = 0.001,
        interval_scaling: IntervalScaling = "rescaled",
        update_interval: UpdateInterval = "step",
    ) -> None:
        self.start_factor, self.end_factor = start_factor, end_factor
        super().__init__(
            length,
            warmup_epochs,
            warmup_factor,
            interval_scaling,
            warmup_steps,
            update_interval=update_interval,
            min_lr=min_lr,
        )

    def curve(self) -> Curve:
        return fvcore_schedules.LinearParamScheduler(self.start_factor, self.end(self.end_factor, 0.0))


@SCHEDULERS.register("polynomial")
class Polynomial(ClassyScheduler):
    """`(1 - where) ** power`, from 1 down to `end_factor`: the usual schedule of segmentation.

    Args:
        power: The exponent; 1 is a line.
        end_factor: Where it ends; null: 0, or at `min_lr`.
        min_lr: The learning rate at which it ends, in place of `end_factor`. A group's `lr_factor` multiplies it, too.
        warmup_epochs: For so many epochs at the start, the factor rises linearly to the curve.
        warmup_steps: The same in steps; give one of the two.
        warmup_factor: Where the warm-up begins, 0 to 1.
        interval_scaling: `rescaled` or `fixed`; see Schedules.
        update_interval: `step`, or `epoch`: all steps of an epoch have the rate of its first one.
    """

    def __init__(
        self,
        length: RunLength,
        *,
        power: Annotated[float, Field(gt=0, le=100)] = 0.9,
        end_factor: Factor | None = None,
        min_lr: MinRate = None,
        warmup_epochs: Epochs = 0.0,
        warmup_steps: Steps = 0,
        warmup_factor: Share = 0.001,
        interval_scaling: IntervalScaling = "rescaled",
        update_interval: UpdateInterval = "step",
    ) -> None:
        self.power, self.end_factor = power, end_factor
        super().__init__(
            length,
            warmup_epochs,
            warmup_factor,
            interval_scaling,
            warmup_steps,
            update_interval=update_interval,
            min_lr=min_lr,
        )

    def curve(self) -> Curve:
        curve = fvcore_schedules.PolynomialDecayParamScheduler(1.0, self.power)
        end = self.end(self.end_factor, 0.0)
        return _EndsAt(curve, end) if end else curve


class _EndsAt(Curve):
    """A curve from 1 to 0, stretched to end at `end`."""

    def __init__(self, curve: Curve, end: float) -> None:
        self.curve, self.end = curve, end

    def __call__(self, where: float) -> float:
        return self.end + (1.0 - self.end) * float(self.curve(where))


@SCHEDULERS.register("cosine")
class Cosine(ClassyScheduler):
    """Half a cosine from `start_factor` to `end_factor`.

    Args:
        start_factor: Where it begins.
        end_factor: Where it ends; null: 0, or at `min_lr`.
        min_lr: The learning rate at which it ends, in place of `end_factor`. A group's `lr_factor` multiplies it, too.
        warmup_epochs: For so many epochs at the start, the factor rises linearly to the curve.
        warmup_steps: The same in steps; give one of the two.
        warmup_factor: Where the warm-up begins, 0 to 1.
        interval_scaling: `rescaled` or `fixed`; see Schedules.
        update_interval: `step`, or `epoch`: all steps of an epoch have the rate of its first one.
    """

    def __init__(
        self,
        length: RunLength,
        *,
        start_factor: Factor = 1.0,
        end_factor: Factor | None = None,
        min_lr: MinRate = None,
        warmup_epochs: Epochs = 0.0,
        warmup_steps: Steps = 0,
        warmup_factor: Share = 0.001,
        interval_scaling: IntervalScaling = "rescaled",
        update_interval: UpdateInterval = "step",
    ) -> None:
        self.start_factor, self.end_factor = start_factor, end_factor
        super().__init__(
            length,
            warmup_epochs,
            warmup_factor,
            interval_scaling,
            warmup_steps,
            update_interval=update_interval,
            min_lr=min_lr,
        )

    def curve(self) -> Curve:
        return fvcore_schedules.CosineParamScheduler(self.start_factor, self.end(self.end_factor, 0.0))


@SCHEDULERS.register("exponential")
class Exponential(ClassyScheduler):
    """`start_factor * decay ** where`: what is left at the end of the run is the share `decay`.

    Args:
        decay: The factor of the whole run. For one of each epoch, write its power: 0.95 in 30 epochs is 0.2146.
        start_factor: Where it begins.
        min_lr: The learning rate does not fall below this. A group's `lr_factor` multiplies it, too.
        warmup_epochs: For so many epochs at the start, the factor rises linearly to the curve.
        warmup_steps: The same in steps; give one of the two.
        warmup_factor: Where the warm-up begins, 0 to 1.
        interval_scaling: `rescaled` or `fixed`; see Schedules.
        update_interval: `step`, or `epoch`: all steps of an epoch have the rate of its first one.
    """

    def __init__(
        self,
        length: RunLength,
        *,
        decay: Annotated[float, Field(gt=0, le=1e6)],
        start_factor: Factor = 1.0,
        min_lr: MinRate = None,
        warmup_epochs: Epochs = 0.0,
        warmup_steps: Steps = 0,
        warmup_factor: Share = 0.001,
        interval_scaling: IntervalScaling = "rescaled",
        update_interval: UpdateInterval = "step",
    ) -> None:
        self.decay, self.start_factor = decay, start_factor
        super().__init__(
            length,
            warmup_epochs,
            warmup_factor,
            interval_scaling,
            warmup_steps,
            update_interval=update_interval,
            min_lr=min_lr,
        )

    def curve(self) -> Curve:
        return self.not_below(fvcore_schedules.ExponentialParamScheduler(self.start_factor, self.decay))


@SCHEDULERS.register("step")
class Step(ClassyScheduler):
    """Multiplied by `factor` again and again, at even distances.

    Give one of `every_epochs`, `every_steps`, `num_decays` and `factors`.

    Args:
        every_epochs: The distance in epochs.
        every_steps: The distance in steps.
        num_decays: How often it is multiplied: the run is cut into one more equal part.
        factors: The factor of each of the equal parts of the run, in place of `factor`: `[1, 0.1, 0.01]`.
        factor: Multiplies the rate each time.
        min_lr: The learning rate does not fall below this. A group's `lr_factor` multiplies it, too.
        warmup_epochs: For so many epochs at the start, the factor rises linearly to the curve.
        warmup_steps: The same in steps; give one of the two.
        warmup_factor: Where the warm-up begins, 0 to 1.
        interval_scaling: `rescaled` (the distances shrink with the curve) or `fixed` (they do not); see Schedules.
        update_interval: `step`, or `epoch`: a part that begins within an epoch waits for the next one.
    """

    def __init__(
        self,
        length: RunLength,
        *,
        every_epochs: Annotated[float, Field(gt=0)] | None = None,
        every_steps: Annotated[int, Field(gt=0)] | None = None,
        num_decays: Annotated[int, Field(ge=0, le=10_000)] | None = None,
        factors: Annotated[tuple[Factor, ...], Field(min_length=1)] | None = None,
        factor: Factor = FACTOR,
        min_lr: MinRate = None,
        warmup_epochs: Epochs = 0.0,
        warmup_steps: Steps = 0,
        warmup_factor: Share = 0.001,
        interval_scaling: IntervalScaling = "rescaled",
        update_interval: UpdateInterval = "step",
    ) -> None:
        ways = {
            "every_epochs": every_epochs,
            "every_steps": every_steps,
            "num_decays": num_decays,
            "factors": factors,
        }
        given = [key for key, value in ways.items() if value is not None]
        if not given:
            raise ConfigError("every_epochs", "missing; write it, every_steps, num_decays or factors")
        if len(given) > 1:
            raise ConfigError(given[1], f"found together with {given[0]}; keep one of them")
        _check_factor(factor, factors)
        if every_epochs is not None:
            milestones = _every("every_epochs", every_epochs, length.epochs)
        elif every_steps is not None:
            milestones = _every("every_steps", every_steps, length.steps)
        else:
            num_parts = len(factors) if factors is not None else (num_decays or 0) + 1
            milestones = [round(GRID * i / num_parts) for i in range(1, num_parts)]
        self.milestones = milestones
        self.factors = list(factors or accumulate([1.0, *[factor] * len(milestones)], lambda value, by: value * by))
        super().__init__(
            length,
            warmup_epochs,
            warmup_factor,
            interval_scaling,
            warmup_steps,
            update_interval=update_interval,
            min_lr=min_lr,
        )

    def curve(self) -> Curve:
        return self.not_below(_multi_step(self.factors, self.milestones))


def _check_factor(factor: float, factors: Sequence[float] | None) -> None:
    """Raises: `ConfigError` for a `factor` that nothing would read."""
    if factors is not None and factor != FACTOR:
        raise ConfigError("factor", f"found {factor} together with factors; keep one of them")


def _every(key: str, distance: float, whole: float | None) -> list[int]:
    """The milestones at multiples of `distance`, as numbers of `GRID` parts of a run. Raises: `ConfigError`."""
    if not whole:  # the run's length is not known yet, or it has no steps
        return []
    num_milestones = math.ceil(whole / distance - 1e-9) - 1
    if num_milestones > MAX_PARTS:
        raise ConfigError(key, f"found {distance}, which cuts the run into more than {MAX_PARTS} parts; write more")
    return [round(distance * i / whole * GRID) for i in range(1, num_milestones + 1)]


@SCHEDULERS.register("multi_step")
class MultiStep(ClassyScheduler):
    """Multiplied by `factor` at each of `milestones`.

    They are epochs of the run, or steps, counted from its first step. With a warm-up, that holds only for
    `interval_scaling` `fixed`. `rescaled` squeezes the whole curve into the rest: after 5 epochs of warm-up, 30 of 90
    epochs becomes 33.3.

    Args:
        milestones: Rising epochs, fewer than the run has. With a warm-up, set `interval_scaling: fixed` to keep them
            where they are.
        milestone_steps: The same in steps; give one of the two.
        factor: Multiplies the rate at each milestone.
        factors: In place of `factor`, the factors themselves: before the first milestone, and after each of them.
        min_lr: The learning rate does not fall below this. A group's `lr_factor` multiplies it, too.
        warmup_epochs: For so many epochs at the start, the factor rises linearly to the curve.
        warmup_steps: The same in steps; give one of the two.
        warmup_factor: Where the warm-up begins, 0 to 1.
        interval_scaling: `rescaled` (milestones move with the curve) or `fixed` (they do not); see Schedules.
        update_interval: `step`, or `epoch`: a milestone within an epoch waits for the next one.
    """

    def __init__(
        self,
        length: RunLength,
        *,
        milestones: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None = None,
        milestone_steps: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] | None = None,
        factor: Share = FACTOR,
        factors: tuple[Factor, ...] | None = None,
        min_lr: MinRate = None,
        warmup_epochs: Epochs = 0.0,
        warmup_steps: Steps = 0,
        warmup_factor: Share = 0.001,
        interval_scaling: IntervalScaling = "rescaled",
        update_interval: UpdateInterval = "step",
    ) -> None:
        if milestones is None and milestone_steps is None:
            raise ConfigError("milestones", "missing; write it, or milestone_steps")
        if milestones is not None and milestone_steps is not None:
            raise ConfigError("milestone_steps", "found together with milestones; keep one of them")
        _check_factor(factor, factors)
        if milestones is not None:
            self.milestones = on_grid("milestones", milestones, length.epochs, "epochs")
        elif milestone_steps is not None:
            self.milestones = on_grid("milestone_steps", milestone_steps, length.steps, "steps")
        if factors is not None and len(factors) != len(self.milestones) + 1:
            text = f"found {len(factors)} for {len(self.milestones)} milestones; give one more than milestones"
            raise ConfigError("factors", text)
        self.factor = factor
        self.factors = list(factors or [factor**i for i in range(len(self.milestones) + 1)])
        super().__init__(
            length,
            warmup_epochs,
            warmup_factor,
            interval_scaling,
            warmup_steps,
            update_interval=update_interval,
            min_lr=min_lr,
        )

    def curve(self) -> Curve:
        return self.not_below(_multi_step(self.factors, self.milestones))


def _multi_step(factors: Sequence[float], milestones: Sequence[int]) -> Curve:
    return fvcore_schedules.MultiStepParamScheduler(list(factors), num_updates=GRID, milestones=list(milestones))


@SCHEDULERS.register("composite")
class Composite(ClassyScheduler):
    """Schedules one after another, each for its part of the run.

    With the `interval_scaling` `rescaled`, a schedule runs in its part from its beginning to its end, as it does alone
    in a whole run. So its warm-up and its milestones shrink with it: in half a run, `warmup_epochs: 2` takes one epoch.
    With `fixed`, it has in its part the values that it would have there if it ran from the start.

    ```yaml
    optimizer:
      name: sgd
      lr: 0.04
      schedule:
        name: composite
        schedules: [{name: linear, start_factor: 0.125, end_factor: 1.0}, {name: cosine, end_factor: 0.001}]
        lengths: [0.13, 0.87]
    ```

    Args:
        schedules: Two or more schedules, in their order.
        lengths: The length of the part of each, in `unit`. The last may be left out: it then takes the rest of the run.
        unit: `share` of the run, `epochs` or `steps`.
        interval_scaling: `rescaled` or `fixed`, for all or a list with one for each.
        update_interval: `step`, or `epoch`: all steps of an epoch have the rate of its first one.
    """

    def __init__(
        self,
        length: RunLength,
        *,
        schedules: Annotated[tuple[ScheduleConfig, ...], Field(min_length=2)],
        lengths: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)],
        unit: Literal["share", "epochs", "steps"] = "share",
        interval_scaling: IntervalScaling | tuple[IntervalScaling, ...] = "rescaled",
        update_interval: UpdateInterval = "step",
    ) -> None:
        self.schedules: list[ClassyScheduler] = SCHEDULERS.build_each("schedules", schedules, length)
        for i, schedule in enumerate(self.schedules):
            if schedule.update_interval != "step":
                raise ConfigError(
                    f"schedules[{i}].update_interval",
                    f"found {schedule.update_interval}; leave it out: the composite's holds for all its schedules",
                )
        whole = {"share": 1.0, "epochs": length.epochs, "steps": length.steps}[unit]
        self.shares = _shares(lengths, len(self.schedules), whole, unit)
        each = [interval_scaling] * len(self.schedules) if isinstance(interval_scaling, str) else [*interval_scaling]
        if len(each) != len(self.schedules):
            raise ConfigError(
                "interval_scaling",
                f"found {len(each)} for {len(self.schedules)} schedules; give one for each, or one word",
            )
        self.scalings = each
        super().__init__(length, update_interval=update_interval)

    def curve(self) -> Curve:
        curves = [schedule.whole_curve for schedule in self.schedules]
        return fvcore_schedules.CompositeParamScheduler(curves, list(self.shares), list(self.scalings))

    def take_base(self, lr: float) -> None:
        for i, schedule in enumerate(self.schedules):
            with within(f"schedules[{i}]"):
                schedule.take_base(lr)
        self.whole_curve = self.curve()

    def refuse_min_lr(self) -> None:
        for i, schedule in enumerate(self.schedules):
            with within(f"schedules[{i}]"):
                schedule.refuse_min_lr()


def _shares(lengths: Sequence[float], num_schedules: int, whole: float | None, unit: str) -> list[float]:
    """The shares of the run that the schedules take, with a sum of 1.

    Where the run's length is not known yet, or it has no steps, they have the right number, and any value.
    Raises: `ConfigError` for another number of lengths, or another sum.
    """
    if len(lengths) not in (num_schedules - 1, num_schedules):
        raise ConfigError("lengths", f"found {len(lengths)} for {num_schedules} schedules; give one for each")
    open_end = len(lengths) < num_schedules
    if not whole:
        return [length / (sum(lengths) + open_end) for length in lengths] + [1 / (sum(lengths) + 1)] * open_end
    of = "1, the whole run" if unit == "share" else f"the run's {whole:g} {unit}"
    total = math.fsum(lengths)
    if math.fsum(lengths[: num_schedules - 1]) >= whole:
        raise ConfigError("lengths", f"found {list(lengths)}, which leave nothing to the last schedule; expected {of}")
    if not open_end and abs(total - whole) >= 1e-3 * whole:
        raise ConfigError("lengths", f"found {list(lengths)}, whose sum is {total:g}; expected {of}, or no last length")
    shares = [length / whole for length in lengths[: num_schedules - 1]]
    return [*shares, 1 - sum(shares)]
