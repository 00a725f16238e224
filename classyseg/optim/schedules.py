"""How the learning rate goes over a run, as factors of the base rate; the curves are fvcore's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal

from fvcore.common import param_scheduler as fvcore_schedules
from pydantic import Field

from classyseg.config import ConfigError
from classyseg.registry import SCHEDULERS, Configurable

Epochs = Annotated[float, Field(ge=0)]
Factor = Annotated[float, Field(ge=0, le=1)]

IntervalScaling = Literal["rescaled", "fixed"]
"""What a warm-up does to the curve, in the words of ClassyVision and fvcore."""

GRID = 10**9
"""Into how many parts a run is cut for fvcore's milestones, which are integers."""


class ClassyScheduler(Configurable, ABC):
    """Built as `Schedule(num_epochs, *, options)`; called before every step with how much of the run is done.

    For `warmup_epochs`, the factor rises linearly from `warmup_factor` to where the curve goes on. With
    `interval_scaling` `rescaled`, the whole curve takes the rest of the run, and what it has at an epoch comes later
    than without a warm-up. With `fixed`, the curve is that of the whole run, and the warm-up takes the place of its
    beginning: nothing else moves. So do ClassyVision's "fixed", detectron2 and, for steps, PyTorch-Encoding.
    """

    def __init__(
        self,
        num_epochs: float,
        warmup_epochs: float,
        warmup_factor: float,
        interval_scaling: IntervalScaling = "rescaled",
    ) -> None:
        if warmup_epochs >= num_epochs > 0:
            raise ConfigError(
                f"optimizer.schedule.warmup_epochs: found {warmup_epochs}; the run has {num_epochs} epochs, and the "
                "warm-up takes fewer: shorten it, or write 0"
            )
        share = warmup_epochs / num_epochs if num_epochs else 0.0
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


@SCHEDULERS.register("constant")
class Constant(ClassyScheduler):
    """The base rate throughout.

    Args:
        warmup_epochs: For so many epochs at the start, less than `num_epochs`, the factor rises linearly to 1.
        warmup_factor: Where the warm-up begins, 0 to 1.
    """

    def __init__(self, num_epochs: float, *, warmup_epochs: Epochs = 0.0, warmup_factor: Factor = 0.001) -> None:
        super().__init__(num_epochs, warmup_epochs, warmup_factor)

    def curve(self) -> fvcore_schedules.ParamScheduler:
        return fvcore_schedules.ConstantParamScheduler(1.0)


@SCHEDULERS.register("polynomial")
class Polynomial(ClassyScheduler):
    """(1 - where) ** power: the usual schedule of segmentation.

    Args:
        power: `(1 - where) ** power`, from 1 down to 0.
        warmup_epochs: For so many epochs at the start, the factor rises linearly to the curve.
        warmup_factor: Where the warm-up begins, 0 to 1.
        interval_scaling: `rescaled` or `fixed`; see Schedules.
    """

    def __init__(
        self,
        num_epochs: float,
        *,
        power: Annotated[float, Field(gt=0, le=100)] = 0.9,
        warmup_epochs: Epochs = 0.0,
        warmup_factor: Factor = 0.001,
        interval_scaling: IntervalScaling = "rescaled",
    ) -> None:
        self.power = power
        super().__init__(num_epochs, warmup_epochs, warmup_factor, interval_scaling)

    def curve(self) -> fvcore_schedules.ParamScheduler:
        return fvcore_schedules.PolynomialDecayParamScheduler(1.0, self.power)


@SCHEDULERS.register("cosine")
class Cosine(ClassyScheduler):
    """Half a cosine from 1 to `end_factor`.

    Args:
        end_factor: Half a cosine from 1 to this.
        warmup_epochs: For so many epochs at the start, the factor rises linearly to the curve.
        warmup_factor: Where the warm-up begins, 0 to 1.
        interval_scaling: `rescaled` or `fixed`; see Schedules.
    """

    def __init__(
        self,
        num_epochs: float,
        *,
        end_factor: Factor = 0.0,
        warmup_epochs: Epochs = 0.0,
        warmup_factor: Factor = 0.001,
        interval_scaling: IntervalScaling = "rescaled",
    ) -> None:
        self.end_factor = end_factor
        super().__init__(num_epochs, warmup_epochs, warmup_factor, interval_scaling)

    def curve(self) -> fvcore_schedules.ParamScheduler:
        return fvcore_schedules.CosineParamScheduler(1.0, self.end_factor)


@SCHEDULERS.register("multi_step")
class MultiStep(ClassyScheduler):
    """Multiplied by `factor` at each of `milestones`.

    They are epochs of the run, from its first step; behind a warm-up only with `interval_scaling` `fixed`. With
    `rescaled`, as the whole curve is squeezed into the rest, 30 of 90 epochs behind 5 of warm-up falls at 33.3.

    Args:
        milestones: Rising epochs below `num_epochs`. With a warm-up, set `interval_scaling: fixed` to keep them where
            they are.
        factor: Multiplies the rate at each milestone.
        warmup_epochs: For so many epochs at the start, the factor rises linearly to the curve.
        warmup_factor: Where the warm-up begins, 0 to 1.
        interval_scaling: `rescaled` (milestones move with the curve) or `fixed` (they do not); see Schedules.
    """

    def __init__(
        self,
        num_epochs: float,
        *,
        milestones: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)],
        factor: Factor = 0.1,
        warmup_epochs: Epochs = 0.0,
        warmup_factor: Factor = 0.001,
        interval_scaling: IntervalScaling = "rescaled",
    ) -> None:
        if list(milestones) != sorted(set(milestones)) or (num_epochs and milestones[-1] >= num_epochs):
            raise ConfigError(
                f"optimizer.schedule.milestones: found {list(milestones)}; expected rising epochs below {num_epochs}"
            )
        whole = num_epochs or milestones[-1] + 1  # without epochs, no step asks
        self.milestones = [round(milestone / whole * GRID) for milestone in milestones]
        self.factor = factor
        super().__init__(num_epochs, warmup_epochs, warmup_factor, interval_scaling)

    def curve(self) -> fvcore_schedules.ParamScheduler:
        values = [self.factor**i for i in range(len(self.milestones) + 1)]
        return fvcore_schedules.MultiStepParamScheduler(values, num_updates=GRID, milestones=self.milestones)
