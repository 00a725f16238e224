"""Tensors that may be spread over the processes, each of which then holds a part."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")  # torch's DTensor, whose import takes long


def local(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`: it shares its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors. Every process calls it, with the same names in the same order.

    What was sharded comes to the host, one tensor after the other, so that no device holds all.
    """
    return {
        name: tensor.full_tensor().cpu() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def fill(own: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    """Copies `whole` tensors into `own` ones, which may be sharded. No process waits for another one."""
    for name, tensor in own.items():
        tensor = tensor.detach()
        local(tensor).copy_(part_of(tensor, whole[name]))


def part_of(own: Tensor, whole: Tensor) -> Tensor:
    """The part of `whole` that this process holds of a tensor that is spread as `own` is."""
    if not is_sharded(own):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = own.device_mesh, own.placements  # type: ignore[attr-defined]
    return local(distribute_tensor(whole.to(own.device), mesh, placements, src_data_rank=None))
