"""The files and folders of a data set, listed once, within bounds."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MAX_ENTRIES = 500_000
MAX_DEPTH = 6


@dataclass(frozen=True)
class Tree:
    """Names of files by folder, `""` is `root` itself. `is_whole` is False where the bounds left something out."""

    root: Path
    files: dict[str, tuple[str, ...]]
    is_whole: bool

    def below(self, folder: str) -> list[str]:
        """The folders directly in `folder`."""
        start = f"{folder}/" if folder else ""
        return [name for name in self.files if name and name.startswith(start) and "/" not in name[len(start) :]]

    def path(self, folder: str) -> Path:
        return self.root / folder


def listing(root: Path) -> Tree:
    """The tree of `root`: at most `MAX_ENTRIES` entries, `MAX_DEPTH` folders deep.

    Hidden names are left out. Links to folders are not followed. A link to a file counts if that lies in `root`, too.
    """
    real = os.path.realpath(root)
    files: dict[str, tuple[str, ...]] = {}
    waiting, left, is_whole = deque([""]), MAX_ENTRIES, True
    while waiting:
        folder = waiting.popleft()
        names: list[str] = []
        folders: list[str] = []
        for entry in _entries(os.path.join(root, folder)):
            left -= 1
            if left < 0:
                return Tree(root, files | {folder: tuple(sorted(names))}, False)
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif not entry.is_symlink() or os.path.realpath(entry.path).startswith(real + os.sep):
                names.append(entry.name)
        files[folder] = tuple(sorted(names))
        if folder.count("/") + bool(folder) < MAX_DEPTH:
            waiting.extend(str(PurePosixPath(folder, name)) for name in sorted(folders))
        else:
            is_whole &= not folders
    return Tree(root, files, is_whole)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith((".", "__MACOSX")))
    except OSError:  # a folder that may not be read holds nothing for us
        return
