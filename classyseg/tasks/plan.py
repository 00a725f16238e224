"""Which phases a run has, and after how many steps each ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from classyseg.errors import ConfigError
from classyseg.structures import Progress, RunLength

LENGTH_KEYS = ("num_epochs", "num_steps", "val_every_epochs", "val_every_steps")
"""The keys of a task's config that make its plan."""


@dataclass(frozen=True)
class RunPlan:
    """The phases of a run, counted in steps whatever unit its config uses.

    A training phase lies within one epoch: it ends with the epoch, before a val phase, or with the run. A val phase
    comes after every `val_every` steps and after the last one. A test phase comes last.
    """

    num_steps: int
    steps_per_epoch: int
    val_every: int
    has_val: bool = True
    has_test: bool = False
    unit: Literal["epochs", "steps"] = "epochs"
    """The unit in which the config gives the length."""
    ended_at: int | None = None
    """The step after which a hook ended the training."""

    @classmethod
    def of(cls, lengths: Mapping[str, Any], steps_per_epoch: int, *, has_val: bool, has_test: bool) -> RunPlan:
        """From the values of `LENGTH_KEYS`."""
        num_epochs, num_steps = lengths.get("num_epochs"), lengths.get("num_steps")
        return cls(
            num_steps=(num_epochs or 0) * steps_per_epoch if num_steps is None else num_steps,
            steps_per_epoch=steps_per_epoch,
            val_every=lengths.get("val_every_steps") or (lengths.get("val_every_epochs") or 1) * steps_per_epoch,
            has_val=has_val,
            has_test=has_test,
            unit="epochs" if num_steps is None else "steps",
        )

    @property
    def last_step(self) -> int:
        return self.num_steps if self.ended_at is None else min(self.ended_at, self.num_steps)

    def ending_at(self, step: int) -> RunPlan:
        """The plan of a run whose training a hook ended after so many steps."""
        return replace(self, ended_at=step)

    @property
    def length(self) -> RunLength:
        return RunLength(self.num_steps / self.steps_per_epoch, self.num_steps)

    def text(self) -> str:
        """The length in words."""
        if self.unit == "steps":
            return f"{self.num_steps} steps"
        return f"{self.num_steps // self.steps_per_epoch} epochs ({self.num_steps} steps)"

    @property
    def first(self) -> Progress:
        return Progress() if self.num_steps else self.after(Progress())

    def end_of_training_phase(self, start: int) -> int:
        """The step of the run at which the training phase ends that begins after `start` steps."""
        ends = [self.last_step, (start // self.steps_per_epoch + 1) * self.steps_per_epoch]
        if self.has_val:
            ends.append((start // self.val_every + 1) * self.val_every)
        return min(ends)

    def is_measured(self, step: int) -> bool:
        """Whether a val phase comes after so many steps."""
        return self.has_val and (step == self.last_step or (step > 0 and step % self.val_every == 0))

    def after(self, now: Progress) -> Progress:
        """The phase after that of `now`, whose last step is done; after the last one, training that `is_over`."""
        at_end = now.step == self.last_step
        epoch = now.step // self.steps_per_epoch
        if now.phase == "train" and self.is_measured(now.step):
            return Progress(epoch, "val", now.step)
        if now.phase != "test" and at_end and self.has_test:
            return Progress(epoch, "test", now.step)
        return Progress(epoch, "train", now.step)

    def is_over(self, now: Progress) -> bool:
        return now.phase == "train" and now.step >= self.last_step and not now.step_in_phase

    def resumed_at(self, now: Progress) -> Progress:
        """Where a run goes on by this plan that stood at `now` by another plan, such as that of a shorter run."""
        begins = now.phase == "train" and now.step_in_phase == 0 and now.step == self.last_step
        if begins and self.has_test:
            return Progress(now.epoch, "test", now.step)
        if now.phase == "val" and not self.is_measured(now.step):
            return self.after(now)
        if now.phase == "test" and not (self.has_test and now.step == self.last_step):
            return self.after(now)
        return now


def epoch_of(step: int, steps_per_epoch: int) -> int:
    """The epoch, from 1, that the last of so many steps belongs to; 0 before the first."""
    return -(-step // steps_per_epoch)


def check_lengths(lengths: Mapping[str, Any]) -> None:
    """Raises: `ConfigError` unless exactly one length is given, and at most one interval of val phases."""
    given = [key for key in ("num_epochs", "num_steps") if lengths.get(key) is not None]
    if len(given) != 1:
        found = (
            "found both num_epochs and num_steps; keep one, the other is null"
            if given
            else "missing; write it, or num_steps"
        )
        raise ConfigError("num_epochs", found)
    if lengths.get("val_every_epochs") is not None and lengths.get("val_every_steps") is not None:
        raise ConfigError("val_every_steps", "found together with val_every_epochs; keep one of them")
