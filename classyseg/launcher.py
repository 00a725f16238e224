"""Reads what a launcher such as `torchrun` tells in the environment; the processes of a job find each other."""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from classyseg.console import shown
from classyseg.errors import ConfigError

ADDRESS = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""The variables that a process of a job needs in addition to `WORLD_SIZE`; with a GPU, `LOCAL_RANK`, too."""
MAX_PROCESSES = 1_000_000
SAY_SECONDS = 5.0
"""How long a process waits before it logs for which others it waits; then twice as long, and so on."""
TRY_SECONDS = 5.0
"""How long one try to reach process 0 takes."""
NAME_SECONDS = 30.0
"""How long the name of process 0's machine may be unknown: in a cluster, names may come late."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A job of `world_size` processes, and which of them this is."""

    world_size: int
    rank: int
    host: str
    port: int


def described_job(device_type: str) -> Job | None:
    """The job that the environment describes; None if this process is alone.

    `WORLD_SIZE=1` means one process, whatever other variables say: schedulers leave addresses of other jobs.

    Raises: `ConfigError` for an incomplete or impossible description.
    """
    world_size = _integer("WORLD_SIZE", low=1, high=MAX_PROCESSES)
    if world_size is None:
        return None
    rank = _integer("RANK", high=world_size - 1)
    _integer("LOCAL_RANK")
    host, port = _text("MASTER_ADDR"), _integer("MASTER_PORT", low=1, high=65535)
    if world_size == 1:
        return None
    missing = [name for name in (*ADDRESS, "LOCAL_RANK") if _text(name) is None]
    needed = {*ADDRESS, *(["LOCAL_RANK"] if device_type != "cpu" else [])}
    if rank is not None and host is not None and port is not None and not needed & {*missing}:
        return Job(world_size, rank, host, port)
    raise ConfigError(
        f"environment: WORLD_SIZE is {world_size}, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
        f"set; start the {world_size} processes with torchrun, which sets them all, or unset WORLD_SIZE to train in "
        "this process alone"
    )


def local_rank() -> int:
    """The number of this process on its machine, and so of its GPU. Raises: `ConfigError` if it is no number."""
    return _integer("LOCAL_RANK") or 0


def local_world_size() -> int:
    """How many processes of the job this machine has. Raises: `ConfigError` if it is no number."""
    return _integer("LOCAL_WORLD_SIZE", low=1) or 1


def _text(name: str) -> str | None:
    return os.environ.get(name, "").strip() or None


def _integer(name: str, *, low: int = 0, high: int | None = None) -> int | None:
    text = _text(name)
    if text is None:
        return None
    if text.isascii() and text.isdecimal() and low <= int(text[:20]) and (high is None or int(text[:20]) <= high):
        return int(text)
    accepted = f"whole numbers from {low}" + ("" if high is None else f" to {high}")
    of_job = f" (WORLD_SIZE is {_text('WORLD_SIZE')})" if name == "RANK" else ""
    raise ConfigError(f"environment: {name}: found {shown(text)}; accepted: {accepted}{of_job}")


def meet(job: Job, timeout: timedelta) -> dist.Store:
    """Waits until every process of `job` has come. Gives the store by which they find each other from then on.

    Logs for which processes it waits: after some seconds, then less and less often. Raises: `ConfigError` naming the
    processes that have not come within `timeout`.
    """
    clock = _Patience(job, timeout)
    store = _reached(job, clock)
    try:
        if store.add(f"classyseg/came/{job.rank}", 1) > 1:
            raise ConfigError(f"environment: RANK: found {job.rank} in two processes of the job; each needs its own")
        store.add("classyseg/came", 1)
        pause = 0.01
        while store.add("classyseg/came", 0) < job.world_size:
            time.sleep(pause := min(0.5, 1.5 * pause))
            if clock.is_time_to_speak():
                here = [store.check([f"classyseg/came/{rank}"]) for rank in range(job.world_size)]
                missing = [rank for rank, is_here in enumerate(here) if not is_here]
                clock.speak(missing, aloud=here.index(True) == job.rank)
    except dist.DistError as error:  # the connection is gone
        raise ConfigError(f"process 0 at {job.host}:{job.port} has left while process {job.rank} waited") from error
    store.set_timeout(timeout)
    return store


