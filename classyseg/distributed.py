"""The process group: one process, or several under `torchrun`. Everything here also works with a single process."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

from classyseg import launcher
from classyseg.errors import ConfigError

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others, at the start and at every exchange."""

BACKENDS = {"cpu": "gloo", "cuda": "cuda:nccl,cpu:gloo", "xpu": "xpu:xccl,cpu:gloo"}
"""How processes exchange tensors, by the kind of their device."""


def start_processes(device_type: str, timeout: timedelta = TIMEOUT) -> None:
    """Joins the process group that `torchrun` described in the environment; does nothing without one.

    On GPUs there is a gloo group in addition, so that small agreements on the host never wait for the device.

    Raises: `ConfigError` for an incomplete description, for processes that do not come within `timeout`, and for a
        device on which only one process can train.
    """
    if dist.is_initialized():
        return
    job = launcher.described_job(device_type)
    if job is None:
        return
    if device_type not in BACKENDS:
        raise ConfigError(
            "runtime.device", f"found {device_type}, on which several processes cannot train; take cpu, or one process"
        )
    backend = BACKENDS[device_type]
    store = launcher.meet(job, timeout)
    dist.init_process_group(backend, store=store, rank=job.rank, world_size=job.world_size, timeout=TIMEOUT)


def stop_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_primary() -> bool:
    """Whether this process writes files and logs."""
    return rank() == 0


def sum_over_processes(tensor: Tensor) -> Tensor:
    """`tensor` summed over the job, as a new tensor; integers stay exact.

    The argument is not changed: it may be a total that goes on growing, and would then count other processes twice.
    """
    total = tensor.clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def largest_over_processes(tensor: Tensor) -> Tensor:
    """The largest of all processes' values, for each element of `tensor`, as a new tensor."""
    largest = tensor.clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def mean_over_processes(value: Tensor) -> float:
    """The mean of all processes' numbers. Every process calls it."""
    return (sum_over_processes(value.detach().double().cpu()) / world_size()).item()


def gather_over_processes(tensor: Tensor) -> Tensor:
    """Every process's `tensor`, (processes, ...) by rank, as a new tensor; they must have one shape and type."""
    own = tensor.contiguous()
    if world_size() == 1:
        return torch.stack([own])
    gathered = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(gathered, own)
    return torch.stack(gathered)


def gather_texts(text: str) -> list[str]:
    """Every process's `text`, by rank."""
    own = torch.frombuffer(bytearray(text.encode("utf-8", "surrogateescape") + b"."), dtype=torch.uint8)
    lengths = gather_over_processes(torch.tensor(len(own))).tolist()
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: len(own)] = own
    found = gather_over_processes(padded)
    return [
        bytes(part[: length - 1].tolist()).decode("utf-8", "surrogateescape")
        for part, length in zip(found, lengths, strict=True)
    ]


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process of the job; every process must call it at the same point."""
    if world_size() == 1:
        return flag
    votes = torch.tensor([int(flag)])
    dist.all_reduce(votes)
    return bool(votes.item())


def each_in_any_process(*flags: bool) -> tuple[bool, ...]:
    """`any_process` of several flags at once."""
    if world_size() == 1:
        return flags
    votes = torch.tensor([int(flag) for flag in flags])
    dist.all_reduce(votes)
    return tuple(bool(count) for count in votes.tolist())


def first_text(text: str | None) -> str | None:
    """The text of the first process that has one, in every process; None if none has. Every process calls it."""
    if world_size() == 1:
        return text
    own = text.encode("utf-8", "surrogateescape") if text is not None else b""
    vote = torch.tensor([world_size() if text is None else rank()])
    dist.all_reduce(vote, dist.ReduceOp.MIN)
    first = int(vote.item())
    if first == world_size():
        return None
    size = torch.tensor([len(own)])
    dist.broadcast(size, src=first)
    letters = torch.tensor(list(own) if first == rank() else [0] * int(size.item()), dtype=torch.uint8)
    dist.broadcast(letters, src=first)
    return bytes(letters.tolist()).decode("utf-8", "surrogateescape")


class PeerError(Exception):
    """Another process of the job failed, and says why. `exit_code` is the one with which it ends."""

    def __init__(self, peer: int, exit_code: int) -> None:
        super().__init__(f"process {peer} failed")
        self.exit_code = exit_code


class failing_together:  # noqa: N801 (used as a function)
    """An error in one process's block becomes one in all: that process keeps its error, the others get `PeerError`.

    Use it where one process alone may fail: in a check that only the primary makes, or on a file that one process
    reads. Every process must enter at the same point, and the block must not wait for another process.
    """

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if world_size() == 1 or not isinstance(error, Exception | None):
            return
        # For any error, the others must not wait for this process.
        first, exit_code = _first_failure(error)
        if first < world_size() and (error is None or first != rank()):
            raise PeerError(first, exit_code) from error


def _first_failure(error: Exception | None) -> tuple[int, int]:
    """The lowest rank of the processes that call this with an error, and the exit code of that error."""
    nobody = 256 * world_size()
    code = nobody if error is None else 256 * rank() + getattr(error, "exit_code", 1)
    votes = torch.tensor([code])
    dist.all_reduce(votes, dist.ReduceOp.MIN)
    return divmod(int(votes.item()), 256)


def wait_for_peers_to_end() -> None:
    """Returns once all processes have called this, or once one that failed has left the group.

    `torchrun` ends all processes when one ends. If this one left at once, another one could not say what it has to say.
    """
    with suppress(RuntimeError):  # the failed process has closed its connection
        any_process(False)


def integer_from_primary(value: int) -> int:
    """The primary process's `value`, in every process."""
    if world_size() == 1:
        return value
    message = torch.tensor([value])
    dist.broadcast(message, src=0)
    return int(message.item())


def tensor_of_process(tensor: Tensor, number: int) -> Tensor:
    """The `tensor` of the process of that rank, in every process, as a new one; all have one shape and type."""
    sent = tensor.clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.broadcast(sent, src=number)
    return sent


def take_from_primary(tensors: Iterable[Tensor]) -> None:
    """Gives every process the primary's tensors, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
