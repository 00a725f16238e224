"""The data of a task: its sets, the order of their batches, and what loads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from classyseg import distributed
from classyseg.config import ConfigError, ConfigRecord
from classyseg.datasets import (
    BadSamples,
    Batches,
    ClassyDataset,
    EvalBatches,
    TrainBatches,
    make_loader,
)
from classyseg.datasets.loading.bad_samples import RECORD_FILE
from classyseg.engine.runtime import RuntimeConfig
from classyseg.foreign import instead_of_key
from classyseg.registry import DatasetConfig
from classyseg.structures import Phase, Progress, Sample


class DatasetsConfig(ConfigRecord):
    """The data sets of a task; without `val` and `test`, nothing is measured but the training loss.

    A task that trains needs `train`.

    Args:
        train: A data set; required unless `num_epochs` is 0. Classes, palette and ignored label come from here, or from
            `val` where there is no `train`.
        val: A data set with the same classes, measured while training: the best checkpoint is chosen by it.
        test: Another one, measured once: after the last step, with the weights of the best checkpoint where the hook
            `checkpoint` has a `best`, else with the last ones. With `test`, `val` must be written, too, if as null.
    """

    train: DatasetConfig | None = None
    val: DatasetConfig | None = None
    test: DatasetConfig | None = None

    @classmethod
    def instead_of(cls, key: object, value: object) -> str:
        return instead_of_key("dataset", key, cls.model_fields)


def check_splits(datasets: DatasetsConfig) -> None:
    """Raises: `ConfigError` for a config of before, where `test` was what `val` is now."""
    if datasets.test is not None and "val" not in datasets.model_fields_set:
        raise ConfigError(
            "dataset.val",
            "missing, beside dataset.test. What is measured while training is `val`, which was `test` "
            "before: rename it. `test` is now measured once, after the last step; where nothing is to be measured "
            "before that, write val: null",
        )


class TaskData:
    """The data sets that a task has, by name, and this process's batches of them.

    `described` is the one that classes, palette and ignored label come from: the training set, or the validation set
    where there is no other. `bad_samples` counts those that cannot be read.
    """

    def __init__(self, sets: dict[str, ClassyDataset]) -> None:
        self.sets = sets
        self.described = next(iter(self.sets.values()))
        self._loaders: dict[Phase, Batches] = {}

    def order(
        self, batch_size: int, runtime: RuntimeConfig, *, seed: int, trains: bool, clips_in_a_batch: int = 1
    ) -> None:
        """Shares the batches among the processes. What does not train needs no training set of a batch.

        Raises: `ConfigError` for a training set of less than a batch.
        """
        process = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        num_train = len(self.sets.get("train", ())) if trains else batch_size
        self.train_batches = TrainBatches(num_train, batch_size, seed=seed, **process)
        self.eval_batches = {
            name: EvalBatches(len(part), runtime.eval_batch_size, together=clips_in_a_batch, **process)
            for name, part in self.sets.items()
            if name != "train"
        }
        self.bad_samples = BadSamples(self.sets)
        self.record_file = RECORD_FILE
        self._read: tuple[Phase, ...] = ("train", "val", "test") if trains else ("val", "test")

    def open(self, runtime: RuntimeConfig, device: torch.device, gives_up: Callable[[], bool]) -> None:
        """Makes the loaders, whose workers start with the first batch. `gives_up` says whether to wait no longer."""
        loading: dict[str, Any] = {**runtime.loading(device), "gives_up": gives_up}
        for phase in self._read:
            if phase in self.sets:
                order = self.train_batches if phase == "train" else self.eval_batches[phase]
                self._loaders[phase] = make_loader(self.sets[phase], order, **loading)

    def batches(self, progress: Progress, end: int, run_folder: Path | None) -> Iterator[Sample]:
        """The batches of a phase that are left; one of training ends when the run has done `end` steps."""
        if progress.phase == "train":
            before = progress.epoch * len(self.train_batches)
            self.train_batches.epoch = progress.epoch
            self.train_batches.start, self.train_batches.stop = progress.step - before, end - before
        loader = self._loaders[progress.phase]
        for batch in loader:
            if loader.bad:
                self.bad_samples.add(progress.phase, loader.bad, run_folder)
            yield batch

    def num_batches(self, phase: Phase) -> int:
        """How many batches an epoch, or a data set that is measured, has in this process."""
        return len(self.train_batches if phase == "train" else self.eval_batches[phase])

    def common_batches(self, phase: Phase) -> int:
        """How many of them every process has at least."""
        return len(self.train_batches) if phase == "train" else self.eval_batches[phase].common_batches

    def meaning_of_labels(self) -> dict[str, Any]:
        """The classes, their colours and the label that is ignored, for checkpoints."""
        return {
            "classes": list(self.described.classes),
            "palette": [list(color) for color in self.described.palette],
            "ignore_index": self.described.ignore_index,
        }

    def close(self) -> None:
        """Ends the processes that load."""
        for loader in self._loaders.values():
            loader.close()
