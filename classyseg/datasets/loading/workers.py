"""Processes that load data: what they need of the machine, checked first, and what one was at when it died."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from classyseg.config import ConfigError
from classyseg.datasets.loading.bad_samples import NOTHING, ByKey, Failure, Key
from classyseg.launcher import local_world_size
from classyseg.structures import Sample

GRACE_SECONDS = 20
PREFETCH = 2
"""How many batches each worker makes ahead; torch's own default."""
SHARED_MEMORY = Path("/dev/shm")
FILES_OF_A_BATCH = 2
FILES_OF_A_WORKER = 8
SPARE_FILES = 64
DEATH_SECONDS = 2
POLL_SECONDS = 1
"""How often somebody who waits for a batch looks whether he still should."""
LEAVE_SECONDS = 4
"""How long workers may take to leave when the run ends; one that hangs is killed then."""


class WorkerError(ConfigError):
    """A process that loads data died, or hangs; the message names the sample that it was at."""

    exit_code = 1


TRANSFORMS_OF_WORKERS = "torchvision.transforms.v2"
"""What transforms import when they are used: here once, for all workers."""


def warm_fork_server() -> None:
    """Called before workers are made: where a fork server starts them, as in Python 3.14, it imports torch for all."""
    if multiprocessing.get_start_method() == "forkserver":
        multiprocessing.set_forkserver_preload(["__main__", "classyseg.datasets", TRANSFORMS_OF_WORKERS])
    else:
        importlib.import_module(TRANSFORMS_OF_WORKERS)


def start_worker(worker: int) -> None:
    # A signal to the whole process group must not take the workers from under a main process that is about to save:
    # they leave when it says so, and by themselves only some time after SIGTERM.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_SECONDS))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # torch's own watch asks for the parent's process id: a fork server, from which Python 3.14 starts workers, lives on
    # when the main process is killed, and they with it.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def check_limits(source: ByKey, batch: Sequence[Key], workers: int) -> None:
    """Whether the machine can hold the batches that `workers` make ahead, judged by one sample of the first `batch`.

    Raises: `ConfigError` for too little shared memory, or too few open files.
    """
    if not batch:
        return
    ahead = workers * PREFETCH
    files_needed = ahead * FILES_OF_A_BATCH + workers * FILES_OF_A_WORKER + SPARE_FILES
    files_allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= files_allowed < files_needed + _open_files():
        raise ConfigError(
            "runtime.workers",
            f"{workers} workers need up to {files_needed} files open beside the {_open_files()} that "
            f"are, but this process may open {files_allowed}; raise the limit (ulimit -n 4096), or take fewer workers",
        )
    found = source[batch[0]]
    if isinstance(found, Failure):  # of a bad sample, which the loader meets as it is told to
        return
    processes = local_world_size()
    needed = processes * ahead * len(batch) * _bytes(found.sample)
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    if free < needed:
        raise ConfigError(
            "runtime.workers",
            f"{workers} workers of {processes} processes keep up to {needed / 1e6:.0f} MB of batches "
            f"in shared memory, but {SHARED_MEMORY} has {free / 1e6:.0f} MB free; make it larger (docker run "
            "--shm-size), take fewer workers or a smaller batch, or set runtime.workers: 0",
        )


def _bytes(sample: Sample) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (sample.image, sample.target))


def _open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.is_dir() else 0


@contextmanager
def deaths_are_found_in_turn() -> Iterator[None]:
    """Keeps torch from handling SIGCHLD, by which a worker's death would be an error wherever the main process is.

    In the middle of a save, say. Whoever waits for a batch finds it out within seconds, as torch looks after workers.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _sample(source: ByKey, epoch: int, index: int) -> str:
    return f"loading {source.dataset.described(index)}, epoch {epoch}"


class Watch:
    """Whether workers move on while somebody waits for a batch: each may take `limit` seconds for a sample."""

    def __init__(self, source: ByKey, limit: float | None) -> None:
        self._source, self._limit = source, limit
        self._at = source.at.clone()
        self._seconds = [0.0] * len(self._at)
        self._last = time.monotonic()

    def look(self, workers: Sequence[Any]) -> None:
        """Raises: `WorkerError` naming the sample at which a worker has been for too long."""
        now, at = time.monotonic(), self._source.at.clone()
        # Of a process that was stopped and continued, not all the time counts.
        passed, self._last = min(now - self._last, 2.0 * POLL_SECONDS), now
        for i in range(len(at)):
            self._seconds[i] = self._seconds[i] + passed if torch.equal(at[i], self._at[i]) else 0.0
        self._at = at
        if self._limit is None:
            return
        late = [i for i, seconds in enumerate(self._seconds) if seconds > self._limit]
        busy = [i for i in late if at[i, 1] != NOTHING]
        if busy:
            names = "; ".join(
                f"data worker {i} (process {workers[i].pid}) has been {_sample(self._source, *at[i].tolist())}"
                for i in busy[:4]
            )
            raise WorkerError(
                f"{names}, for more than runtime.worker_timeout, {self._limit:g} seconds; a disk that does not answer, "
                "or a transform that hangs? Set runtime.worker_timeout higher, or to null, where a sample takes so long"
            )
        if len(late) == len(at):
            raise WorkerError(
                f"the data workers have sent no batch and begun no sample for more than runtime.worker_timeout, "
                f"{self._limit:g} seconds; runtime.workers: 0 shows where it hangs"
            )


@contextmanager
def killed_unless_they_leave(workers: Sequence[Any], seconds: float) -> Iterator[None]:
    """Kills, `seconds` after the block has begun, those of `workers` that are still there: what hangs heeds nobody."""

    def kill() -> None:
        for worker in workers:
            if worker.is_alive():
                worker.kill()

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def deaths(source: ByKey, workers: Sequence[Any]) -> Iterator[str]:
    """For each worker that was killed or left: how, and at which sample."""
    ending = wait([worker.sentinel for worker in workers], DEATH_SECONDS) if workers else []  # its pipes break first
    for i, worker in enumerate(workers):
        if worker.sentinel in ending:
            worker.join(DEATH_SECONDS)
        if worker.exitcode in (None, 0):
            continue
        epoch, index = source.at[i].tolist()
        at = "between two samples" if index == NOTHING else _sample(source, epoch, index)
        how = f"ended with code {worker.exitcode}"
        if worker.exitcode < 0:
            how = f"was killed by {signal.Signals(-worker.exitcode).name}"
        hint = "; the kernel does so when memory runs out: fewer runtime.workers need less"
        yield f"data worker {i} (process {worker.pid}) {how} while {at}" + hint * (worker.exitcode == -signal.SIGKILL)
