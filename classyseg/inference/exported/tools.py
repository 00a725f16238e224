"""What the formats share: the bytes of a file, and how the tools that write and run files are kept quiet and quoted."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from classyseg.errors import ConfigError
from classyseg.run_folder import open_plain

MAX_REASON = 400


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, nothing is logged below an error, nobody warns, and nothing is printed. Errors are raised as ever."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    """The kind of an error of a tool, and the first line of its message: many write pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:MAX_REASON]


def content_of(path: Path, limit: int) -> bytes:
    """The bytes of the file at `path`, which may be anybody's. Raises: `ConfigError`, also for more than `limit`."""
    try:
        with open(open_plain(path, os.O_RDONLY), "rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise ConfigError(f"{path}: has more than {limit} bytes")
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
