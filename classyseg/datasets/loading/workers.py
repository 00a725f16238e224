"""Processes that load data: what they need of the machine, and which sample one was at when it died."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from classyseg.datasets.loading.bad_samples import NOTHING, Failure, Key, SampleSource
from classyseg.errors import ConfigError
from classyseg.launcher import local_world_size
from classyseg.stopping import WaitEnded
from classyseg.structures import Sample

GRACE_SECONDS = 20
"""How long a worker lives on after SIGTERM: the main process may save a checkpoint until then."""
PREFETCH = 2
"""How many batches each worker makes ahead; torch's own default."""
SHARED_MEMORY = Path("/dev/shm")
FILES_OF_A_BATCH = 2
"""Images and targets each travel in a file in shared memory."""
FILES_OF_A_WORKER = 8
"""A worker's queues, pipes and sentinel, rounded up."""
SPARE_FILES = 64
"""For what else the process opens: the log, a checkpoint, sockets."""
DEATH_SECONDS = 2
"""How long a broken pipe may come before the exit code of the worker that died."""
ANSWER_SECONDS = 3
"""How long a worker may take for a batch's memory before a process that waits for it looks whether it still should."""
POLL_SECONDS = 1
"""How often a process that waits for a batch looks whether it still should."""
LEAVE_SECONDS = 4
"""How long workers may take to end with the run. One that hangs longer is killed."""


class WorkerError(ConfigError):
    """A process that loads data died, or hangs; the message names the sample that it was at."""

    exit_code = 1


TRANSFORMS_OF_WORKERS = "torchvision.transforms.v2"
"""Transforms import this module at their first use. It is imported once before the workers start, for all of them."""


def warm_fork_server() -> None:
    """Imports once what all workers need, before they start; a fork server (Python 3.14's default) does it itself."""
    if multiprocessing.get_start_method() == "forkserver":
        multiprocessing.set_forkserver_preload(["__main__", "classyseg.datasets", TRANSFORMS_OF_WORKERS])
    else:
        importlib.import_module(TRANSFORMS_OF_WORKERS)


def start_worker(worker: int) -> None:
    # A signal to the whole process group must not end the workers while the main process still saves. They end when it
    # tells them, and by themselves only GRACE_SECONDS after SIGTERM.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_SECONDS))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # torch's own watch asks for the parent's process id. With Python 3.14 that is the fork server, which lives on when
    # the main process is killed; so would the workers.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def check_limits(source: SampleSource, batch: Sequence[Key], workers: int) -> None:
    """Checks that the machine can hold the batches that `workers` make ahead, by one sample of the first `batch`.

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
            f"{workers} workers need up to {files_needed} open files in addition to the "
            f"{_open_files()} that are open, but this process may open {files_allowed}; raise the limit (ulimit "
            "-n 4096), or take fewer workers",
        )
    found = source[batch[0]]
    if isinstance(found, Failure):  # a bad sample: the loader handles it when its turn comes
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
def without_sigchld_handler() -> Iterator[None]:
    """Undoes torch's handler of SIGCHLD, which raises a worker's death as an error anywhere in the main process.

    That could be in the middle of a save. Without it, a process that waits for a batch finds out within seconds, as
    torch checks its workers.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _loading_text(source: SampleSource, epoch: int, index: int) -> str:
    return f"loading {source.dataset.described(index)}, epoch {epoch}"


class Watch:
    """Whether workers move on while somebody waits for a batch: each may take `limit` seconds for a sample."""

    def __init__(self, source: SampleSource, limit: float | None) -> None:
        self._source, self._limit = source, limit
        self._at = source.at.clone()
        self._seconds = [0.0] * len(self._at)
        self._last = time.monotonic()

    def look(self, workers: Sequence[Any]) -> None:
        """Raises: `WorkerError` naming the sample at which a worker has been for too long."""
        now, at = time.monotonic(), self._source.at.clone()
        # A process may have been stopped and continued (Ctrl-Z): that time does not count.
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
                f"data worker {i} (process {workers[i].pid}) has been {_loading_text(self._source, *at[i].tolist())}"
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


class Rescue:
    """Frees a process that waits within torch for a worker that answers no more: within the block, and by its death.

    torch asks a worker for the memory of each batch that it sent, and has no limit for the answer. A worker that hangs
    in C code which holds the interpreter answers never, and no signal ends that wait.

    Once `gives_up` says so, or `watch` finds a worker late, the workers are killed, and `reason` is what to raise then.
    """

    def __init__(self, workers: Sequence[Any], watch: Watch, gives_up: Callable[[], bool]) -> None:
        self._workers, self._watch, self._gives_up = workers, watch, gives_up
        self._since: float | None = None
        self._ended = threading.Event()
        self.reason: Exception | None = None
        threading.Thread(target=self._run, daemon=True, name="classyseg rescue").start()

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._since = None

    def end(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            since = self._since
            if since is None or time.monotonic() - since < ANSWER_SECONDS:  # torch itself waits for POLL_SECONDS
                continue
            try:
                if self._gives_up():
                    raise WaitEnded
                self._watch.look(self._workers)
            except (WaitEnded, WorkerError) as reason:
                self.reason = reason
                kill(self._workers)
                return


def kill(workers: Sequence[Any]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()


@contextmanager
def killed_unless_they_leave(workers: Sequence[Any], seconds: float) -> Iterator[None]:
    """Kills the workers that still live `seconds` after the block has begun: they may hang and heed no signal."""
    timer = threading.Timer(seconds, kill, [workers])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def deaths(source: SampleSource, workers: Sequence[Any]) -> Iterator[str]:
    """For each worker that was killed or left: how, and at which sample."""
    # A dying worker's pipes break before its exit code is known.
    ending = wait([worker.sentinel for worker in workers], DEATH_SECONDS) if workers else []
    for i, worker in enumerate(workers):
        if worker.sentinel in ending:
            worker.join(DEATH_SECONDS)
        if worker.exitcode in (None, 0):
            continue
        epoch, index = source.at[i].tolist()
        at = "between two samples" if index == NOTHING else _loading_text(source, epoch, index)
        how = f"ended with code {worker.exitcode}"
        if worker.exitcode < 0:
            how = f"was killed by {signal.Signals(-worker.exitcode).name}"
        hint = "; the kernel does so when memory runs out: fewer runtime.workers need less"
        yield f"data worker {i} (process {worker.pid}) {how} while {at}" + hint * (worker.exitcode == -signal.SIGKILL)
