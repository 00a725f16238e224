"""What a conversion says of the config that it read: what it dropped, changed or could not read, by its path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from classyseg.config import closest
from classyseg.console import shown
from classyseg.errors import Location, path_text

Kind = Literal["lost", "differs", "assumed", "unused"]


@dataclass(frozen=True)
class NotRead:
    """A value that a file computes by more than data."""

    code: str
    place: str

    def __str__(self) -> str:
        return f"{self.code} ({self.place}) is no literal, and files are not executed: write its value in its place"


@dataclass(frozen=True)
class Note:
    """`lost`: a value that changes numbers has no equivalent. `differs`: the closest equivalent, and how it differs.

    `assumed`: what the other config leaves open. `unused`: a value that changes no numbers was left out.
    """

    kind: Kind
    path: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}: {self.sentence}" if self.path else self.sentence


@dataclass
class Notes:
    """The notes of one conversion, each once."""

    found: list[Note] = field(default_factory=list)

    def add(self, kind: Kind, path: str, sentence: str) -> None:
        note = Note(kind, path, sentence)
        if note not in self.found:
            self.found.append(note)

    def of(self, *kinds: Kind) -> list[Note]:
        return [note for note in self.found if note.kind in kinds]


_MISSING = object()


class Section:
    """A mapping of the other config, which is read key by key; `close` reports every key that nobody took.

    So a key is converted, named as one without equivalent, or named as one that changes no numbers: never forgotten.
    """

    def __init__(self, values: Any, location: Location, notes: Notes) -> None:
        self.notes = notes
        self.location = location
        if isinstance(values, NotRead):
            notes.add("lost", path_text(location), str(values))
        elif not isinstance(values, Mapping | None):
            notes.add("lost", path_text(location), f"found {shown(values)}; expected a mapping")
        self.values: dict[str, Any] = dict(values) if isinstance(values, Mapping) else {}
        self.taken: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def path(self, key: str = "") -> str:
        return path_text((*self.location, key) if key else self.location)

    def take(self, key: str, default: Any = None) -> Any:
        """The value of `key`, which counts as carried over; `default` where it is missing or cannot be read."""
        self.taken.add(key)
        value = self.values.get(key, _MISSING)
        if value is _MISSING or not self._is_read((*self.location, key), value):
            return default
        return value

    def _is_read(self, location: Location, value: Any) -> bool:
        """Whether nothing in a value of lists is a `NotRead`; mappings in it are sections of their own."""
        if isinstance(value, NotRead):
            self.notes.add("lost", path_text(location), str(value))
            return False
        items = value if isinstance(value, list) else ()
        read = [self._is_read((*location, i), item) for i, item in enumerate(items)]  # a note for each
        return all(read)

    def number(self, key: str, default: Any = None) -> Any:
        """A number, or `default`; something else is noted as lost, and so is None where the default is a number."""
        value = self.take(key, default)
        if value is default or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        self.lost(key, f"found {shown(value)}; expected a number")
        return default

    def numbers(self, key: str, default: Any = None) -> Any:
        """A list of numbers, or `default`; something else is noted as lost."""
        value = self.take(key, default)
        if value is default or (isinstance(value, list) and all(isinstance(item, int | float) for item in value)):
            return value
        self.lost(key, f"found {shown(value)}; expected a list of numbers")
        return default

    def text(self, key: str, default: str = "") -> str:
        value = self.take(key, default)
        if isinstance(value, str):
            return value
        if value is not None:
            self.lost(key, f"found {shown(value)}; expected a text")
        return default

    def section(self, key: str) -> Section:
        """The mapping below `key`; an empty one where there is none."""
        self.taken.add(key)
        return Section(self.values.get(key), (*self.location, key), self.notes)

    def sections(self, key: str) -> list[Section]:
        """The mappings of a list below `key`, or the only one."""
        self.taken.add(key)
        value = self.values.get(key)
        if isinstance(value, list):
            return [Section(item, (*self.location, key, i), self.notes) for i, item in enumerate(value)]
        return [] if value is None else [Section(value, (*self.location, key), self.notes)]

    def lost(self, key: str, sentence: str) -> None:
        """`key` changes numbers and has no equivalent."""
        self.taken.add(key)
        self.notes.add("lost", self.path(key), sentence)

    def differs(self, key: str, sentence: str) -> None:
        self.taken.add(key)
        self.notes.add("differs", self.path(key), sentence)

    def expect(self, key: str, *accepted: Any, why: str = "") -> None:
        """Takes `key`; another value than `accepted` (the first is the default) is lost."""
        value = self.take(key, accepted[0])
        if value not in accepted:
            wanted = " or ".join(shown(one) for one in accepted)
            self.lost(key, f"found {shown(value)}; only {wanted} has an equivalent{f' ({why})' if why else ''}")

    def unused(self, *keys: str) -> None:
        """These keys change no numbers, or say what the rest of the config says already."""
        self.taken.update(keys)

    def left_out(self, sentence: str, *keys: str) -> None:
        """These keys change no numbers; a note says that they are left out, and why."""
        for key in keys:
            if self.values.get(key) is not None:
                self.notes.add("unused", self.path(key), sentence)
        self.taken.update(keys)

    def close(self) -> None:
        """Notes every key that was not taken as lost."""
        for key in self.remaining():
            near = closest(key, self.taken)
            value = self.values[key]
            told = str(value) if isinstance(value, NotRead) else f"{shown(value)} has no equivalent"
            self.lost(key, f"{told}{f'; did you mean {shown(near)}?' if near else ''}")

    def remaining(self) -> Iterator[str]:
        yield from [key for key in self.values if key not in self.taken]
