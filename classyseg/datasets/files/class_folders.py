"""Trees with one folder for each class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from classyseg.config import listed
from classyseg.datasets.files.images import IMAGE_SUFFIXES
from classyseg.datasets.files.lists import same_names
from classyseg.datasets.files.pairs import refuse_loop, report_fault
from classyseg.errors import ConfigError, DataError


def class_names(root: Path) -> tuple[str, ...]:
    """The names of the folders in `root`, sorted. Raises: `DataError` where there is none, or they may not be read."""
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        _refuse(error)
    if not names:
        raise DataError(f"{root}: found no folder; expected one for each class, with its files")
    return tuple(names)


def labelled_files(
    root: Path, labels: Mapping[str, int], suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> list[tuple[str, int]]:
    """The files in the folders of `root`, at any depth, with the label of each folder's name; in the order of names.

    Raises: `DataError` for a folder that is missing, or holds no such file; `ConfigError` for one without a label.
    """
    found = class_names(root)
    classes = same_names(found, labels, str(root))
    strange = [name for name in found if name not in classes]
    if strange:
        raise ConfigError(
            f"{root}: {len(strange)} folders are no class: {listed(strange, limit=5)}; known: {listed([*labels])}"
        )
    files: list[tuple[str, int]] = []
    for name in found:
        paths = files_below(root / name, suffixes)
        if not paths:
            report_fault(
                "empty_class", f"{root / name}: found no file; accepted: {', '.join(suffixes)}", [str(root / name)]
            )
        files += [(path, labels[classes[name]]) for path in paths]
    if not files:
        raise DataError(f"{root}: found no file in any folder; accepted: {', '.join(suffixes)}")
    return files


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The paths of the files with one of `suffixes` in `folder` and below, sorted. Raises: `DataError`."""
    found = []
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            refuse_loop(Path(place, name))
        found += [
            os.path.join(place, name) for name in names if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return sorted(found)


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None
