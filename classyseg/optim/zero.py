"""ZeRO: each process keeps the optimizer's state of some parameters, updates these, and sends them to the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
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
    described = [(name, list(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in own.items()]
    found: dict[str, Tensor] = {}
    for rank, text in enumerate(distributed.gather_texts(json.dumps(described))):
        for name, shape, dtype in json.loads(text):
            device = parameters[name.rpartition("/")[0]].device
            empty = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
            found[name] = distributed.tensor_of_process(own[name].to(device) if name in own else empty, rank).cpu()
    return found
