"""A bar on a terminal or in a notebook, above which other lines of the program appear whole."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from classyseg.console import is_terminal, terminal_width

MIN_BAR = 8
"""A bar of fewer columns is left out."""
RESERVED = 3
"""Free columns at the end of the line: terminals print ^C there, and some begin a new line at the last column."""


def open_bar(total: int, done: int) -> Bar | None:
    """A bar, on a terminal (standard error) or in a notebook with ipywidgets; else None."""
    if is_terminal(sys.stderr):
        return Bar(tqdm, total, done)
    notebook = _notebook_bar()
    return None if notebook is None else Bar(notebook, total, done, is_notebook=True)


def _notebook_bar() -> Any:
    """tqdm's bar for notebooks; None elsewhere, and where ipywidgets is missing."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    if "IPKernelApp" not in getattr(get_ipython(), "config", {}):
        return None
    import tqdm.notebook

    return None if getattr(tqdm.notebook, "IProgress", None) is None else tqdm.notebook.tqdm_notebook


class Bar:
    """A bar on standard error. Until it is closed, logs, warnings and prints appear above it."""

    def __init__(self, kind: Any, total: int, done: int, *, is_notebook: bool = False) -> None:
        self._is_notebook = is_notebook
        self._total = total
        self._bar: Any = kind(total=total, initial=done, leave=False, file=sys.stderr, bar_format="{bar}", delay=1e-9)
        self._redirected = [] if is_notebook else _redirect_output()

    def show(self, done: int, title: str, left: str, more: Sequence[str]) -> None:
        """Draws it again: `title`, `done` of the total, `left` (the time), and as many of `more` as fit."""
        columns = 10_000 if self._is_notebook else terminal_width(self._bar.fp) - RESERVED
        self._bar.n = done
        self._bar.ncols = None if self._is_notebook else max(1, columns)
        self._bar.bar_format = bar_format(title, f"{done}/{self._total}", left, more, columns)
        self._bar.refresh()

    def close(self, *, is_done: bool) -> None:
        """Takes the bar away. A bar that is not done stays, and the next line begins below it."""
        if is_done:
            self._bar.n = self._bar.total
        self._bar.leave = not is_done
        try:
            self._bar.close()
        finally:
            for owner, name, proxy in self._redirected:
                if getattr(owner, name) is proxy:
                    setattr(owner, name, proxy.stream)
                proxy.end()


def bar_format(title: str, count: str, left: str, more: Sequence[str], columns: int) -> str:
    """The line in tqdm's format, with `{bar}` for the bar, in at most so many columns.

    Every line has the time that is left. In narrow ones, first the title and the count are cut.
    """
    if len(f"{title} {count}, {left}") > columns:
        time = left.partition(" ")[2]  # without the name of its phase
        shorter = (f"{title} {count}, {time}", f"{title} {time}", f"{title.partition(' ')[2]} {time}", time)
        return next((text for text in shorter if len(text) <= columns), time[-max(1, columns) :])
    behind, bar = f"{count}, {left}", ""
    room = columns - len(f"{title} {behind}")
    for part in (*more[:1], None, *more[1:]):  # None is the bar: the loss matters more, the rest less
        needed = MIN_BAR + 3 if part is None else len(part) + 2
        if needed > room:
            continue
        room -= needed
        if part is None:
            bar = "|{bar}| "
        else:
            behind += f", {part}"
    return f"{title} {bar}{behind}"


class _AboveTheBar:
    """A stream whose whole lines are written above the bar; half ones wait for their end."""

    def __init__(self, stream: Any, bar_stream: Any) -> None:
        self.stream = stream
        self._bar_stream = bar_stream
        self._process = os.getpid()
        self._rest = ""

    def write(self, text: str) -> int:
        if os.getpid() != self._process:  # in a data worker, which has no bar
            self.stream.write(text)
            return len(text)
        lines, end, self._rest = (self._rest + text).rpartition("\n")
        if end:
            with tqdm.external_write_mode(file=self._bar_stream):
                self.stream.write(lines + end)
                self.stream.flush()
        return len(text)

    def end(self) -> None:
        """Writes what has no end yet."""
        rest, self._rest = self._rest, ""
        if rest:
            self.stream.write(rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _redirect_output() -> list[tuple[Any, str, _AboveTheBar]]:
    """Puts a proxy in place of each stream that shares the terminal with the bar: (owner, attribute, proxy)."""
    streams = [stream for stream in (sys.stderr, sys.stdout) if is_terminal(stream)]
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {h: None for logger in loggers for h in getattr(logger, "handlers", ())}
    found: list[tuple[Any, str]] = [
        (handler, "stream") for handler in handlers if isinstance(handler, logging.StreamHandler)
    ]
    redirected, bar_stream = [], sys.stderr
    for owner, name in [*found, (sys, "stderr"), (sys, "stdout")]:
        stream = getattr(owner, name)
        if any(stream is known for known in streams):
            proxy = _AboveTheBar(stream, bar_stream)
            setattr(owner, name, proxy)
            redirected.append((owner, name, proxy))
    return redirected
