"""How fast a phase runs, and how much of its time it waits for data."""

from __future__ import annotations

import time

from classyseg import distributed
from classyseg.structures import PhaseTime


class Pace:
    """Measures a phase, from `begin` on."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._samples, self._waited, self._started = 0, 0.0, time.perf_counter()

    def count(self, samples: int) -> None:
        self._samples += samples

    def waited_since(self, asked: float) -> None:
        """Counts the time since `asked`, of `time.perf_counter`, as time waited for data."""
        self._waited += time.perf_counter() - asked

    @property
    def so_far(self) -> PhaseTime:
        return PhaseTime(self.seconds, self._waited, self._samples)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @property
    def samples_per_second(self) -> float:
        """Samples of the whole job per second."""
        return self._samples * distributed.world_size() / max(1e-9, self.seconds)

    @property
    def data_wait(self) -> float:
        """The share of the time in which this process waited for data."""
        return self._waited / max(1e-9, self.seconds)
