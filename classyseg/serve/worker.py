"""The one thread in which the model runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """Does one piece of work after the other, in the order in which they come. It never holds up the end of a process.

    A future that is cancelled before its turn is left out, and its work, with the image in it, is let go at once; work
    that has begun cannot be stopped.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Future[Any], list[Callable[[], Any]]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="classyseg serve", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        left = [work]
        future.add_done_callback(lambda _: left.clear())
        self._queue.put((future, left))
        return future

    def close(self, seconds: float) -> bool:
        """Ends the thread after the work that has begun. Returns whether that took no longer than `seconds`."""
        self._queue.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, left = item
            if future.set_running_or_notify_cancel():
                try:
                    result = left.pop()()
                except BaseException as error:  # whoever waits for the future decides
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del item, future, left  # an image lives no longer than its prediction
