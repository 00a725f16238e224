"""The errors of what users write: each problem holds its path in the config and its sentence apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from classyseg.console import printable, printable_lines

Location = tuple[str | int, ...]
"""A path in a config: `("heads", "main", 0)` is `heads.main[0]`."""
MAX_KEY, MAX_LINE = 200, 10_000
"""So many letters of a key and of a line are told."""


def path_text(location: Location) -> str:
    """`("heads", "main", 0)` as `heads.main[0]`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def location_of(path: str | Location) -> Location:
    """`heads.main[0]` as `("heads", "main", 0)`."""
    if isinstance(path, tuple):
        return path
    found = re.findall(r"\[([0-9]{1,9})\]|([^.\[\]]+)", path)
    location = tuple(int(index) if index else key for index, key in found)
    return location if path_text(location) == path else (path,)


def moved(location: Location, old: Location, new: Location) -> Location:
    """`location`, where it begins with `old`, with `new` in its place."""
    return (*new, *location[len(old) :]) if location[: len(old)] == old else location


class Problem(NamedTuple):
    """One thing that is wrong."""

    sentence: str
    path: Location = ()
    """Where it stands in the config; nothing where no key is to blame."""
    source: str = ""
    """Who wrote that: a file and its line, an override."""
    file: str = ""
    """What is wrong itself, such as an image."""

    def __str__(self) -> str:
        keys = tuple(part if isinstance(part, int) else printable(str(part), MAX_KEY) for part in self.path)
        sentence = printable_lines(self.sentence, MAX_LINE)  # a file's name or a plugin may bring anything in
        return ": ".join(filter(None, (printable(self.source), path_text(keys), printable(self.file), sentence)))


def under(outer: Location) -> Callable[[Problem], Problem]:
    """Puts `outer` before the path of a problem."""
    return lambda problem: problem._replace(path=(*outer, *problem.path))


class ConfigError(ValueError):
    """What a user wrote is wrong: a config, a path, a checkpoint, a plugin. The message says where and what.

    `ConfigError("heads.main", "found ...")` names a path of the config. A component names its own keys; whoever builds
    the component puts the place of its config before them. `ConfigError("...")` blames no key. A `file` that is wrong,
    such as an image, stands before the sentence.
    """

    exit_code = 2
    _problems: tuple[Problem, ...] = ()

    def __init__(
        self, path: str | Location = "", sentence: str | None = None, *, source: str = "", file: str | Path = ""
    ) -> None:
        super().__init__()
        place, told = ((), path) if sentence is None else (location_of(path), sentence)
        self._tell([Problem(str(told), place, source, str(file))])

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> Self:
        """An error with several problems, a line each."""
        error = cls("")
        error._tell(problems)
        return error

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self._problems or (Problem(str(self)),)  # a plugin's subclass may leave `__init__` out

    def _tell(self, problems: Iterable[Problem]) -> None:
        self._problems = tuple(problems)
        self.args = (self._told(self._problems),)

    @staticmethod
    def _told(problems: Iterable[Problem]) -> str:
        return "\n".join(map(str, problems))

    def change(self, changed: Callable[[Problem], Problem]) -> None:
        """Changes where each problem stands, or who wrote it: the error stays the one that was raised."""
        self._tell(map(changed, self.problems))

    def without(self, file: str | Path) -> str:
        """The message for a line that names `file` already."""
        return self._told(
            problem._replace(file="") if problem.file == str(file) else problem for problem in self.problems
        )

    def advise(self, text: str) -> Self:
        """Adds what to do about it to the last sentence."""
        *others, last = self.problems
        self._tell([*others, last._replace(sentence=f"{last.sentence}; {text}")])
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by a call of the class, which is how exceptions are pickled: a subclass takes what it likes.
        return _unpickled, (type(self), self.args, vars(self))


def _unpickled(kind: type[ConfigError], args: tuple[Any, ...], state: dict[str, Any]) -> ConfigError:
    base: Any = OSError if issubclass(kind, OSError) else ValueError  # whose memory it has, says C
    error: ConfigError = base.__new__(kind, *args)
    error.args = args
    vars(error).update(state)
    return error


class DataError(ConfigError):
    """An image or a label of a data set is wrong; the message names the file, what was found and what is accepted."""


class NonFiniteError(FloatingPointError):
    """A training loss, or its gradients, are NaN or infinite, and the run ends for it."""

    exit_code = 3


@contextmanager
def within(place: str | Location) -> Iterator[None]:
    """Puts `place` before the path of a `ConfigError` from inside: that of a component's own key."""
    with _changing(under(location_of(place))):
        yield


@contextmanager
def moving(old: str, new: str) -> Iterator[None]:
    """Puts `new` for `old` where the path of a `ConfigError` from inside begins with it."""
    before, after = location_of(old), location_of(new)
    with _changing(lambda problem: problem._replace(path=moved(problem.path, before, after))):
        yield


@contextmanager
def written_in(source: str) -> Iterator[None]:
    """Names a file (and its line) as the source of a `ConfigError` from inside, unless that has one."""
    with _changing(lambda problem: problem._replace(source=problem.source or source)):
        yield


@contextmanager
def _changing(changed: Callable[[Problem], Problem]) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        error.change(changed)
        raise
