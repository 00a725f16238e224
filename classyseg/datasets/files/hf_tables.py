"""Tables of Hugging Face data sets on the disk: Arrow files of `save_to_disk`, and Parquet. Read by pyarrow alone.

Arrow files are mapped into memory, Parquet is read a group of rows at a time. Nothing is unpickled.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from classyseg.console import MAX_NAME, shown
from classyseg.datasets.files.json_file import read_json
from classyseg.errors import ConfigError, DataError

MAX_GROUP = 2**31
"""The most bytes that a group of rows of a Parquet file may have, as its footer says."""
MAX_JSON = 2**28
MAX_FILES = 100_000
SHARD = re.compile(r"[-_.]\d+-of-\d+(?:-[0-9a-f]+)?$")
"""What stands after the name of a split in the name of one of its files: `train-00000-of-00002`."""


class Tables(NamedTuple):
    """The files of one split, in their order, and the folder of the pictures that a row names by their paths."""

    folder: Path
    files: list[Path]


def require_pyarrow() -> Any:
    """The module `pyarrow`. Raises: `ConfigError` where it is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Hugging Face data sets are read by pyarrow: pip install 'classyseg[hf]'") from None
    return pa


def splits_of(folder: Path) -> dict[str, Tables]:
    """The splits of a data set in `folder`; one without a name for a data set that has no splits.

    Raises: `DataError` for a folder without one.
    """
    if (folder / "dataset_dict.json").is_file():
        names = read_json(folder / "dataset_dict.json", max_bytes=MAX_JSON)
        names = names.get("splits") if isinstance(names, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) and _is_plain(name) for name in names):
            raise DataError("its splits are no list of names of folders", file=folder / "dataset_dict.json")
        return {name: _saved(folder / name) for name in names}
    if (folder / "state.json").is_file():
        return {"": _saved(folder)}
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.parquet"))[:MAX_FILES]:
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            found.setdefault(_split_of(path, folder), []).append(path)
    if not found:
        raise DataError(
            f"{folder}: found no Hugging Face data set: neither dataset_dict.json nor state.json, as save_to_disk "
            "writes them, nor a .parquet file"
        )
    return {name: Tables(folder, paths) for name, paths in found.items()}


def _is_plain(name: str) -> bool:
    """Whether a name leads to no other folder."""
    return bool(name) and Path(name).name == name and name not in (".", "..") and "\\" not in name


def _saved(folder: Path) -> Tables:
    """The Arrow files of a folder that `save_to_disk` wrote. Raises: `DataError`."""
    state_file = folder / "state.json"
    state = read_json(state_file, max_bytes=MAX_JSON)
    entries = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError("it names no files of data; is it one that save_to_disk of `datasets` wrote?", file=state_file)
    if state.get("_indices_data_files"):
        raise DataError(
            "its rows are chosen by another file; call flatten_indices() before save_to_disk", file=state_file
        )
    files = []
    for entry in entries:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _is_plain(name):
            raise DataError(
                f"names the file {shown(name, MAX_NAME)}; accepted are files of its folder", file=state_file
            )
        if not (folder / name).is_file():
            raise DataError(f"names the file {shown(name, MAX_NAME)}, which is not there", file=state_file)
        files.append(folder / name)
    return Tables(folder, files)


def _split_of(path: Path, folder: Path) -> str:
    """The split of a Parquet file: `train` of `train-00000-of-00002`, `train.parquet` and `train/0000.parquet`."""
    name = SHARD.sub("", path.stem)
    if re.fullmatch(r"\d*", name) and path.parent != folder:
        return path.parent.name
    return re.sub(r"[-_.]\d+$", "", name) or name


