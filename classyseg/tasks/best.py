"""By which numbers of a test record a checkpoint can be best, and which of their values is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from classyseg.config import ConfigError, closest, listed, unknown
from classyseg.evaluation import joined_metrics
from classyseg.hooks import CheckpointHook
from classyseg.hooks.checkpoint import same_text
from classyseg.structures import BestIs


@dataclass(frozen=True)
class RecordNumbers:
    """What is known of a test record before there is one: which of its values is best, None where nobody says.

    `single` has the numbers by name, `by_class` the names whose values are a number of each class, such as `iou`.
    `classes` are None where the config does not tell them; `is_whole` is False where a meter does not declare what it
    computes, `are_built` where it is still a config: some declare it when they are built.
    """

    single: Mapping[str, BestIs | None]
    by_class: Mapping[str, BestIs | None]
    classes: Sequence[str] | None
    is_whole: bool
    are_built: bool

    def best_is(self, number: str) -> BestIs | None:
        """Which value of `number`, a name or `NAME/CLASS`, is best. Raises: `ConfigError` where no record has it."""
        if number in self.single:
            return self.single[number]
        for name, best_is in self.by_class.items():
            if number.startswith(f"{name}/"):
                self._check_class(name, number.removeprefix(f"{name}/"))
                return best_is
        if self.is_whole:
            raise ConfigError(f"'{number}': {self._unknown(number)}")
        return None

    def _check_class(self, name: str, of: str) -> None:
        if self.classes is None or same_text(of, dict.fromkeys(self.classes)) is not None:
            return
        near = closest(of, self.classes)
        known = unknown("class", of, self.classes)
        if near is not None:
            known = f"unknown class; did you mean '{name}/{near}'? Known: {listed(self.classes)}."
        raise ConfigError(f"'{name}/{of}': {known}")

    def _unknown(self, number: str) -> str:
        names = [*self.single, *(f"{name}/CLASS" for name in self.by_class)]
        if number in self.by_class:
            example = f", such as {number}/{self.classes[0]}" if self.classes else ""
            return f"is a number of each class; write {number}/CLASS{example}. Known: {listed(names)}."
        return unknown("number of the test record", number, names)


def record_numbers(
    own: Mapping[str, BestIs | None] | Iterable[str],
    meters: Sequence[Any],
    main_head: str,
    classes: Sequence[str] | None,
    *,
    are_built: bool,
) -> RecordNumbers:
    """The numbers that a task has of its `own` and those that its `meters` declare.

    `are_built` says that they are meters, not configs of meters.

    Raises: `ConfigError` for a name that two of them give.
    """
    declared = [getattr(meter, "component", meter) for meter in meters]
    single = [{name: _best_is(meter, name) for name in meter.numbers or ()} for meter in declared]
    by_class = [{name: _best_is(meter, name) for name in meter.class_numbers} for meter in declared]
    joined_metrics(meters, [a | b for a, b in zip(single, by_class, strict=True)], main_head)  # which finds doubles
    own = own if isinstance(own, Mapping) else dict.fromkeys(own)
    return RecordNumbers(
        single={**own, **joined_metrics(meters, single, main_head)},
        by_class=joined_metrics(meters, by_class, main_head),
        classes=classes,
        is_whole=all(meter.numbers is not None for meter in declared),
        are_built=are_built,
    )


def _best_is(meter: Any, name: str) -> BestIs | None:
    best_is = meter.best_is
    return best_is.get(name) if isinstance(best_is, Mapping) else best_is


def check_best(hooks: Iterable[Any], numbers: RecordNumbers) -> None:
    """Raises: `ConfigError` for a `best` that no test record holds, and for one that must say `best_is`.

    Takes hooks, or their configs.
    """
    first: int | None = None
    for i, hook in enumerate(hooks):
        if not issubclass(getattr(hook, "component", type(hook)), CheckpointHook) or hook.best is None:
            continue
        if first is not None:
            raise ConfigError(f"hooks[{i}].best: hooks[{first}] has one already; a run has one best checkpoint")
        first = i
        try:
            best_is = numbers.best_is(hook.best)
        except ConfigError as error:
            raise ConfigError(f"hooks[{i}].best: {error}") from None
        can_tell = numbers.is_whole or numbers.are_built
        if best_is is None and hook.best_is is None and can_tell:
            raise ConfigError(
                f"hooks[{i}].best_is: missing; nothing says which value of '{hook.best}' is best: set it to largest or "
                "smallest"
            )


def check_measured(hooks: Iterable[Any], *, has_test: bool) -> None:
    """Raises: `ConfigError` for a `best` where nothing is measured. Takes hooks, or their configs."""
    for i, hook in enumerate(hooks):
        is_checkpoint = issubclass(getattr(hook, "component", type(hook)), CheckpointHook)
        if is_checkpoint and hook.best is not None and not has_test:
            raise ConfigError(
                f"hooks[{i}].best: found '{hook.best}', but there is no dataset.test by which to measure it; add one, "
                "or leave best out"
            )
