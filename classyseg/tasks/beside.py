"""A data set that is read beside the training set: a batch of it for each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from classyseg import distributed
from classyseg.datasets import BadSamples, BatchLoader, ClassyDataset, TrainOrder, make_loader
from classyseg.datasets.loading.loader import StepOrder
from classyseg.engine.runtime import RuntimeConfig
from classyseg.structures import Sample


class Beside:
    """The batches of `dataset`, which the config calls `dataset.NAME`; `batch_size` is that of the whole job.

    Its order depends on `seed` and the step alone, so that a resumed run goes on with the same samples.

    Raises: `ConfigError` for a data set of less than a batch.
    """

    def __init__(self, name: str, dataset: ClassyDataset, batch_size: int, *, seed: int) -> None:
        self.name, self.dataset = name, dataset
        process = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        self.epochs = TrainOrder(len(dataset), batch_size, seed=seed, name=name, **process)
        """Its order: step N, from 0 on, takes batch N of its epochs, one after the other."""
        self._order = StepOrder(self.epochs)
        self.bad_samples = BadSamples({name: dataset})
        self._loader: BatchLoader | None = None

    def open(self, runtime: RuntimeConfig, device: torch.device, gives_up: Callable[[], bool]) -> None:
        """Makes the loader, with as many workers as the training set's has."""
        self._loader = make_loader(self.dataset, self._order, gives_up=gives_up, **runtime.loading(device))

    def batches(self, start: int, stop: int, run_folder: Path | None) -> Iterator[Sample]:
        """The batches of the steps from `start` on, before `stop`."""
        if self._loader is None:
            raise ValueError(f"dataset.{self.name}: call `open` first")
        self._order.start, self._order.stop = start, stop
        for batch in self._loader:
            if self._loader.bad:
                self.bad_samples.add(self.name, self._loader.bad, run_folder)
            yield batch

    def close(self) -> None:
        """Ends the processes that load."""
        if self._loader is not None:
            self._loader.close()
