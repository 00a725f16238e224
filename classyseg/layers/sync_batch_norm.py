"""Batch norm with the statistics of the whole job's batch, on CPUs, too."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from classyseg import distributed


class SyncBatchNorm(_BatchNorm):
    """`nn.BatchNorm1d`, `2d` and `3d` in one. In training, the statistics are those of all processes' values.

    For (N, C) and (N, C, ...); N and the size of the maps may differ between processes, and N may be 0. Every process
    of the job must run it, forwards and backwards, at the same point. In eval mode, and with one process, it is plain
    batch norm. The gradients of weight and bias are those of a process's own share, which `DistributedDataParallel`
    joins.

    Raises: `ValueError`, in all processes, when the job has no more than one value for each channel.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        statistics = _job_statistics(input.detach())
        if statistics.num_values <= 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {tuple(input.shape)} here and "
                f"{statistics.num_values} values per channel in all {distributed.world_size()} processes"
            )
        self._track(statistics)
        return _Normalize.apply(input, self.weight, self.bias, statistics, self.eps)

    @torch.no_grad()
    def _track(self, statistics: _Statistics) -> None:
        """Updates the running statistics, if there are any. torch keeps the unbiased variance."""
        running_mean, running_var, num_batches = self.running_mean, self.running_var, self.num_batches_tracked
        if not self.track_running_stats or running_mean is None or running_var is None or num_batches is None:
            return
        num_batches.add_(1)
        share = 1 / num_batches.item() if self.momentum is None else self.momentum
        num_values, mean, var = statistics
        running_mean.lerp_(mean.to(running_mean.dtype), share)
        running_var.lerp_((var * (num_values / (num_values - 1))).to(running_var.dtype), share)


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, SyncBatchNorm)
"""The layer that computes the same in one process, and in eval mode in any number."""


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Makes the batch norms of `model` that will train on `device` use the statistics of the job's whole batch.

    In place: each norm keeps its parameters, buffers, hooks, mode and place. It becomes torch's `nn.SyncBatchNorm` on a
    GPU, else this module's `SyncBatchNorm`. Subclasses, which may work differently, and norms with their own process
    group stay as they are. Call it before the model is wrapped or compiled. With a single process the norms work as
    before.
    """
    for module in model.modules():
        if type(module) not in BATCH_NORMS or getattr(module, "process_group", None) is not None:
            continue
        if device.type == "cuda":
            module.__class__ = nn.SyncBatchNorm  # type: ignore[assignment]
            module.process_group = None  # type: ignore[assignment]
        else:
            module.__class__ = SyncBatchNorm  # type: ignore[assignment]


class _Statistics(NamedTuple):
    """Statistics of each channel's values in all processes."""

    num_values: int
    mean: Tensor
    """(C,)"""
    var: Tensor
    """(C,), the biased variance."""


def _job_statistics(x: Tensor) -> _Statistics:
    """The statistics of the values of all processes, from one exchange; in float64, from sums in float32 or wider.

    Each process's mean and sum of squares around it are merged as in Chan et al., "Algorithms for Computing the Sample
    Variance", The American Statistician 1983. A difference of large squares would lose bits.
    """
    channels = x.shape[1]
    own = torch.zeros(1 + 2 * channels, dtype=torch.float64, device=x.device)
    if x.numel() > 0:
        wide, axes = x.to(_wide(x)), _axes(x)
        mean = wide.mean(axes, keepdim=True)
        own[0] = x.numel() // channels
        own[1:] = torch.cat([mean.flatten(), (wide - mean).square_().sum(axes)])
    counts, means, squares = distributed.gather_over_processes(own).split([1, channels, channels], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    var = (squares + counts * (means - mean).square()).sum(0) / total
    return _Statistics(int(total.item()), mean, var)


class _Normalize(torch.autograd.Function):
    """Batch norm by given statistics. Its backward pass counts all processes' inputs as what made them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: _Statistics, eps: float
    ) -> Tensor:
        kind = _wide(x)
        mean, var = statistics.mean.to(kind), statistics.var.to(kind)
        scale, shift = (None if value is None else value.to(kind) for value in (weight, bias))
        ctx.save_for_backward(x, weight, mean, (statistics.var + eps).rsqrt().to(kind))
        ctx.num_values = statistics.num_values
        return F.batch_norm(x, mean, var, scale, shift, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        axes, shape = _axes(x), (1, -1, *[1] * (x.dim() - 2))
        grad = grad_output.to(mean.dtype)
        centred = x.to(mean.dtype) - mean.view(shape)
        grad_bias = grad.sum(axes)
        grad_weight = (grad * centred).sum(axes) * inverse_std
        grad_input = None
        if ctx.needs_input_grad[0]:
            sums = distributed.sum_over_processes(torch.stack([grad_bias, grad_weight])) / ctx.num_values
            scale = inverse_std if weight is None else inverse_std * weight
            slope = (-scale * inverse_std * sums[1]).view(shape)
            grad_input = centred.mul_(slope).addcmul_(grad, scale.view(shape)).sub_((scale * sums[0]).view(shape))
        wanted = ctx.needs_input_grad[1:3]
        of_parameters = (value if want else None for value, want in zip((grad_weight, grad_bias), wanted, strict=True))
        return grad_input, *of_parameters, None, None


def _axes(x: Tensor) -> list[int]:
    """All but the channels'."""
    return [0, *range(2, x.dim())]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
