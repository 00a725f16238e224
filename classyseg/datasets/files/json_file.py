"""JSON files whose every value is checked: a wrong one is named with its place in the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from classyseg.console import MAX_SHOWN, shown
from classyseg.errors import DataError

MAX_NUMBER = 10**18
MAX_BYTES = 2**32


class JsonFile:
    """The `contents` of a JSON file, as `read_json` gives them, and errors that name the file and the place in it."""

    def __init__(self, path: Path, *, constants: bool = False, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self.contents: Any = read_json(path, constants=constants, max_bytes=max_bytes)

    def refuse(self, what: str) -> NoReturn:
        """Raises: `DataError` that names the file."""
        raise DataError(what, file=self.path)

    def value(self, place: str, entry: Any, key: str) -> Any:
        """What an entry has under `key`. Raises: `DataError` where it has nothing, or is no mapping."""
        if not isinstance(entry, dict):
            self.refuse(f"{place} is {in_words(entry)}; expected a mapping")
        if key not in entry:
            self.refuse(f"{place} has no {key}")
        return entry[key]

    def number(self, place: str, entry: Any, key: str) -> int:
        """A whole number of an entry. Raises: `DataError` for anything else, also for text such as "1"."""
        value = self.value(place, entry, key)
        if type(value) is not int or abs(value) >= MAX_NUMBER:
            self.refuse(f"{place}: its {key} is {in_words(value)}; a whole number of up to 18 digits is expected")
        return value

    def text(self, place: str, entry: Any, key: str) -> str:
        """A text of an entry. Raises: `DataError` for anything else, and for an empty one."""
        value = self.value(place, entry, key)
        if not isinstance(value, str) or not value.strip():
            self.refuse(f"{place}: its {key} is {in_words(value)}; a text is expected")
        return value


def finite(value: object) -> bool:
    """Whether a value of JSON is a finite number, and neither true nor false."""
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < MAX_NUMBER)


def in_words(value: object) -> str:
    """Any value of JSON in a message, with the word for its kind."""
    if isinstance(value, str):
        return f"the text {shown(value)}"
    if isinstance(value, dict | list):
        return f"{'an empty' if not value else 'a'} {'mapping' if isinstance(value, dict) else 'list'}"
    return json.dumps(value)[:MAX_SHOWN]


def read_json(path: Path, *, constants: bool = False, max_bytes: int = MAX_BYTES) -> Any:
    """The contents of a JSON file. With `constants`, NaN and Infinity are numbers, so that a check can say where.

    Raises: `DataError` for a file that is missing, broken, or of more than `max_bytes`, and where a key comes twice.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise _RefusedError("is no file but a device or a pipe")
        size = path.stat().st_size
        if size > max_bytes:
            raise _RefusedError(f"has {size:,} bytes; up to {max_bytes:,} are read")
        refuse = None if constants else _no_constant
        return json.loads(path.read_bytes(), object_pairs_hook=_once, parse_constant=refuse)
    except FileNotFoundError:
        raise DataError("no such file", file=path) from None
    except RecursionError:
        raise DataError("cannot be read as JSON (nested too deeply)", file=path) from None
    except _RefusedError as error:
        raise DataError(str(error), file=path) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read as JSON ({error})", file=path) from None


class _RefusedError(Exception):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an entry has the key {shown(twice)} twice; its id is {in_words(entry.get('id'))}")
    return entry


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"found {text}, which is no number of JSON")
