"""A run that goes on with another length: how its learning rate changes, and whether the user asked for that."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from torch import nn

from classyseg import distributed
from classyseg.errors import ConfigError
from classyseg.layers import FollowsProgress
from classyseg.optim import ClassyOptimizer, ClassyScheduler
from classyseg.tasks.plan import RunPlan

log = logging.getLogger(__name__)

MAX_COMPARED = 100_000
"""Two schedules are compared at so many steps, evenly spread; in shorter runs at every step."""


def check_extension(
    before: RunPlan, now: RunPlan, done: int, model: nn.Module, optimizer: ClassyOptimizer | None, *, extend: bool
) -> None:
    """Checks that a run with the plan `before` may go on with the plan `now` after `done` steps; the log tells changes.

    It may if only the length changes, or if `extend` allows more. Raises: `ConfigError`.
    """
    if now.num_steps < done:
        raise ConfigError(
            f"num_{now.unit}",
            f"the run has done {done} steps, which is more than {now.text()}; it was to have "
            f"{before.text()}. To measure an earlier checkpoint, use a copy of the run without the later ones",
        )
    changed = list(_changes(before, now, done, model, optimizer))
    if changed and not extend:
        raise ConfigError(
            f"num_{now.unit}",
            f"was {before.text()}, now {now.text()}, which changes more than the length:\n"
            + "\n".join(changed)
            + "\nTo go on so, add --extend; else give the length as it was",
        )
    if distributed.is_primary():
        told = "\n".join(changed) if changed else "the learning rate of every step stays what it was to be"
        log.info("the run goes on with %s in place of %s:\n%s", now.text(), before.text(), told)


def _changes(
    before: RunPlan, now: RunPlan, done: int, model: nn.Module, optimizer: ClassyOptimizer | None
) -> Iterator[str]:
    """What else changes in a run of another length, a line each."""
    if optimizer is not None:
        for option, base, old, new in _schedules(before, now, optimizer):
            yield from _changes_of(option, base, old, new, before, now, done)
    following = {type(layer).__name__ for layer in model.modules() if isinstance(layer, FollowsProgress)}
    if following:
        yield f"  layers that change with the share of the run that is done: {', '.join(sorted(following))}"


def _schedules(
    before: RunPlan, now: RunPlan, optimizer: ClassyOptimizer
) -> Iterator[tuple[str, float, ClassyScheduler, ClassyScheduler]]:
    """Each scheduled option: its words in a message, the value that is scheduled, its schedules in both runs."""
    rates = [optimizer.schedule_for(plan.length) for plan in (before, now)]
    yield "the learning rate, as optimizer.schedule takes the whole run", optimizer.lr, rates[0], rates[1]
    others = [optimizer.schedules_for(plan.length) for plan in (before, now)]
    for option, schedule in others[0].items():
        words = f"{option}, as optimizer.schedules.{option} takes the whole run"
        yield words, optimizer.base_of(option), schedule, others[1][option]


def _changes_of(
    option: str, base: float, old: ClassyScheduler, new: ClassyScheduler, before: RunPlan, now: RunPlan, done: int
) -> Iterator[str]:
    """How the values of a scheduled option change, a line each."""

    def values(step: int) -> tuple[float | None, float | None]:
        plans = ((old, before.num_steps), (new, now.num_steps))
        was, is_now = (schedule(step / whole) if step < whole else None for schedule, whole in plans)
        return (None if was is None else was * base), (None if is_now is None else is_now * base)

    both = min(before.num_steps, now.num_steps)
    compared = range(0, both, max(1, both // MAX_COMPARED))
    if all(_is_close(*values(step)) for step in compared):
        return
    yield f"  {option}:"
    if done and (was := values(done - 1)[0]) is not None:
        yield f"    step {done}, done: {was:.6g}"
    ends = (before.num_steps - 1, before.num_steps, now.num_steps - 1)
    for step in sorted({done, *(end for end in ends if end >= done)}):
        was, is_now = values(step)
        if was is not None or is_now is not None:
            yield f"    step {step + 1}: was to be {_text(was)}, will be {_text(is_now)}"


def _text(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.6g}"


def _is_close(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-15)
