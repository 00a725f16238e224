"""Writes a run's files except its checkpoints. What a full disk does not take is written later."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classyseg.errors import ConfigError
from classyseg.io import append_json_line, write_atomically
from classyseg.run_folder import GIVEN, given_files

log = logging.getLogger(__name__)


class WriteError(ConfigError, OSError):
    """Something that a run had to write is lost; the message names the path. It is the machine's fault: exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class _Line:
    """A record to add to a file."""

    record: dict[str, Any]
    durable: bool

    def write(self, path: Path) -> None:
        append_json_line(path, self.record, durable=self.durable)


@dataclass(frozen=True)
class _Content:
    """What a file holds from now on."""

    content: str | bytes

    def write(self, path: Path) -> None:
        write_atomically(path, self.content)


@dataclass(frozen=True, eq=False)
class RecordFile:
    """A file of records in a run's folder, one per line. The part that adds to it declares it.

    When a run is resumed from a checkpoint, records after its step will come again. So each record has a `step`, and
    those after the checkpoint are removed; `by_step` is False for records that stay.
    """

    name: str
    keys: Mapping[str, type]
    """The keys that each record has at least, and their types."""
    by_step: bool = True


class RunRecords:
    """The files of the run's folder by their names, in the order in which they were given.

    What cannot be written (on a full disk) is kept, named in the log, and tried again with the next write: the run goes
    on. `finish` is the last try. Without a folder, nothing is written. `in_place` tells whether the folder still
    belongs to the run.
    """

    def __init__(self, folder: Path | None, in_place: Callable[[], bool] = lambda: True) -> None:
        self.folder = folder
        self._in_place = in_place
        self._waiting: dict[str, list[_Line | _Content]] = {}
        self._errors: dict[str, OSError] = {}
        self._written: set[str] = set()

    def append(self, name: str, record: dict[str, Any], *, durable: bool = False) -> None:
        """Adds a record to the file `name`. Raises: `WriteError` where the folder is gone."""
        self._add(name, _Line(record, durable))

    def replace(self, name: str, content: str | bytes) -> None:
        """Gives the file `name` another content. Raises: as `append`."""
        self._add(name, _Content(content))

    def give(self, name: str, content: str | bytes) -> None:
        """As `replace`, for a file that a plugin names: its name is noted, so that `--overwrite` can delete it."""
        if self.folder is not None:
            names = given_files(self.folder)
            if name not in names:
                self.replace(GIVEN, "".join(f"{known}\n" for known in [*names, name]))
        self.replace(name, content)

    def _add(self, name: str, item: _Line | _Content) -> None:
        if self.folder is not None:
            self._waiting.setdefault(name, []).append(item)
            self.write()

    def write(self) -> None:
        """Writes what waits, as far as the disk takes it. Raises: `WriteError` if the folder is gone."""
        if self.folder is None:
            return
        self.check_in_place()
        for name, items in list(self._waiting.items()):
            try:
                while items:
                    items[0].write(self.folder / name)
                    del items[0]
                    self._written.add(name)
            except OSError as error:
                self.check_in_place()
                if name not in self._errors:
                    log.warning(
                        "%s: cannot be written (%s); kept in memory and tried again, the run goes on",
                        self.folder / name,
                        error.strerror,
                    )
                self._errors[name] = error
                continue
            del self._waiting[name]
            if self._errors.pop(name, None) is not None:
                log.warning("%s: written now, with all that was kept", self.folder / name)

    def check_in_place(self) -> None:
        """Raises: `WriteError` where somebody deleted or replaced the folder, or what the run has written there."""
        if self.folder is None:
            return
        gone = [name for name in sorted(self._written) if not os.path.lexists(self.folder / name)]
        if gone or not self._in_place():
            what = ", ".join(gone) if gone and self.folder.is_dir() else "the folder"
            raise WriteError(
                f"{self.folder}: {what} was deleted or replaced while the run was at work; the run ends, as half of it "
                "is lost"
            )

    def finish(self) -> None:
        """Raises: `WriteError` that names the files that could not be written whole."""
        self.write()
        lost = [
            f"{self.folder}/{name}: cannot be written ({self._errors[name].strerror}), {len(items)} "
            f"{'records are' if isinstance(items[0], _Line) else 'contents are'} lost"
            for name, items in self._waiting.items()
        ]
        if lost:
            raise WriteError("; ".join(lost))


def is_by_class(value: Any) -> bool:
    """Whether a value of a record is a mapping from each class to a number or None."""
    return isinstance(value, Mapping) and all(
        number is None or isinstance(number, int | float) for number in value.values()
    )
