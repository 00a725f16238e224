"""LAMB: Adam whose rate of each parameter follows the ratio of its norm to its update's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from classyseg.optim.classy_optimizer import ClassyOptimizer
from classyseg.optim.each_parameter import EachParameter
from classyseg.optim.groups import ParameterGroup
from classyseg.optim.options import Beta, LayerDecay, NotNegative, Positive, Schedules
from classyseg.registry import OPTIMIZERS, ScheduleConfig
from classyseg.structures import RunLength


@OPTIMIZERS.register("lamb")
class LAMB(ClassyOptimizer):
    """AdamW for large batches: each parameter's rate follows the norm of its weights over that of its update.

    Parameters without weight decay (see `decay_vectors` and `groups`) have the ratio 1. Published recipes also bound
    the gradient: `clip_norm: 1.0`.

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", ICLR 2020.

    Args:
        lr: The base rate, which the schedule multiplies.
        betas: Decay of the two moments. `schedules` calls the first one `momentum`.
        eps: Added to the denominator.
        trust_clip: Keeps the ratio at or below 1.
        always_adapt: The ratio also for parameters without weight decay.
        weight_decay: Decoupled.
        decay_vectors: false: no decay for parameters of one dimension, which are biases and the scales of norms.
        groups: See key `groups`.
        schedule: A schedule.
        schedules: Schedules of other options, which multiply them: `momentum` and `weight_decay`.
        clip_norm: Bounds the L2 norm of the whole gradient, after `clip_value`.
        clip_value: Bounds each number of the gradient, to both sides.
        layer_decay: Multiplies the learning rate once for each layer from the heads down to the image; see Optimizers.
        zero: Shares the optimizer's memory out to the processes, each of which updates some parameters.
    """

    scheduled = ("momentum", "weight_decay")

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        length: RunLength,
        *,
        lr: Positive,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: Positive = 1e-6,
        trust_clip: bool = False,
        always_adapt: bool = False,
        weight_decay: NotNegative = 0.01,
        decay_vectors: bool = True,
        groups: tuple[ParameterGroup, ...] = (),
        schedule: ScheduleConfig = "constant",
        schedules: Schedules | None = None,
        clip_norm: Positive | None = None,
        clip_value: Positive | None = None,
        layer_decay: LayerDecay | None = None,
        zero: bool = False,
    ) -> None:
        self.betas, self.eps = betas, eps
        self.trust_clip, self.always_adapt = trust_clip, always_adapt
        super().__init__(
            named_parameters,
            length,
            lr=lr,
            weight_decay=weight_decay,
            decay_vectors=decay_vectors,
            groups=groups,
            schedule=schedule,
            schedules=schedules,
            clip_norm=clip_norm,
            clip_value=clip_value,
            layer_decay=layer_decay,
            zero=zero,
        )

    def torch_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        options = {
            "betas": self.betas,
            "eps": self.eps,
            "trust_clip": self.trust_clip,
            "always_adapt": self.always_adapt,
        }
        return _LAMB(groups, {"lr": self.lr, **options})


class _LAMB(EachParameter):
    def update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros(())  # on the host: reading it does not wait for a GPU
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2), decay = int(state["step"]), group["betas"], group["weight_decay"]
        mean = state["exp_avg"].lerp_(grad, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = (square.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
        update = (mean / (1 - beta1**step)).div_(denominator)
        if decay:
            update.add_(parameter, alpha=decay)
        if decay or group["always_adapt"]:
            norm, update_norm = parameter.norm(), update.norm()
            ratio = torch.where((norm > 0) & (update_norm > 0), norm / update_norm, torch.ones_like(norm))
            update = update * (ratio.clamp(max=1.0) if group["trust_clip"] else ratio)
        parameter.add_(update, alpha=-group["lr"])
