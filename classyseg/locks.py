"""Locks on files, for one process at a time. The kernel frees them when a process ends, in any way."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from classyseg.run_folder import open_plain

log = logging.getLogger(__name__)


@contextmanager
def alone(path: Path, *, keep: bool = False) -> Iterator[None]:
    """One process at a time is inside, others wait. `path` is a file only for this; it is removed afterwards.

    With `keep` it is the file to work on: it is made if it is missing, and never removed; waits are short and not
    logged. Raises: `OSError` if the file cannot be made, `ConfigError` if there is a link or no regular file.
    """
    while (lock := _locked(path, quiet=keep)) is None:
        pass
    try:
        yield
    finally:
        if not keep:
            path.unlink(missing_ok=True)
        os.close(lock)


def _locked(path: Path, *, quiet: bool) -> int | None:
    """A descriptor of `path` that locks it; None if another process has removed the file or its folder just now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = open_plain(path, os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not quiet:
                log.info("another process is at work (%s): waiting", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None