class Rows:
    """The rows of Arrow or Parquet files with some `columns`. Every process opens the files for itself."""

    def __init__(self, files: Sequence[Path], columns: Sequence[str]) -> None:
        self.files = list(files)
        self.columns = list(columns)
        self._opened: dict[int, Any] = {}
        self._group: tuple[int, int, Any] | None = None
        self._ends = [*accumulate(self._table(number).num_rows for number in range(len(self.files)))]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": {}, "_group": None}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, index: int) -> tuple[Path, int]:
        """The file of a row, and its number there."""
        number = bisect_right(self._ends, index)
        return self.files[number], index - (self._ends[number - 1] if number else 0)

    def value(self, index: int, column: str) -> Any:
        """A cell, as pyarrow's scalar. Raises: `DataError`, naming the file."""
        number = bisect_right(self._ends, index)
        row = index - (self._ends[number - 1] if number else 0)
        table = self._table(number)
        with naming(self.files[number]):
            if isinstance(table, _Parquet):
                group = bisect_right(table.ends, row)
                first = table.ends[group - 1] if group else 0
                if self._group is None or self._group[:2] != (number, group):
                    self._group = number, group, table.read(group, self.columns)
                return self._group[2].column(column)[row - first]
            return table.column(column)[row]

    def _table(self, number: int) -> Any:
        if number not in self._opened:
            self._opened[number] = _open(self.files[number], self.columns)
        return self._opened[number]


class _Parquet:
    """A Parquet file; `ends` has the number of the row after each group."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file = file
        self.path = path
        metadata = file.metadata
        self.num_rows = metadata.num_rows
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        self.ends = [*accumulate(group.num_rows for group in groups)]
        if (self.ends[-1] if groups else 0) != self.num_rows or any(group.num_rows < 0 for group in groups):
            raise DataError("its groups have other numbers of rows than its footer says", file=path)
        largest = max((group.total_byte_size for group in groups), default=0)
        if largest > MAX_GROUP:
            raise DataError(
                f"has a group of rows of {largest:,} bytes; up to {MAX_GROUP:,} are read: write it with a smaller "
                "row_group_size, or use save_to_disk",
                file=path,
            )

    def read(self, group: int, columns: Sequence[str]) -> Any:
        return _checked(self.file.read_row_group(group, columns=list(columns)), self.path)


def schema_of(path: Path) -> Any:
    """The schema of a file of Arrow or Parquet. Raises: `DataError`, naming it."""
    pa = require_pyarrow()
    with naming(path):
        if path.suffix == ".parquet":
            schema = pa.parquet.read_schema(str(path))
        else:
            with pa.memory_map(str(path)) as source:
                schema = pa.ipc.open_stream(source).schema
        for field in schema:
            _check_names(field)
        return schema


def _check_names(field: Any) -> None:
    """pyarrow raises an error for a name that is no text, once it is asked for."""
    if not field.name.isprintable():
        raise ValueError("a column has a name that cannot be shown")
    for i in range(field.type.num_fields):
        _check_names(field.type.field(i))


def features_of(path: Path) -> Mapping[str, Any]:
    """The types of the columns as `datasets` describes them; empty where the file says none."""
    metadata = schema_of(path).metadata or {}
    try:
        found = json.loads(metadata.get(b"huggingface", b"{}"))
        features = found["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _open(path: Path, columns: Sequence[str]) -> Any:
    pa = require_pyarrow()
    schema = schema_of(path)
    missing = [name for name in columns if schema.names.count(name) != 1]
    if missing:
        raise DataError(f"has no column {missing[0]}", file=path)
    with naming(path):
        if path.suffix == ".parquet":
            return _Parquet(pa.parquet.ParquetFile(str(path), memory_map=True), path)
        return _checked(pa.ipc.open_stream(pa.memory_map(str(path))).read_all().select(list(columns)), path)


def _checked(table: Any, path: Path) -> Any:
    """A table whose every offset lies within its own bytes: a damaged file must not lead to other memory."""
    table.validate(full=True)
    return table


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns any error of pyarrow inside into a `DataError` that names the file."""
    try:
        yield
    except (DataError, ConfigError, KeyboardInterrupt):
        raise
    except FileNotFoundError:
        raise DataError("no such file", file=path) from None
    except Exception as error:  # pyarrow raises many kinds for damaged files
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot be read as a table of Arrow or Parquet ({shown(told)})", file=path) from None