def _reached(job: Job, clock: _Patience) -> dist.Store:
    """The store at the job's address. Process 0 opens it unless the launcher has."""
    opens = job.rank == 0 and _text("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if opens:
        _require_known(job.host)
    while not opens and not _answers(job):  # each try of torch would print a page of addresses
        time.sleep(0.2)
        if clock.is_time_to_speak():
            clock.speak([0], aloud=True)
    try:
        store = dist.TCPStore(
            job.host,
            job.port,
            is_master=opens,
            timeout=timedelta(seconds=clock.seconds),
            wait_for_workers=False,
            multi_tenant=opens,
        )
        # The launcher's store lives on when it restarts the job: entries from before the restart must not count.
        return dist.PrefixStore(f"/worker/attempt_{_text('TORCHELASTIC_RESTART_COUNT') or 0}", store)
    except dist.DistError as error:
        what = "is in use" if "EADDRINUSE" in str(error) else "cannot be opened" if opens else "does not answer"
        raise ConfigError(
            f"environment: MASTER_ADDR, MASTER_PORT: {job.host}:{job.port} {what}; choose others"
        ) from error


def _answers(job: Job) -> bool:
    try:
        socket.create_connection((job.host, job.port), timeout=TRY_SECONDS).close()
    except (OSError, UnicodeError):  # nobody listens yet, or the name is not yet known
        return False
    return True


def _require_known(host: str) -> None:
    """Raises: `ConfigError` for a name without an address: torch would ask for it again for many minutes."""
    end = time.monotonic() + NAME_SECONDS
    while True:
        try:
            socket.getaddrinfo(host, None)
        except (OSError, UnicodeError) as error:
            if time.monotonic() >= end:
                raise ConfigError(
                    f"environment: MASTER_ADDR: found {shown(host)}, which has no address here; expected the name or "
                    "address of the machine of process 0"
                ) from error
            time.sleep(0.5)
        else:
            return


class _Patience:
    """How long this process has waited for others, and when it is time to log it."""

    def __init__(self, job: Job, timeout: timedelta) -> None:
        self._job = job
        self.seconds = timeout.total_seconds()
        self._started = time.monotonic()
        self._next = min(SAY_SECONDS, self.seconds)

    def is_time_to_speak(self) -> bool:
        return time.monotonic() - self._started >= self._next

    def speak(self, missing: list[int], *, aloud: bool) -> None:
        """Logs who is missing. Raises: `ConfigError` when the time is over."""
        waited = time.monotonic() - self._started
        if waited >= self.seconds:
            self._give_up(missing)
        self._next = min(2 * self._next, self.seconds)
        if aloud:
            log.warning(
                "waiting for %s at %s:%d (%.0f s of at most %.0f)",
                self._described(missing),
                self._job.host,
                self._job.port,
                waited,
                self.seconds,
            )

    def _give_up(self, missing: list[int]) -> NoReturn:
        at = f"{self._job.host}:{self._job.port}"
        raise ConfigError(
            f"{self._described(missing)} did not come to {at} within {self.seconds:.0f} s; "
            "start as many processes as WORLD_SIZE says, each with its own RANK, and all with this MASTER_ADDR and "
            "MASTER_PORT"
        )

    def _described(self, missing: list[int]) -> str:
        shown = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        return f"{'process' if len(missing) == 1 else 'processes'} {shown} of {self._job.world_size}"


def restarted_job_began() -> float | None:
    """When the job of this restarted process began, in seconds since 1970.

    None if `torchrun` has not restarted this process, or if it cannot be told (outside Linux).
    """
    if not _integer("TORCHELASTIC_RESTART_COUNT"):
        return None
    try:
        process = os.getpid()
        while _knows_of_restarts(process):  # the first parent that does not is the launcher
            process = int(_stat(process)[1])
        ticks = int(_stat(process)[19])
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat after the program's name. The name may hold anything."""
    return Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def _knows_of_restarts(process: int) -> bool:
    return b"\0TORCHELASTIC_RESTART_COUNT=" in b"\0" + Path(f"/proc/{process}/environ").read_bytes()
