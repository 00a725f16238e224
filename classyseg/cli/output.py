"""Printing: for people, for pipes that close early, for consoles that cannot encode all characters."""

from __future__ import annotations

import errno
import json
import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from classyseg.console import (
    columns_of,
    discard_output,
    is_terminal,
    padded,
    printable,
    printable_lines,
    say,
    shortened,
    terminal_width,
)

if TYPE_CHECKING:
    from classyseg.hooks.bar import Bar

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
"""Errors of the disk: one line says more than a traceback."""
BAR_SECONDS, LINE_SECONDS = 0.2, 10.0
"""Seconds between two drawings of a bar, and between two lines of progress where there is no terminal."""
MIN_NAME = 12
"""At least this many columns of a name are shown."""
MARGIN = 3
"""Columns of a terminal that stay free, for the indentation and at the end."""


def emit(text: str) -> bool:
    """Prints lines. Returns False if nobody reads them any more (`| head`), which is no error.

    Raises: `ConfigError` if standard output cannot be written, such as on a full disk.
    """
    from classyseg.errors import ConfigError

    try:
        say(text)
    except BrokenPipeError:
        discard_output()
        return False
    except OSError as error:
        discard_output()
        raise ConfigError(f"standard output: cannot be written ({error.strerror})") from None
    return True


def complain(text: str) -> None:
    """Prints lines on standard error, even if that is closed. Characters that move the cursor are escaped."""
    with suppress(OSError, ValueError):
        print(printable_lines(text), file=sys.stderr)


class PlainLines(logging.Formatter):
    """Log records as lines, in which what would move the cursor is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


@contextmanager
def logging_lines() -> Iterator[None]:
    """Logs plain lines on stderr for the block, unless the process has set up its own logging."""
    root = logging.getLogger()
    level, handler = root.level, None
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(PlainLines())
        root.addHandler(handler)
        root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        if handler is not None:
            root.removeHandler(handler)


def emit_json(value: Any) -> None:
    """Prints JSON. Characters that standard output cannot encode become JSON escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    emit(text if can_be_printed(text) else json.dumps(value, indent=2))


def can_be_printed(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def in_columns(rows: Sequence[Sequence[str]], right: Collection[int] = (), *, names: int | None = None) -> list[str]:
    """`rows` with aligned cells, the columns `right` aligned to the right; the last column is not padded.

    On a terminal, the column `names` is cut where lines would be too long; in a file or a pipe it never is.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    if names is not None and is_terminal(sys.stdout):
        others = sum(widths) - widths[names] + 2 * last
        widths[names] = min(widths[names], max(MIN_NAME, terminal_width() - MARGIN - others))
        rows = [[shortened(cell, widths[i]) if i == names else cell for i, cell in enumerate(row)] for row in rows]
    return [
        "  ".join(
            cell if i == last and i not in right else padded(cell, widths[i], right=i in right)
            for i, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]


def json_text(value: Any) -> str:
    """`value` as indented JSON for a file. Bytes of a file name that are not text are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


class ProgressLine:
    """Shows how many of `total` things are done: a bar on a terminal, else a line on standard error now and then.

    Without `shown` it only counts, as in all processes but the first.
    """

    def __init__(self, total: int, things: str, *, shown: bool = True) -> None:
        self.total, self.things, self.shown, self.done = total, things, shown, 0
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        from classyseg.hooks.bar import open_bar

        self._started = self._told = time.monotonic()
        with suppress(OSError):
            self._bar = open_bar(self.total, 0) if self.shown else None
        return self

    def add(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if not self.shown or now - self._told < (LINE_SECONDS if self._bar is None else BAR_SECONDS):
            return
        self._told = now
        each = (now - self._started) / self.done
        left = f"{each * (self.total - self.done):.0f} s left"
        if self._bar is None:
            complain(f"{self.done}/{self.total} {self.things}, {left}")
            return
        with suppress(OSError):  # the terminal is gone
            self._bar.show(self.done, self.things, left, [f"{1 / max(each, 1e-9):.1f} a second"])

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close(is_done=self.done >= self.total)


def rewrite(page: str, change: Callable[[str], str]) -> None:
    """Replaces the text of the file `page` by the result of `change`. Raises: `ConfigError` if that fails."""
    from classyseg.config import user_path
    from classyseg.errors import ConfigError

    path = user_path(page)
    try:
        text = path.read_text(encoding="utf-8")
        path.write_text(change(text), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigError(f"--write: {path} cannot be brought up to date: {reason}") from None
