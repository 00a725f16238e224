"""Schedules of the learning rate over a run, as factors of the base rate. The curves are fvcore's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from fvcore.common import param_scheduler as fvcore_schedules
from pydantic import Field

from classyseg.errors import ConfigError
from classyseg.registry import SCHEDULERS, Configurable
from classyseg.structures import RunLength

Epochs = Annotated[float, Field(ge=0)]
Steps = Annotated[int, Field(ge=0)]
Factor = Annotated[float, Field(ge=0, le=1)]

IntervalScaling = Literal["rescaled", "fixed"]
"""How a warm-up changes the curve, in the words of ClassyVision and fvcore."""

GRID = 10**9
"""fvcore's milestones are integers: a run is cut into so many parts for them."""


class ClassyScheduler(Configurable, ABC):
    """Built as `Schedule(length, *, options)`; called before every step with the share of the run that is done.

    For `warmup_epochs`, or `warmup_steps`, the factor rises linearly from `warmup_factor` to where the curve goes on.
    With `interval_scaling` `rescaled`, the whole curve is squeezed into the rest of the run: each value comes later
    than without a warm-up. With `fixed`, the curve is that of the whole run, and the warm-up replaces its beginning:
    nothing else moves. ClassyVision's "fixed", detectron2 and, for steps, PyTorch-Encoding do the same.

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
        warmup_epochs: float,
        warmup_factor: float,
        interval_scaling: IntervalScaling = "rescaled",
        warmup_steps: int = 0,
    ) -> None:
        if warmup_epochs and warmup_steps:
            raise ConfigError(f"found warmup_epochs {warmup_epochs} and warmup_steps {warmup_steps}; keep one")
        share = _share_of_warmup("warmup_steps", warmup_steps, length.steps, "steps") if warmup_steps else None
        if warmup_epochs:
            share = _share_of_warmup("warmup_epochs", warmup_epochs, length.epochs, "epochs")
        curve = self.curve()
        if share:
            reached = curve(0.0 if interval_scaling == "rescaled" else share)
            warmup = fvcore_schedules.LinearParamScheduler(warmup_factor, reached)
            curve = fvcore_schedules.CompositeParamScheduler(
                [warmup, curve], lengths=[share, 1 - share], interval_scaling=["rescaled", interval_scaling]
            )
        self._curve = curve

    @abstractmethod
    def curve(self) -> fvcore_schedules.ParamScheduler:
        """The factor over [0, 1), without warm-up."""

    def __call__(self, where: float) -> float:
        """The factor of the base rate when the share `where` of the run, in [0, 1), is done."""
        return float(self._curve(where))


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


@SCHEDULERS.register("constant")
class Constant(ClassyScheduler):
    """The base rate throughout.

    Args:
        warmup_epochs: For so many epochs at the start, fewer than the run has, the factor rises linearly to 1.
        warmup_steps: The same in steps; give one of the two.
        warmup_factor: Where the warm-up begins, 0 to 1.
    """

    def __init__(
        self, length: RunLength, *, warmup_epochs: Epochs = 0.0, warmup_steps: Steps = 0, warmup_factor: Factor = 0.001
    ) -> None:
        super().__init__(length, warmup_epochs, warmup_factor, warmup_steps=warmup_steps)

    def curve(self) -> fvcore_schedules.ParamScheduler:
        return fvcore_schedules.ConstantParamScheduler(1.0)


@SCHEDULERS.register("polynomial")
class Polynomial(ClassyScheduler):
    """(1 - where) ** power: the usual schedule of segmentation.

    Args:
        power: `(1 - where) ** power`, from 1 down to 0.
        warmup_epochs: For so many epochs at the start, the factor rises linearly to the curve.
        warmup_steps: The same in steps; give one of the two.
        warmup_factor: Where the warm-up begins, 0 to 1.
        interval_scaling: `rescaled` or `fixed`; see Schedules.
    """

    def __init__(
        self,
        length: RunLength,
        *,
        power: Annotated[float, Field(gt=0, le=100)] = 0.9,
        warmup_epochs: Epochs = 0.0,
        warmup_steps: Steps = 0,
        warmup_factor: Factor = 0.001,
        interval_scaling: IntervalScaling = "rescaled",
    ) -> None:
        self.power = power
        super().__init__(length, warmup_epochs, warmup_factor, interval_scaling, warmup_steps)

    def curve(self) -> fvcore_schedules.ParamScheduler:
        return fvcore_schedules.PolynomialDecayParamScheduler(1.0, self.power)


@SCHEDULERS.register("cosine")
class Cosine(ClassyScheduler):
    """Half a cosine from 1 to `end_factor`.

    Args:
        end_factor: Half a cosine from 1 to this.
        warmup_epochs: For so many epochs at the start, the factor rises linearly to the curve.
        warmup_steps: The same in steps; give one of the two.
        warmup_factor: Where the warm-up begins, 0 to 1.
        interval_scaling: `rescaled` or `fixed`; see Schedules.
    """

    def __init__(
        self,
        length: RunLength,
        *,
        end_factor: Factor = 0.0,
        warmup_epochs: Epochs = 0.0,
        warmup_steps: Steps = 0,
        warmup_factor: Factor = 0.001,
        interval_scaling: IntervalScaling = "rescaled",
    ) -> None:
        self.end_factor = end_factor
        super().__init__(length, warmup_epochs, warmup_factor, interval_scaling, warmup_steps)

    def curve(self) -> fvcore_schedules.ParamScheduler:
        return fvcore_schedules.CosineParamScheduler(1.0, self.end_factor)


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
        warmup_epochs: For so many epochs at the start, the factor rises linearly to the curve.
        warmup_steps: The same in steps; give one of the two.
        warmup_factor: Where the warm-up begins, 0 to 1.
        interval_scaling: `rescaled` (milestones move with the curve) or `fixed` (they do not); see Schedules.
    """

    def __init__(
        self,
        length: RunLength,
        *,
        milestones: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None = None,
        milestone_steps: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] | None = None,
        factor: Factor = 0.1,
        warmup_epochs: Epochs = 0.0,
        warmup_steps: Steps = 0,
        warmup_factor: Factor = 0.001,
        interval_scaling: IntervalScaling = "rescaled",
    ) -> None:
        if milestones is None and milestone_steps is None:
            raise ConfigError("milestones", "missing; write it, or milestone_steps")
        if milestones is not None and milestone_steps is not None:
            raise ConfigError("milestone_steps", "found together with milestones; keep one of them")
        if milestones is not None:
            self.milestones = _on_grid("milestones", milestones, length.epochs, "epochs")
        elif milestone_steps is not None:
            self.milestones = _on_grid("milestone_steps", milestone_steps, length.steps, "steps")
        self.factor = factor
        super().__init__(length, warmup_epochs, warmup_factor, interval_scaling, warmup_steps)

    def curve(self) -> fvcore_schedules.ParamScheduler:
        values = [self.factor**i for i in range(len(self.milestones) + 1)]
        return fvcore_schedules.MultiStepParamScheduler(values, num_updates=GRID, milestones=self.milestones)


def _on_grid(key: str, milestones: Sequence[float], whole: float | None, unit: str) -> list[int]:
    """The milestones as numbers of `GRID` parts of a run. Raises: `ConfigError` unless they rise."""
    if list(milestones) != sorted(set(milestones)) or (whole and milestones[-1] >= whole):
        below = f" below {whole}" if whole else ""
        raise ConfigError(key, f"found {list(milestones)}; expected rising {unit}{below}")
    whole = whole or milestones[-1] + 1  # the run's length is not known yet, or it has no steps
    return [round(milestone / whole * GRID) for milestone in milestones]
