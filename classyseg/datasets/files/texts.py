"""Millions of paths in two arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np


class Texts:
    """Paths by number, held so that data workers share them.

    Python counts references in each object of a list: a worker that only reads the list would copy all of its memory.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [os.fsencode(text) for text in texts]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"found the index {index} of {len(self)} texts")
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())
