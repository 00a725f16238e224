"""Hands entries to a tracker in a thread: no training waits for a slow server, and none ends for a dead one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from classyseg.hooks.trackers.entries import Entry, Summary

MAX_WAITING = 200_000
"""If a tracker leaves more entries than this lying, it counts as hanging."""


class Recipient(Protocol):
    """What a tracker does. All is called in one thread, in order; an error ends it."""

    def open_tracker(self, history: Sequence[Entry]) -> None: ...

    def write(self, entries: Sequence[Entry]) -> None: ...

    def close_tracker(self, summary: Summary) -> None: ...


class Courier:
    """Calls a tracker in a thread of its own. `failed` is told of an error, once; after it nothing is handed over."""

    def __init__(self, recipient: Recipient, failed: Callable[[BaseException], None]) -> None:
        self._recipient, self._failed = recipient, failed
        self._waiting: list[list[Entry] | Entry | Summary] = []
        self._changed = threading.Condition()
        self._ended = False
        # A daemon: a tracker that hangs must not keep the process from its end.
        self._thread = threading.Thread(target=self._work, name="classyseg-tracker", daemon=True)
        self._thread.start()

    def open(self, history: list[Entry]) -> None:
        """Begins anew with all entries so far."""
        self._put(history)

    def write(self, entry: Entry) -> None:
        self._put(entry)

    def close(self, summary: Summary) -> None:
        """Lets the thread end, after all that waits."""
        self._put(summary)

    def wait(self, seconds: float) -> bool:
        """Waits for the end of the thread, which `close` has announced. Returns whether it came."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _put(self, item: list[Entry] | Entry | Summary) -> None:
        with self._changed:
            if self._ended:
                return
            if len(self._waiting) > MAX_WAITING and isinstance(item, Entry):
                self._ended = True
                self._waiting.clear()
                raise TimeoutError(f"it has taken none of the last {MAX_WAITING} entries")
            self._waiting.append(item)
            self._changed.notify()

    def _work(self) -> None:
        try:
            while not self._ended:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._ended)
                    items, self._waiting = self._waiting, []
                self._hand_over(items)
        except BaseException as error:  # of a library: it may be anything, and nobody else would see it
            with self._changed:
                was_told, self._ended = self._ended, True
            if not was_told:
                self._failed(error)

    def _hand_over(self, items: Sequence[list[Entry] | Entry | Summary]) -> None:
        entries: list[Entry] = []
        for item in items:
            if isinstance(item, Entry):
                entries.append(item)
                continue
            if entries:
                self._recipient.write(entries)
                entries = []
            if isinstance(item, Summary):
                self._recipient.close_tracker(item)
                self._ended = True
                return
            self._recipient.open_tracker(item)
        if entries:
            self._recipient.write(entries)
