"""The numbers of a val record by which a checkpoint can be best, and which value of each is best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from classyseg.config import closest, listed, unknown
from classyseg.console import shown
from classyseg.errors import ConfigError, within
from classyseg.evaluation import joined_metrics
from classyseg.hooks import ClassyHook
from classyseg.hooks.numbers import same_text
from classyseg.meters import ClassyMeter
from classyseg.signature import qualified
from classyseg.structures import BestIs


@dataclass(frozen=True)
class RecordNumbers:
    """What is known of a val record before there is one: its numbers, and which value of each is best (None: not said).

    `single` has the numbers by name. `by_class` has the names whose value is a number for each class, such as `iou`.
    `classes` is None where the config does not tell them. `is_whole` is False where a meter does not declare what it
    computes. `are_built` is False where a meter is not built yet: some declare it only then.
    """

    single: Mapping[str, BestIs | None]
    by_class: Mapping[str, BestIs | None]
    classes: Sequence[str] | None
    is_whole: bool
    are_built: bool

    def best_is(self, number: str) -> BestIs | None:
        """Which value of `number` (a name, or `NAME/CLASS`) is best. Raises: `ConfigError` for an unknown number."""
        if number in self.single:
            return self.single[number]
        for name, best_is in self.by_class.items():
            if number.startswith(f"{name}/"):
                self._check_class(name, number.removeprefix(f"{name}/"))
                return best_is
        if self.is_whole:
            raise ConfigError(f"{shown(number)}: {self._unknown(number)}")
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
        return unknown("number of the val record", number, names)


def record_numbers(
    own: Mapping[str, BestIs | None] | Iterable[str],
    meters: Sequence[ClassyMeter | None],
    main_head: str,
    classes: Sequence[str] | None,
) -> RecordNumbers:
    """The numbers of a task: its `own`, and those that its `meters` declare. None is a meter that is not built yet.

    Raises: `ConfigError` for a name that two of them give; `TypeError` for a meter of an earlier version.
    """
    for meter in meters:
        if meter is not None and "numbers" in vars(meter):  # set in `__init__`, where no class shows it
            raise TypeError(f"{qualified(type(meter))}: found `numbers`, of an earlier version; call it `number_names`")
    single = [{name: _best_is(meter, name) for name in meter.number_names or ()} if meter else {} for meter in meters]
    by_class = [{name: _best_is(meter, name) for name in meter.class_number_names} if meter else {} for meter in meters]
    # The result is not needed: a name that comes twice is an error.
    joined_metrics(meters, [a | b for a, b in zip(single, by_class, strict=True)], main_head)
    own = own if isinstance(own, Mapping) else dict.fromkeys(own)
    return RecordNumbers(
        single={**own, **joined_metrics(meters, single, main_head)},
        by_class=joined_metrics(meters, by_class, main_head),
        classes=classes,
        is_whole=all(meter is not None and meter.number_names is not None for meter in meters),
        are_built=None not in meters,
    )


def _best_is(meter: ClassyMeter, name: str) -> BestIs | None:
    best_is = meter.best_is
    return best_is.get(name) if isinstance(best_is, Mapping) else best_is


def check_best(
    hooks: Sequence[ClassyHook], numbers: RecordNumbers, *, is_measured: bool, has_loss: bool = True
) -> None:
    """Raises: `ConfigError` for a `best` that no record has, for one without a `best_is` that it needs, and for a
    second hook that names the run's best checkpoint. `has_loss`: whether the loss of the `val` data is measured.
    """
    first: int | None = None
    for i, hook in enumerate(hooks):
        if not isinstance(hook.best, str):  # a plugin's hook may use this name for the best value so far
            continue
        if not is_measured:
            raise ConfigError(
                f"hooks[{i}].best",
                f"found {shown(hook.best)}, but there is no dataset.val by which to measure it; add one, or leave out "
                "best, or the hook that needs it",
            )
        if hook.best == "loss" and not has_loss:
            raise ConfigError(
                f"hooks[{i}].best",
                "found 'loss', which no record has, as the protocol of this config gives no outputs "
                "of whole images; choose a meter's number, or protocol: whole",
            )
        if hook.names_best and first is not None:
            raise ConfigError(f"hooks[{i}].best", f"hooks[{first}] has one already; a run has one best checkpoint")
        first = i if hook.names_best else first
        with within(f"hooks[{i}].best"):
            best_is = numbers.best_is(hook.best)
        can_tell = numbers.is_whole or numbers.are_built
        if best_is is None and hook.best_is is None and can_tell:
            raise ConfigError(
                f"hooks[{i}].best_is",
                f"missing; nothing says which value of {shown(hook.best)} is best: set it to largest or smallest",
            )
