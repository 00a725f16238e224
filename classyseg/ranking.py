"""The few things with the lowest scores, of this process and then of the whole job."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from classyseg.distributed import gather_over_processes

Item = TypeVar("Item")
Key = tuple[float, ...]
NOTHING: Key = (float("inf"), float("inf"))


class Lowest(Generic[Item]):
    """Keeps the `count` items with the lowest scores. Of equal scores, a hash of the name decides.

    So they are the same for every number of processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._kept: list[tuple[Key, Item]] = []

    def offer(self, score: float, name: str, make: Callable[[], Item]) -> None:
        """Keeps what `make` gives if few scores are as low; else it is not called."""
        is_full = len(self._kept) == self.count
        if not self.count or (is_full and score > self._kept[-1][0][0]):
            return
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        key = score, float(int.from_bytes(digest[:6]))
        if is_full and key > self._kept[-1][0]:
            return
        self._kept = sorted([*self._kept, (key, make())], key=lambda kept: kept[0])[: self.count]

    def of_job(self) -> list[tuple[int, Item]]:
        """Those of this process that are among the lowest of the whole job, with their places from 1. Every process
        calls it."""
        own = [key for key, _ in self._kept]
        padded = torch.tensor([*own, *[NOTHING] * (self.count - len(own))], dtype=torch.float64).view(-1, 2)
        everyone: list[Key] = sorted(map(tuple, gather_over_processes(padded).flatten(0, 1).tolist()))
        lowest = [key for key in everyone[: self.count] if key != NOTHING]
        return [(lowest.index(key) + 1, item) for key, item in self._kept if key in lowest]
