"""ZeRO: each process keeps the optimizer's state of some parameters, updates these, and sends them to the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from classyseg import distributed

Groups = list[dict[str, Any]]


def is_shared(optimizer: torch.optim.Optimizer) -> bool:
    return hasattr(optimizer, "consolidate_state_dict")  # torch's class, whose import takes long


def shared(groups: Groups, make: Callable[[Groups], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """torch's ZeRO around the optimizer that `make` makes of this process's part of `groups`."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(groups, optimizer_class=make)  # type: ignore[arg-type]


def own_part(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that has this process's state: of all parameters, or of its share."""
    part: torch.optim.Optimizer = optimizer.optim if is_shared(optimizer) else optimizer  # type: ignore[attr-defined]
    return part


def from_all_processes(own: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The tensors of all processes, by `PARAMETER/KEY`, on the host. Every process calls it, each with other names."""
    listed: list[Any] = [None] * distributed.world_size()
    dist.all_gather_object(listed, [(name, tuple(value.shape), value.dtype) for name, value in own.items()])
    found: dict[str, Tensor] = {}
    for rank, names in enumerate(listed):
        for name, shape, dtype in names:
            device = parameters[name.rpartition("/")[0]].device
            value = own[name].to(device) if name in own else torch.empty(shape, dtype=dtype, device=device)
            value = value.contiguous()
            dist.broadcast(value, src=rank)
            found[name] = value.cpu()
    return found
