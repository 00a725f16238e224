"""Finds the images that annotations name. No name leads out of the data set's folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from classyseg.config import listed
from classyseg.console import MAX_NAME, printable, shown
from classyseg.datasets.files.lists import Files, spellings
from classyseg.datasets.files.pairs import report_fault
from classyseg.errors import DataError


class ImageFiles:
    """The files under `root`, by names as annotations write them."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.normpath(root))
        self._folders: dict[Path, Files] = {}

    def find(self, written: str, start: Path) -> Path | None:
        """The file that is called so seen from the folder `start`; None where there is none.

        Raises: `DataError` for a name that leads out of `root`; it names no file, which the caller adds.
        """
        if not all(self.holds(start, name) for name in spellings(written)):
            raise DataError(
                f"its image is {shown(written, MAX_NAME)}, which leads out of {self.root}; write its name relative to "
                f"{start}"
            )
        folder = self._folders.setdefault(start, Files(start))
        return folder.find(written)

    def holds(self, start: Path, name: str) -> bool:
        """Whether a path, seen from the folder `start`, is one in `root`, whether it exists or not."""
        if name.startswith("~") or re.match(r"[A-Za-z]:[\\/]|[a-z0-9+]+://", name):
            return False
        return Path(os.path.normpath(start / name)).is_relative_to(self.root)


def report_missing(place: Path, folder: Path, missing: Sequence[str], total: int) -> None:
    """Notes images that `place` names and that are not in `folder`. Raises: `DataError` unless faults are collected."""
    if missing:
        names = listed([printable(name, MAX_NAME, exact=True) for name in missing], limit=5)
        message = f"{place}: {folder} has no file for {len(missing)} of its {total} images: {names}"
        report_fault("missing_image", message, missing)
