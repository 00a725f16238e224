"""The process group: one process, or several under `torchrun`. Everything here also works with a single process."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start_processes(device_type: str) -> None:
    """Joins the process group that `torchrun` described in the environment; does nothing without one.

    On GPUs a gloo group stands beside nccl, so that small host-side agreements never wait for the device.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return
    dist.init_process_group("cuda:nccl,cpu:gloo" if device_type == "cuda" else "gloo", timeout=timedelta(minutes=30))


def stop_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """The number of this process on its machine: which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_primary() -> bool:
    """Whether this process writes files and speaks."""
    return rank() == 0


def sum_over_processes(tensor: Tensor) -> Tensor:
    """`tensor` summed over the job, in place; integers stay exact."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process of the job; every process must call it at the same point."""
    if world_size() == 1:
        return flag
    votes = torch.tensor([int(flag)])
    dist.all_reduce(votes)
    return bool(votes.item())


def integer_from_primary(value: int) -> int:
    """The primary process's `value`, in every process."""
    if world_size() == 1:
        return value
    message = torch.tensor([value])
    dist.broadcast(message, src=0)
    return int(message.item())


def broadcast_buffers(module: nn.Module) -> None:
    """Gives every process the primary's buffers (the running statistics of batch norm, say)."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def barrier() -> None:
    if world_size() > 1:
        any_process(False)
