"""From a data set to batches. Their order depends on (seed, epoch) alone, and they can start anywhere at no cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, cycle
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.loading.bad_samples import BadSample, Failure, Key, Loaded, SampleSource
from classyseg.datasets.loading.workers import (
    LEAVE_SECONDS,
    POLL_SECONDS,
    PREFETCH,
    Rescue,
    Watch,
    WorkerError,
    check_limits,
    deaths,
    kill,
    killed_unless_they_leave,
    start_worker,
    warm_fork_server,
    without_sigchld_handler,
)
from classyseg.errors import ConfigError
from classyseg.rng import generator_for
from classyseg.stopping import WaitEnded
from classyseg.structures import Sample

PERMUTATION = -1
"""The third integer of the permutation's generator. No sample has this index, so no two generators are equal."""


class TrainOrder:
    """This process's share of the batches of an epoch: shuffled by (seed, epoch), without the short last one.

    `batch_size` is the whole job's. Process `rank` takes every `world_size`-th sample of a batch. Before iterating, set
    `epoch`, `start` (the first batch) and `stop` (the batch after the last; None: to the end). Samples in `left_out`
    are replaced by others of the epoch. `name` is the data set's, for messages.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        name: str = "train",
    ) -> None:
        if num_samples < batch_size:
            raise ConfigError("batch_size", f"found {batch_size}, but dataset.{name} has only {num_samples} samples")
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start = 0, 0
        self.stop: int | None = None
        self.left_out: frozenset[int] = frozenset()

    def __len__(self) -> int:
        """How many batches an epoch has, wherever it starts."""
        return self.num_samples // self.batch_size

    def batch(self, epoch: int, number: int) -> list[int]:
        """The samples of a batch of the whole job."""
        samples: list[int] = self._of_epoch(epoch)[number * self.batch_size : (number + 1) * self.batch_size].tolist()
        return samples

    def _of_epoch(self, epoch: int) -> Tensor:
        """All samples in the order of an epoch. Those left out are replaced by the last ones of the epoch."""
        order = torch.randperm(self.num_samples, generator=generator_for(self.seed, epoch, PERMUTATION))
        if not self.left_out:
            return order
        others = cycle([index for index in reversed(order.tolist()) if index not in self.left_out])
        return torch.tensor([next(others) if index in self.left_out else index for index in order.tolist()])

    def __iter__(self) -> Iterator[list[Key]]:
        order = self._of_epoch(self.epoch)
        for batch in range(self.start, len(self) if self.stop is None else self.stop):
            whole = order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
            yield [(self.epoch, index) for index in whole[self.rank :: self.world_size]]


class StepOrder:
    """The batches of a data set that is read beside the training set, by the step of the run: one for each step.

    Its epochs are those of `epochs`, an order of that data set; when all of its batches are through, the next epoch
    begins. So a step's batch is a function of the step alone. Before iterating, set `start` (the first step) and `stop`
    (the step after the last).
    """

    def __init__(self, epochs: TrainOrder) -> None:
        self.epochs = epochs
        self.start, self.stop = 0, len(epochs)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        step, order = self.start, self.epochs
        while step < self.stop:
            order.epoch, order.start = divmod(step, len(order))
            order.stop = min(len(order), order.start + self.stop - step)
            yield from order
            step += order.stop - order.start


class EvalOrder:
    """Every sample exactly once over all processes, in batches of up to `batch_size`.

    `group_size` consecutive samples (a group, such as the clips of a video) stay in one batch. The shares of two
    processes may differ by one group.

    Raises: `ValueError` where the other numbers are no multiples of `group_size`.
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1, group_size: int = 1
    ) -> None:
        if num_samples % group_size or batch_size % group_size:
            raise ValueError(
                f"found {num_samples} samples and batches of {batch_size}; accepted: multiples of {group_size}"
            )
        self.num_groups, self.groups_per_batch, self.group_size = (
            num_samples // group_size,
            batch_size // group_size,
            group_size,
        )
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(range(self.rank, self.num_groups, self.world_size)) // self.groups_per_batch)

    @property
    def num_samples(self) -> int:
        """How many samples this process has."""
        return len(range(self.rank, self.num_groups, self.world_size)) * self.group_size

    @property
    def common_batches(self) -> int:
        """How many batches every process has at least: so often all processes can meet between batches."""
        return -(-(self.num_groups // self.world_size) // self.groups_per_batch)

    def __iter__(self) -> Iterator[list[Key]]:
        mine = range(self.rank, self.num_groups, self.world_size)
        for first in range(0, len(mine), self.groups_per_batch):
            groups = mine[first : first + self.groups_per_batch]
            yield [(0, group * self.group_size + i) for group in groups for i in range(self.group_size)]


def collate(samples: Sequence[Loaded | Failure]) -> Loaded | Failure:
    """A batch, or the first failure in it."""
    loaded: list[Loaded] = []
    for sample in samples:
        if isinstance(sample, Failure):
            return sample
        loaded.append(sample)
    whole = [item.sample for item in loaded]
    parts = [sample.image for sample in whole], [sample.target for sample in whole]
    for kind, tensors in zip(("images", "masks"), parts, strict=True):
        if len({tensor.shape for tensor in tensors}) > 1:
            shapes = {tuple(tensor.shape): sample.name for tensor, sample in zip(tensors, whole, strict=True)}
            found = " and ".join(f"{shape} ({name})" for shape, name in list(shapes.items())[:2])
            error = ConfigError(
                f"a batch of {kind} of different shapes: {found}; add a transform that gives one size, such as "
                "random_scale_crop or resize, or evaluate with runtime.eval_batch_size 1"
            )
            return Failure(error)
    images, targets = map(torch.stack, parts)
    if get_worker_info() is not None:
        try:  # here: the thread that sends it would only print an error, and the main process would wait for ever
            images.share_memory_()
            targets.share_memory_()
        except (RuntimeError, OSError) as error:
            lacking = f"a batch does not fit into shared memory ({error}); make room there, take fewer workers"
            return Failure(ConfigError("runtime.workers", f"{lacking} or a smaller batch, or set runtime.workers: 0"))
    batch = Sample(images, targets, tuple(str(s.name) for s in whole))
    return Loaded(batch, tuple(chain.from_iterable(item.bad for item in loaded)))


class BatchLoader:
    """A loader of batches. It raises errors of wrong samples in this process, not in a worker.

    A wrong file is a `DataError`, another wrong sample a `ConfigError`, a worker that hangs for `worker_timeout`
    seconds a `WorkerError`. While a batch does not come, `gives_up` is asked whether to stop waiting: then `WaitEnded`
    is raised. `close` ends the workers.

    Without a `loader`, batches are made in this process.

    `bad` are the samples that were replaced in the last batch.
    """

    def __init__(
        self,
        loader: DataLoader[Loaded | Failure] | None,
        source: SampleSource,
        order: TrainOrder | StepOrder | EvalOrder,
        *,
        pin_memory: bool = False,
        worker_timeout: float | None = None,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._loader, self._source, self._order = loader, source, order
        self._pin_memory, self._worker_timeout, self._gives_up = pin_memory, worker_timeout, gives_up
        self._hangs = False
        self.bad: tuple[BadSample, ...] = ()

    def __iter__(self) -> Iterator[Sample]:
        for batch in self._made_here() if self._loader is None else self._from_workers(self._loader):
            if isinstance(batch, Failure):
                raise batch.error
            self.bad = batch.bad
            yield batch.sample

    def _made_here(self) -> Iterator[Loaded | Failure]:
        """The batches of this process. torch's loader would do the same, and takes 0.1 ms for it."""
        for keys in self._order:
            batch = collate([self._source[key] for key in keys])
            yield batch.pin_memory() if self._pin_memory and isinstance(batch, Loaded) else batch

    def _from_workers(self, loader: DataLoader[Loaded | Failure]) -> Iterator[Loaded | Failure]:
        if loader._iterator is None:
            check_limits(self._source, next(iter(self._order), []), loader.num_workers)
        rescue = None
        try:
            if loader._iterator is not None:  # it takes what was on its way, and may wait for that as for any batch
                rescue = self._rescue()
            with without_sigchld_handler(), rescue or nullcontext():
                batches = iter(loader)
            rescue = rescue or self._rescue()
            while (batch := self._next(batches, rescue)) is not None:
                yield batch
        except (RuntimeError, OSError, EOFError) as error:  # errors of torch or of a pipe name a process id at most
            if rescue is not None and rescue.reason is not None:
                self._hangs = True
                raise rescue.reason from error
            dead = list(deaths(self._source, self._workers()))
            if dead:
                raise WorkerError("; ".join(dead)) from error
            raise
        finally:
            if rescue is not None:
                rescue.end()

    def _rescue(self) -> Rescue:
        return Rescue(self._workers(), Watch(self._source, self._worker_timeout), self._gives_up)

    def _next(self, batches: Iterator[Loaded | Failure], rescue: Rescue) -> Loaded | Failure | None:
        watch = Watch(self._source, self._worker_timeout)
        while True:
            try:
                with rescue:
                    return next(batches, None)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):  # after POLL_SECONDS; one may ask again
                    raise
            self._hangs = True
            if self._gives_up():
                raise WaitEnded
            watch.look(self._workers())
            self._hangs = False

    def _workers(self) -> Sequence[Any]:
        return () if self._loader is None else getattr(self._loader._iterator, "_workers", ())

    def close(self) -> None:
        if self._loader is None:
            return
        loading = self._loader._iterator  # torch offers no public way to end persistent workers
        if loading is None:
            return
        workers: Any = self._workers()
        if self._hangs or not all(worker.is_alive() for worker in workers):
            kill(workers)
            # torch tells workers to leave by an event, whose lock is shared with them. One that was killed while it had
            # the lock keeps it, and this process would wait for it for ever.
            loading._workers_done_event = threading.Event()  # type: ignore[attr-defined]
        with killed_unless_they_leave(workers, LEAVE_SECONDS):
            loading._shutdown_workers()  # type: ignore[attr-defined]
        self._loader._iterator = None
        self._hangs = False


def make_loader(
    dataset: ClassyDataset,
    batches: TrainOrder | StepOrder | EvalOrder,
    *,
    workers: int,
    pin_memory: bool = False,
    worker_timeout: float | None = None,
    gives_up: Callable[[], bool] = lambda: False,
) -> BatchLoader:
    """Batches of `dataset` in the order of `batches`, made by `workers` processes (0: in this one)."""
    source = SampleSource(dataset, workers)
    if not workers:
        return BatchLoader(None, source, batches, pin_memory=pin_memory)
    warm_fork_server()
    loader = DataLoader(
        source,
        batch_sampler=batches,  # type: ignore[arg-type]  # torch asks for indices; ours carry the epoch
        num_workers=workers,
        prefetch_factor=PREFETCH,
        timeout=POLL_SECONDS,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
        persistent_workers=True,
        generator=torch.Generator(),  # without it, each iteration would draw from the global generator
    )
    return BatchLoader(loader, source, batches, worker_timeout=worker_timeout, gives_up=gives_up)
