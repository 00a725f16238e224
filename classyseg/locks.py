"""One process at a time: locks on files, which the kernel frees when a process ends, however that ends."""

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
    """One process at a time is inside, the others wait. `path` is a file for this alone, which is removed after.

    With `keep` it is the file that is worked on: made where it is not there, and never removed; such waits are short,
    and not logged. Raises: `OSError` where no such file can be made, `ConfigError` where a link is, or no file.
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
    """A descriptor of `path` that locks it; None where another process has removed the file or its folder just now."""
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
