"""Collects what is wrong with parts that do not depend on each other, to tell all of it at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from classyseg.config import ConfigError, DataError, placed


class Problems:
    """What was found so far; `tell` raises it."""

    def __init__(self) -> None:
        self.found: list[ConfigError] = []
        self._places: list[str] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keeps a `ConfigError` from inside; what comes after the `with` runs on."""
        try:
            yield
        except ConfigError as error:
            for place in reversed(self._places):
                error = placed(place, error)
            self.found.append(error)

    @contextmanager
    def within(self, place: str) -> Iterator[None]:
        """Puts `place` before the path of all problems from inside."""
        self._places.append(place)
        try:
            with self.collected():
                yield
        finally:
            self._places.pop()

    def tell(self) -> None:
        """Raises: `ConfigError` with all that was found, a line each; `DataError` where that is all of the data."""
        if self.found:
            kind = DataError if all(isinstance(error, DataError) for error in self.found) else ConfigError
            raise kind("\n".join(dict.fromkeys(map(str, self.found))))
