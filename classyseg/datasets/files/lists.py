"""Reads lists and tables as people and programs write them, and finds the files that they name."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NoReturn

from classyseg.config import closest, user_path
from classyseg.errors import DataError
from classyseg.io import in_other_form, told_apart

Row = tuple[int, dict[str, str]]
"""The number of a line, and its cells by column."""
BLANKS = " \t"
"""Blanks that may stand around a name. Other blanks, such as no-break spaces, are part of the name."""
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
MAX_BYTES = 2**30


def read_text(path: Path) -> str:
    """The text of a list or table, with lines that end in a line feed.

    Raises: `DataError` for a file that is missing, unreadable, no UTF-8, or too large for a list.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise DataError(f"{path}: is no file but a device or a pipe")
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: is larger than {MAX_BYTES:,} bytes; a list or a table is a text file")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: cannot be read (not UTF-8 text, byte {error.start}); save it as UTF-8 where it was written"
        ) from None


def lines_of(path: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers. Only a line feed ends a line. Raises as `read_text`."""
    lines = read_text(path).split("\n")
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip(BLANKS)]


def words_of(line: str) -> list[str]:
    """The words of a line, between blanks."""
    return [word for word in re.split(f"[{BLANKS}]+", line) if word]


def read_table(path: Path, columns: Sequence[str], hint: str = "") -> list[Row]:
    """The rows of a CSV table that has at least these `columns`, with cells as they are written.

    Commas, semicolons or tabs separate cells; blanks around the names of columns are left out, and so are empty lines.
    Raises: `DataError` for another kind of table, naming the line. The text of the line is not shown: the path may lead
    to any file of the machine.
    """
    text = read_text(path)
    headers = {separator: next(_rows(text, separator), (1, []))[1] for separator in SEPARATORS}
    fitting = [separator for separator, header in headers.items() if {*columns} <= {*map(_stripped, header)}]
    if not fitting:
        known = [_stripped(cell) for header in headers.values() for cell in header]
        missing = [column for column in columns if not any(column in map(_stripped, h) for h in headers.values())]
        raise DataError(
            f"{path}: the first line must name the columns {', '.join(columns)}, with commas, semicolons or tabs "
            f"between them, and rows must follow; {_not_there(missing or columns, known)}{hint}"
        )
    return list(_checked_rows(path, text, fitting[0], columns))


def cell(path: Path, row: Row, column: str) -> str:
    """A cell of a row of the table `path`, as it is written. Raises: `DataError` for an empty one."""
    number, cells = row
    if not _stripped(cells.get(column, "")):
        raise DataError(f"{path}, line {number}: the cell of {column} is empty")
    return cells[column]


def _stripped(cell: str) -> str:
    return cell.strip(BLANKS)


def _not_there(missing: Sequence[str], known: Sequence[str]) -> str:
    """Which columns are missing, and similar names in the table: no other words of the file are shown."""
    near = []
    for column in missing:
        found = closest(column, [word for word in known if abs(len(word) - len(column)) <= 3])
        near += [f"{found!r} for {column}"] if found else []
    there = f" (is it {', '.join(near)}?)" if near else ""
    return f"found no {', '.join(missing)}{there}"


def _rows(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that hold something, with the numbers of their lines."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    for row in reader:
        if any(map(_stripped, row)):
            yield reader.line_num, row


def _checked_rows(path: Path, text: str, separator: str, columns: Sequence[str]) -> Iterator[Row]:
    names: list[str] = []
    found = 0
    try:
        for number, row in _rows(text, separator):
            if not names:
                names = [*map(_stripped, row)]
                twice = [name for name in columns if names.count(name) > 1]
                if twice:
                    raise DataError(f"{path}: the first line names the column {twice[0]} twice")
                continue
            found += 1
            if any(map(_stripped, row[len(names) :])):
                raise DataError(
                    f"{path}, line {number}: found {len(row)} cells for {len(names)} columns; a name with a separator "
                    "in it needs quotes"
                )
            yield number, dict(zip(names, row, strict=False))
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from None
    if not found:
        raise DataError(f"{path}: names its columns, and has no rows")


def has_column(path: Path, column: str) -> bool:
    """Whether the first line of a table names `column`, in any capitals (`read_table` refuses other ones)."""
    text = read_text(path)
    return any(column in map(bare, row) for s in SEPARATORS for _, row in islice(_rows(text, s), 1))


# -- names of files ----------------------------------------------------------------------------------------------------


def normal(name: str) -> str:
    """A name in its composed form: macOS writes "\u00fc" as "u" and two dots."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def bare(word: str) -> str:
    """The visible characters of a word, in small letters."""
    return "".join(c for c in unicodedata.normalize("NFKC", word) if c.isprintable() and c != " ").casefold()


def same_names(names: Iterable[str], known: Iterable[str], place: str) -> dict[str, str]:
    """Each of `names` with its equal in `known`, else with one that differs only in its form of Unicode.

    Names without one are left out. Raises: `DataError` if `place` has several such forms.
    """
    there = dict.fromkeys(known)
    names = list(names)
    found = {name: name for name in names if name in there}
    rest = [name for name in names if name not in found and not name.isascii()]
    if not rest:
        return found
    forms: dict[str, list[str]] = {}
    for name in there:
        if name not in found:
            forms.setdefault(normal(name), []).append(name)
    taken: dict[str, str] = {}
    for name in rest:
        candidates = forms.get(normal(name), [])
        if len(candidates) > 1 or (candidates and taken.setdefault(candidates[0], name) != name):
            several = candidates if len(candidates) > 1 else [taken[candidates[0]], name]
            refuse_forms(place, several)
        if candidates:
            found[name] = candidates[0]
    return {name: found[name] for name in names if name in found}


def refuse_forms(place: object, names: Iterable[str]) -> NoReturn:
    """Raises: `DataError` for names that nobody can tell apart."""
    raise DataError(f"{place}: {told_apart(names)}")


def spellings(written: str) -> Iterator[str]:
    """The paths that a written one may mean, in the order in which they are looked for."""
    yield written
    inner = _stripped(written)
    yield inner
    slashes = inner.replace("\\", "/")  # Windows writes backslashes
    yield slashes
    yield PurePosixPath(slashes).as_posix()  # without ./ before it


class Files:
    """The files under `folder`, by paths as people write them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listings: dict[Path, Mapping[str, list[str]]] = {}

    def find(self, written: str) -> Path | None:
        """The file at a path; None where there is none. Raises: `ConfigError` where several differ in form alone."""
        for name in dict.fromkeys(spellings(written)):
            path = self.folder / (user_path(name) if name.startswith("~/") else name)
            try:
                if path.is_file():
                    return path
                other = None if name.isascii() else in_other_form(path, self.folder, self._listings)
            except OSError:  # a name that is too long
                continue
            if other is not None and other.is_file():
                return other
        return None
