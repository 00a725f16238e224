"""Collects the problems of independent parts, to tell all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from classyseg.errors import ConfigError, DataError, location_of, under


class Problems:
    """What was found so far; `tell` raises it."""

    def __init__(self) -> None:
        self.found: list[ConfigError] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keeps a `ConfigError` from inside; the code after the `with` goes on."""
        try:
            yield
        except ConfigError as error:
            self.found.append(error)

    @contextmanager
    def within(self, place: str) -> Iterator[None]:
        """Puts `place` before the path of all problems from inside."""
        before = len(self.found)
        with self.collected():
            yield
        for error in self.found[before:]:
            error.change(under(location_of(place)))

    def tell(self) -> None:
        """Raises: `ConfigError` with all that was found, a line each; `DataError` where that is all of the data."""
        if self.found:
            kind = DataError if all(isinstance(error, DataError) for error in self.found) else ConfigError
            raise kind.of(dict.fromkeys(problem for error in self.found for problem in error.problems))
