"""Work on a CPU, shared out to threads that compute alone.

torch splits each of its operations among its threads, and waits for the slowest at the end of each. A loss in bands has
thousands of small operations. Where a core is busy with something else, they would all wait for the thread on that
core. Here a thread takes a whole band, and then the next one that is left.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""How many results of each thread may wait to be taken. It bounds the memory where one thread is late."""
WORTH = 1 << 18
"""How many numbers there must be, so that sharing them out takes less time than it saves."""


def num_threads(device: torch.device, numbers: int) -> int:
    """How many threads share a loss of so many full-size logits; 1 where this thread does all."""
    if device.type != "cpu" or numbers < WORTH or torch.compiler.is_compiling():
        return 1
    return torch.get_num_threads()


def share_out(
    items: Sequence[Item], work: Callable[[Item], Result], take: Callable[[Item, Result], object], threads: int
) -> None:
    """Calls `take(item, work(item))` for all items: `work` in any thread, `take` one at a time and in their order.

    So sums that `take` adds up have the same bits with any number of threads, up to one for each item. Neither makes
    gradients. `threads` is what `num_threads` gives.
    """
    num_workers = min(threads, len(items))
    if num_workers < 2:
        for item in items:
            take(item, work(item))
        return
    _run_job(_Job(items, work, take, ahead=AHEAD * num_workers), threads, num_workers)


def on_one_thread(work: Callable[[], Result], threads: int) -> Result:
    """What `work` gives where torch does not split its sums: the same bits with any number of threads.

    For the thread that called `share_out`, never within `work` or `take`. `threads` is what `num_threads` gives.
    """
    if threads < 2:
        return work()
    results: list[Result] = []
    job = _Job((None,), lambda _: work(), lambda _, result: results.append(result), ahead=1)
    _run_job(job, threads, 1, own_threads=1)
    return results[0]


def _run_job(job: _Job[Item, Result], threads: int, num_workers: int, own_threads: int | None = None) -> None:
    """Runs a job in threads of the pool. Each has `own_threads` of torch's; None: its share of `threads`."""
    inference = torch.is_inference_mode_enabled()
    own_threads = own_threads or threads // num_workers
    running = [_pool(threads).submit(_run, job, own_threads, inference) for _ in range(num_workers)]
    try:
        changed = [future.result() for future in running]
    finally:
        job.stop()  # an error of one thread, or a signal to this one, ends the others
    if any(changed):
        torch.set_num_threads(threads)  # new threads ask for it; what this thread has did not change


class _Job(Generic[Item, Result]):
    """Hands out items, and takes their results in order."""

    def __init__(
        self,
        items: Sequence[Item],
        work: Callable[[Item], Result],
        take: Callable[[Item, Result], object],
        *,
        ahead: int,
    ) -> None:
        self._items, self._work, self._take, self._ahead = items, work, take, ahead
        self._changed = threading.Condition()
        self._next = self._taken = 0
        self._done: dict[int, Result] = {}
        self._is_taking = self._is_stopped = False

    def stop(self) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def run(self) -> None:
        """Works until nothing is left, in one of the threads."""
        try:
            while (number := self._begun()) is not None:
                self._finish(number, self._work(self._items[number]))
        except BaseException:
            self.stop()
            raise

    def _begun(self) -> int | None:
        """The number of the next item; None if there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or self._next - self._taken < self._ahead)
            if self._is_stopped or self._next == len(self._items):
                return None
            self._next += 1
            return self._next - 1

    def _finish(self, number: int, result: Result) -> None:
        """Keeps a result. Takes all whose turn it is, unless another thread is at it: that one will take them."""
        with self._changed:
            self._done[number] = result
            if self._is_taking:
                return
            self._is_taking = True
        while True:
            with self._changed:
                if self._taken not in self._done:
                    self._is_taking = False
                    return
                current, ready = self._taken, self._done.pop(self._taken)
            self._take(self._items[current], ready)
            del ready
            with self._changed:
                self._taken += 1
                self._changed.notify_all()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "classyseg loss")


os.register_at_fork(after_in_child=_pool.cache_clear)  # the threads stay in the parent: nobody would take its work

_own = threading.local()


def _run(job: _Job[Item, Result], threads: int, inference: bool) -> bool:
    """Runs a job in a thread of the pool, with so many of torch's; whether that changed torch's own number."""
    changes = getattr(_own, "threads", None) != threads
    if changes:
        torch.get_num_threads()  # a thread takes torch's number at its first use, after which it can have its own
        torch.set_num_threads(threads)
        _own.threads = threads
    with torch.inference_mode(inference), torch.no_grad():
        job.run()
    return changes
