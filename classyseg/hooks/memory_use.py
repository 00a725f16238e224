"""How much memory a process takes now: on its device, and on the machine with its data workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

PROC = Path("/proc")


def device_peak(device: torch.device) -> int | None:
    """The most bytes that tensors have taken on `device` at once, in this process so far; None for a CPU.

    It waits for nothing.
    """
    if device.type == "cpu":
        return None
    if device.type == "mps":  # torch keeps no peak there
        return torch.mps.current_allocated_memory()
    return int(torch.accelerator.max_memory_allocated(device))


def host_peak() -> int:
    """The most bytes of RAM that this process has taken."""
    status = PROC / "self" / "status"
    if status.is_file():
        # Not `ru_maxrss`: Linux hands the parent's on to a process that it starts.
        lines = status.read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def host_bytes() -> int:
    """The bytes of RAM that this process and the processes below it (its data workers) take now.

    On Linux, memory that several processes share is divided among them, so that it counts once. Elsewhere it is the
    peak of this process alone.
    """
    if not (PROC / "self" / "status").is_file():
        return host_peak()
    return sum(map(_resident, _with_children(os.getpid())))


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    for tasks in (PROC / str(pid) / "task").glob("*/children"):
        try:
            children = tasks.read_text().split()
        except OSError:  # it ended just now
            continue
        for child in children:
            yield from _with_children(int(child))


def _resident(pid: int) -> int:
    """The share of a process; 0 if it ended just now."""
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):  # a sandbox may hide the first
        try:
            lines = (PROC / str(pid) / name).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return 0
