"""Running statistics of batch norm from many batches of fixed weights, in place of moving averages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from classyseg import distributed


def batch_norms_in_training(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that keep running statistics, and are not frozen. `model` is in training mode."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
    ]


@contextmanager
def population_statistics(model: nn.Module) -> Iterator[None]:
    """Within it, run `model` in training mode on some batches. Then its running statistics are those of the batches.

    For each batch norm of `model` in training mode, they are mean and variance (divided by the count) of all values
    that came in, in all processes of the job together: each process runs its own batches. A norm that no value came to
    keeps what it has, and so do all other buffers. After an error nothing has changed.

    Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021; as `fvcore.nn.precise_bn.update_bn_stats`.
    """
    norms = batch_norms_in_training(model)
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    found = [_Moments(norm) for norm in norms]
    handles = [norm.register_forward_pre_hook(moments.see) for norm, moments in zip(norms, found, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
    _join(found)
    with torch.no_grad():
        for norm, moments in zip(norms, found, strict=True):
            moments.give(norm)


class _Moments:
    """The count, the means, and the sums of squares around them, of the values that came to one norm."""

    def __init__(self, norm: _BatchNorm) -> None:
        device = norm.running_mean.device  # type: ignore[union-attr]
        wide = torch.float64 if device.type in ("cpu", "cuda") else torch.float32  # others may not have it
        self.count = 0
        self.mean, self.squares = (torch.zeros(norm.num_features, dtype=wide, device=device) for _ in range(2))

    @torch.no_grad()
    def see(self, norm: nn.Module, given: tuple[Any, ...]) -> None:
        """Adds what comes to the norm: (N, C) or (N, C, ...)."""
        values: Tensor = given[0]
        if values.dim() < 2 or values.numel() == 0:  # the norm itself says what is wrong with the first
            return
        wide = values if values.dtype == torch.float64 else values.float()
        axes = [0, *range(2, values.dim())]
        mean = wide.mean(axes, keepdim=True)
        self.add(values.numel() // values.shape[1], mean.flatten(), (wide - mean).square_().sum(axes))

    def add(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Merges moments as in Chan et al., "Algorithms for Computing the Sample Variance", 1983."""
        if count == 0:
            return
        difference = mean.to(self.mean.dtype) - self.mean
        total = self.count + count
        self.squares += squares.to(self.mean.dtype) + difference.square() * (self.count * count / total)
        self.mean += difference * (count / total)
        self.count = total

    def give(self, norm: _BatchNorm) -> None:
        if norm.running_mean is not None and norm.running_var is not None and self.count:
            norm.running_mean.copy_(self.mean)
            norm.running_var.copy_(self.squares / self.count)


def _join(found: list[_Moments]) -> None:
    """Merges the moments of all processes, in the same order everywhere, so that the results are equal."""
    if distributed.world_size() == 1 or not found:
        return
    counts = distributed.gather_over_processes(torch.tensor([moments.count for moments in found])).tolist()
    own = torch.cat([part for moments in found for part in (moments.mean, moments.squares)])
    sizes = [len(part) for moments in found for part in (moments.mean, moments.squares)]
    of_processes = [values.split(sizes) for values in distributed.gather_over_processes(own)]
    for i, moments in enumerate(found):
        moments.count, moments.mean, moments.squares = 0, own.new_zeros(sizes[2 * i]), own.new_zeros(sizes[2 * i])
        for process, parts in enumerate(of_processes):
            moments.add(counts[process][i], parts[2 * i], parts[2 * i + 1])
