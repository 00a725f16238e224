"""What a piece of a test takes of memory, at its highest."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_within(limit: int) -> Iterator[None]:
    """Fails where the process takes more than `limit` KiB above the start, for however short a time."""
    gc.collect()  # else what earlier tests left could go in between
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    except OSError:
        yield  # elsewhere than on Linux
        return
    before = _peak()
    yield
    taken = _peak() - before
    assert taken < limit, f"{taken} KiB"


def _peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
