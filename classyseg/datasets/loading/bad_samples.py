"""What happens to a sample that is wrong: an error, or another one in its place, counted and limited."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, get_worker_info

from classyseg import distributed
from classyseg.datasets.classy_dataset import MAX_LISTED, ClassyDataset
from classyseg.errors import ConfigError, DataError, Problem
from classyseg.io import append_json_line, read_json_lines
from classyseg.records import RecordFile
from classyseg.run_folder import BAD_SAMPLES
from classyseg.structures import Sample

RECORD_FILE = RecordFile(BAD_SAMPLES, {"data_set": str, "index": int}, by_step=False)
"""A sample stays bad: its record stays when a run goes back to an older checkpoint."""
Key = tuple[int, int]
"""The epoch and the index of a sample: all that its content depends on."""

NOTHING = -1
"""Stands for the sample of a worker that is between two samples."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A wrong sample. A worker sends it as a value: an exception would arrive wrapped in the worker's traceback."""

    error: ConfigError
    """The error to raise for it where it arrives: `DataError` for a wrong file, else it is the config's fault."""


@dataclass(frozen=True)
class BadSample:
    """A sample that is wrong, and its problem. Another one was taken in its place."""

    index: int
    problem: str


@dataclass(frozen=True)
class Loaded:
    """A sample or a batch, and the bad samples that were replaced in it."""

    sample: Sample
    bad: tuple[BadSample, ...] = ()

    def pin_memory(self) -> Loaded:
        return Loaded(self.sample.pin_memory(), self.bad)


class SampleSource(Dataset[Loaded | Failure]):
    """The samples of a data set by (epoch, index), as workers load them. `at` holds the sample of each worker.

    A bad sample is replaced by another one, drawn until one is good; the draw depends on `(seed, epoch, index)` alone.
    With the policy `skip` all labels of the other one are ignored: so the numbers of batches and steps stay the same in
    all processes.
    """

    def __init__(self, dataset: ClassyDataset, workers: int = 0) -> None:
        self.dataset = dataset
        self.at = torch.full((max(1, workers), 2), NOTHING).share_memory_()
        self._own: npt.NDArray[np.int64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_own": None}

    def _own_row(self) -> npt.NDArray[np.int64]:
        """This worker's row of `at`; numpy writes to it in a fraction of torch's time."""
        if self._own is None:
            info = get_worker_info()
            self._own = self.at[0 if info is None else info.id].numpy()
        return self._own

    def __getitem__(self, key: Key) -> Loaded | Failure:
        epoch, index = key
        at = self._own_row()
        at[0], at[1] = epoch, index
        try:
            return self._load(epoch, index)
        except ConfigError as error:
            return Failure(_plain(error))
        except Exception as error:  # an error of a data set or a transform, which does not know the sample
            error.add_note(f"while loading {self.dataset.described(index)} in epoch {epoch}")
            raise
        finally:
            at[0] = at[1] = NOTHING

    def _load(self, epoch: int, index: int) -> Loaded:
        try:
            return Loaded(self.dataset.sample(index, epoch))
        except DataError as error:
            if self.dataset.on_bad_sample == "error":
                raise
            wrong = error
        bad = BadSample(index, str(wrong))
        sample = self.dataset.stand_in(index, epoch, lambda i: self.dataset.sample(i, epoch), wrong)
        if self.dataset.on_bad_sample == "skip":
            sample = sample.replace(target=torch.full_like(sample.target, self.dataset.ignore_index))
        return Loaded(sample, (bad,))


def _plain(error: ConfigError) -> ConfigError:
    """The same text as an error of our own: that of a plugin may not pass a pipe."""
    kind = DataError if isinstance(error, DataError) else ConfigError
    own_text = type(error).__str__ is not ConfigError.__str__  # it may tell more than the problems do
    plain = kind(str(error)) if own_text else kind.of(error.problems)
    for note in getattr(error, "__notes__", ()):
        plain.add_note(note)
    return plain


class BadSamples:
    """Counts, lists and limits the bad samples of a run, phase by phase. `before` counts those before a resume."""

    def __init__(self, data_sets: Mapping[str, ClassyDataset]) -> None:
        self.data_sets = data_sets
        self.before = 0
        self._own = 0
        self._problems: list[str] = []
        for name, data_set in data_sets.items():
            if name in ("val", "test") and data_set.on_bad_sample == "replace":
                raise ConfigError(
                    f"dataset.{name}.on_bad_sample",
                    "found 'replace', which counts other images twice; accepted: error, skip",
                )

    def begin_phase(self, *, anew: bool) -> None:
        """Counts from zero, or without `anew` from the count that a resumed phase had."""
        self._own, self._problems = 0, []
        if anew:
            self.before = 0

    def add(self, data_set: str, bad: Sequence[BadSample], run_folder: Path | None) -> None:
        """Counts `bad`, and lists those in the run's folder that are not there yet.

        Raises: `DataError` when this process alone has found too many.
        """
        self._own += len(bad)
        self._problems += [sample.problem for sample in bad][: MAX_LISTED - len(self._problems)]
        known: set[tuple[str, int]] = set()
        if run_folder is not None:
            known = {(record["data_set"], record["index"]) for record in read_json_lines(run_folder / BAD_SAMPLES)}
        for sample in bad:
            if (data_set, sample.index) in known:
                continue
            log.warning("bad sample %d of dataset.%s: %s", sample.index, data_set, sample.problem)
            if run_folder is not None:
                record = {"data_set": data_set, "index": sample.index, "problem": sample.problem}
                try:
                    append_json_line(run_folder / BAD_SAMPLES, record)
                except OSError as error:  # it is in the log and in the count
                    log.warning("%s: cannot be written (%s)", run_folder / BAD_SAMPLES, error.strerror)
        self._check(data_set, self.before + self._own)

    def total(self) -> int:
        """How many the whole job met in this phase so far. Every process calls it."""
        return self.before + int(distributed.sum_over_processes(torch.tensor(self._own)))

    def end_phase(self, data_set: str) -> dict[str, int]:
        """What the record of the phase tells; nothing if no data set tolerates bad samples. Every process calls it.

        Raises: `DataError` when all processes together have found too many.
        """
        if all(dataset.on_bad_sample == "error" for dataset in self.data_sets.values()):
            return {}
        total = self.total()
        self.before = self._own = 0
        self._check(data_set, total)
        return {"bad_samples": total}

    def _check(self, data_set: str, total: int) -> None:
        dataset = self.data_sets[data_set]
        if total > dataset.max_bad_samples * len(dataset):
            told = f"{total} of {len(dataset)} samples are bad, more than max_bad_samples, {dataset.max_bad_samples:g}"
            first = Problem(f"{told} of them, allows", ("dataset", data_set))
            raise DataError.of([first, *map(Problem, self._problems)])
