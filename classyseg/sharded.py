"""Tensors that may be spread over the processes: each process then holds a part, and no process all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from classyseg.distributed import sum_over_processes


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")  # torch's DTensor, whose import takes seconds


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


def part_of(own: Tensor, whole: Tensor) -> Tensor:
    """The part of `whole` that this process holds of a tensor that is spread as `own` is.

    No process waits for another one.
    """
    if not is_sharded(own):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = own.device_mesh, own.placements  # type: ignore[attr-defined]
    return local(distribute_tensor(whole.to(own.device), mesh, placements, src_data_rank=None))


@torch.no_grad()
def fill(own: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    """Copies `whole` tensors into `own` ones, which may be sharded. No process waits for another one."""
    for name, tensor in own.items():
        local(tensor.detach()).copy_(part_of(tensor, whole[name]))


@torch.no_grad()
def filled_like(own: Tensor, whole: Tensor) -> Tensor:
    """A new tensor on the device of `own` and spread as it is, with the numbers and type of `whole`."""
    new = torch.empty_like(own, dtype=whole.dtype, requires_grad=False)
    fill({"": new}, {"": whole})
    return new


@torch.no_grad()
def clip_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """`nn.utils.clip_grad_norm_`, which would ask the other processes once for each sharded gradient.

    Gives the norm before."""
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts = [local(gradient) for gradient in gradients if is_sharded(gradient)]
    if not parts:
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    whole = [gradient for gradient in gradients if not is_sharded(gradient)]
    total = (sum_over_processes(_square(parts)) + (_square(whole) if whole else 0.0)).sqrt()
    torch._foreach_mul_(parts + whole, (max_norm / (total + 1e-6)).clamp(max=1.0))
    return total


def _square(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors)).square().sum()


def stand_ins(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same whole shapes and types, which a process may look at alone: in place of sharded ones, zeros
    that take no memory.
    """
    return {
        name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) if is_sharded(tensor) else tensor
        for name, tensor in tensors.items()
    }
