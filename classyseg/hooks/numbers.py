"""The numbers of a val record, as hooks compare phases by one of them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from classyseg.config import listed
from classyseg.console import shown
from classyseg.errors import ConfigError
from classyseg.hooks.classy_hook import WatchedTask
from classyseg.records import is_by_class
from classyseg.structures import BestIs


def number_of(record: Mapping[str, Any], name: str, hook: str) -> float | None:
    """The number `name` of a val record; None where nothing valid was measured.

    Raises: `ConfigError`, which names the `hook`, for a number that the record does not have.
    """
    numbers = numbers_of(record)
    key = same_text(name, numbers)
    if key is None:
        raise ConfigError(
            "hooks", f"{hook}: best: the val record has no number {shown(name)}; it has {listed(list(numbers))}"
        )
    value = numbers[key]
    return value if value is not None and math.isfinite(value) else None


def direction_of(task: WatchedTask, name: str, best_is: BestIs | None, hook: str) -> BestIs:
    """Which value of the number is best: `best_is` if the config gives it, else what the number declares.

    Raises: `ConfigError`, which names the `hook`, where nobody says it.
    """
    found = best_is or task.best_is(name)
    if found is None:
        raise ConfigError(
            "hooks",
            f"{hook}: best_is: nothing says which value of {shown(name)} is best; set it to largest or smallest",
        )
    return found


def numbers_of(record: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a val record, by the names that `best` takes; numbers of classes as `iou/CLASS`."""
    numbers: dict[str, float | None] = {}
    for key, value in record.items():
        if value is None or isinstance(value, int | float):
            numbers[key] = value
        elif is_by_class(value):
            numbers |= {f"{key}/{name}": number for name, number in value.items()}
    return numbers


def same_text(name: str, names: Mapping[str, Any]) -> str | None:
    """The one of `names` that equals `name`, or differs from it only in its form of Unicode."""
    if name in names:
        return name
    wanted = unicodedata.normalize("NFC", name)
    return next((known for known in names if unicodedata.normalize("NFC", known) == wanted), None)
