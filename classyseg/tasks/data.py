"""The data of a task: its sets, the order of their batches, and what loads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch

from classyseg import distributed
from classyseg.config import ConfigRecord
from classyseg.datasets import (
    BadSamples,
    BatchLoader,
    ClassyDataset,
    EvalOrder,
    TrainOrder,
    make_loader,
)
from classyseg.datasets.loading.bad_samples import RECORD_FILE
from classyseg.engine.runtime import RuntimeConfig
from classyseg.errors import ConfigError
from classyseg.foreign import instead_of_key
from classyseg.registry import DatasetConfig
from classyseg.structures import Phase, Progress, Sample


class DatasetsConfig(ConfigRecord):
    """The data sets of a task. Without `val` and `test`, only the training loss is measured.

    A task that trains needs `train`.

    Args:
        train: A data set; required unless `num_epochs` is 0. Classes, palette and ignored label come from here, or from
            `val` where there is no `train`.
        val: A data set with the same classes, measured while training. The best checkpoint is chosen by it.
        test: Another one, measured once, after the last step: with the weights of the best checkpoint if the hook
            `checkpoint` has a `best`, else with the last weights. A config with `test` must have `val`, too; it may be
            null.
    """

    without_labels: ClassVar[frozenset[str]] = frozenset()
    """The data sets of a subclass whose labels nobody reads: they may have other classes, or none."""

    train: DatasetConfig | None = None
    val: DatasetConfig | None = None
    test: DatasetConfig | None = None

    @classmethod
    def instead_of(cls, key: object, value: object) -> str:
        return instead_of_key("dataset", key, cls.model_fields)


def check_splits(datasets: DatasetsConfig) -> None:
    """Raises: `ConfigError` for a config of an earlier version, where `test` meant what `val` means now."""
    if datasets.test is not None and "val" not in datasets.model_fields_set:
        raise ConfigError(
            "dataset.val",
            "missing where dataset.test is given. What is measured while training is called `val` now "
            "and was `test` before: rename it. `test` is measured once, after the last step. To measure nothing "
            "before that, write val: null",
        )


class TaskData:
    """The data sets that a task has, by name, and this process's batches of them.

    Classes, palette and ignored label come from the `reference_set`: the training set, or the validation set where
    there is no other. `bad_samples` counts the samples that cannot be read.
    """

    def __init__(self, sets: dict[str, ClassyDataset]) -> None:
        self.sets = sets
        self.reference_set = next(iter(self.sets.values()))
        self._loaders: dict[Phase, BatchLoader] = {}

    def order(self, batch_size: int, runtime: RuntimeConfig, *, seed: int, trains: bool, group_size: int = 1) -> None:
        """Shares the batches among the processes. A task that does not train needs no training set of a batch or more.

        Raises: `ConfigError` for a training set of less than a batch.
        """
        process: dict[str, Any] = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        num_train = len(self.sets.get("train", ())) if trains else batch_size
        self.train_order = TrainOrder(num_train, batch_size, seed=seed, **process)
        self.eval_orders = {
            name: EvalOrder(len(part), runtime.eval_batch_size, group_size=group_size, **process)
            for name, part in self.sets.items()
            if name in ("val", "test")
        }
        self.bad_samples = BadSamples(
            {name: part for name, part in self.sets.items() if name in ("train", "val", "test")}
        )
        self.record_file = RECORD_FILE
        self._read: tuple[Phase, ...] = ("train", "val", "test") if trains else ("val", "test")

    def open(self, runtime: RuntimeConfig, device: torch.device, gives_up: Callable[[], bool]) -> None:
        """Makes the loaders, whose workers start with the first batch. `gives_up` says whether to wait no longer."""
        loading: dict[str, Any] = {**runtime.loading(device), "gives_up": gives_up}
        for phase in self._read:
            if phase in self.sets:
                order = self.train_order if phase == "train" else self.eval_orders[phase]
                self._loaders[phase] = make_loader(self.sets[phase], order, **loading)

    def batches(self, progress: Progress, end: int, run_folder: Path | None) -> Iterator[Sample]:
        """The batches that are left of the current phase. A training phase ends when the run has done `end` steps."""
        if progress.phase == "train":
            before = progress.epoch * len(self.train_order)
            self.train_order.epoch = progress.epoch
            self.train_order.start, self.train_order.stop = progress.step - before, end - before
        loader = self._loaders[progress.phase]
        for batch in loader:
            if loader.bad:
                self.bad_samples.add(progress.phase, loader.bad, run_folder)
            yield batch

    def coming_batches(self, step: int, count: int) -> Iterator[tuple[int, Sample]]:
        """The next `count` batches of training after `step` steps, with the step that learns from each.

        They are loaded in addition to a phase, between two of them; bad samples are not counted.
        """
        length = len(self.train_order)
        while count > 0:
            epoch, start = divmod(step, length)
            stop = min(length, start + count)
            self.train_order.epoch, self.train_order.start, self.train_order.stop = epoch, start, stop
            yield from zip(range(step, step + stop - start), self._loaders["train"], strict=True)
            step, count = step + stop - start, count - (stop - start)

    def num_batches(self, phase: Phase) -> int:
        """How many batches an epoch of training, or a measured data set, has in this process."""
        return len(self.train_order if phase == "train" else self.eval_orders[phase])

    def num_samples(self, phase: Phase) -> int:
        """How many samples of a measured data set this process has."""
        return self.eval_orders[phase].num_samples

    def common_batches(self, phase: Phase) -> int:
        """How many of them every process has at least."""
        return len(self.train_order) if phase == "train" else self.eval_orders[phase].common_batches

    def described(self) -> dict[str, dict[str, Any]]:
        """By data set: how many samples it has, their size, channels and bits; None where only the files tell."""
        return {
            name: {
                "samples": len(part),
                "size": None if part.facts.size is None else list(part.facts.size),
                "channels": part.facts.channels,
                "bits": part.facts.bits,
            }
            for name, part in self.sets.items()
        }

    def meaning_of_labels(self) -> dict[str, Any]:
        """The classes, their colours and the label that is ignored, for checkpoints."""
        return {
            "classes": list(self.reference_set.classes),
            "palette": [list(color) for color in self.reference_set.palette],
            "ignore_index": self.reference_set.ignore_index,
            "multi_label": self.reference_set.multi_label,
        }

    def close(self) -> None:
        """Ends the processes that load."""
        for loader in self._loaders.values():
            loader.close()
