"""LARS: SGD whose rate of each parameter follows the ratio of its norm to its gradient's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from classyseg.errors import ConfigError
from classyseg.optim.classy_optimizer import ClassyOptimizer
from classyseg.optim.each_parameter import EachParameter
from classyseg.optim.groups import ParameterGroup
from classyseg.optim.options import Beta, LayerDecay, NotNegative, Positive, Schedules
from classyseg.registry import OPTIMIZERS, ScheduleConfig
from classyseg.structures import RunLength


@OPTIMIZERS.register("lars")
class LARS(ClassyOptimizer):
    """SGD with momentum, for large batches: each parameter's rate follows the norm of its weights over its gradient's.

    The ratio is `trust_coefficient * |weights| / (|gradient| + weight_decay * |weights| + eps)`. Parameters without
    weight decay (see `decay_vectors` and `groups`) have the ratio 1.

    Source: You et al., "Large Batch Training of Convolutional Networks", 2017.

    Args:
        lr: The base rate, which the schedule multiplies.
        momentum: 0 or more, below 1.
        nesterov: Nesterov's momentum.
        trust_coefficient: How far a step may move a parameter, as a share of its norm.
        trust_clip: Keeps a parameter's rate at or below that of the schedule: LARC's clipping.
        always_adapt: The ratio also for parameters without weight decay.
        eps: Added to the denominator of the ratio.
        weight_decay: L2, added to the gradient.
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
        momentum: Beta = 0.9,
        nesterov: bool = False,
        trust_coefficient: Positive = 0.001,
        trust_clip: bool = False,
        always_adapt: bool = False,
        eps: NotNegative = 1e-8,
        weight_decay: NotNegative = 0.0,
        decay_vectors: bool = True,
        groups: tuple[ParameterGroup, ...] = (),
        schedule: ScheduleConfig = "constant",
        schedules: Schedules | None = None,
        clip_norm: Positive | None = None,
        clip_value: Positive | None = None,
        layer_decay: LayerDecay | None = None,
        zero: bool = False,
    ) -> None:
        if nesterov and not momentum:
            raise ConfigError("nesterov", "found true with momentum 0; give a momentum, or nesterov: false")
        self.momentum, self.nesterov, self.eps = momentum, nesterov, eps
        self.trust_coefficient, self.trust_clip, self.always_adapt = trust_coefficient, trust_clip, always_adapt
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
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "trust_coefficient": self.trust_coefficient,
            "trust_clip": self.trust_clip,
            "always_adapt": self.always_adapt,
            "eps": self.eps,
        }
        return _LARS(groups, {"lr": self.lr, **options})


class _LARS(EachParameter):
    def update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        decay, momentum = group["weight_decay"], group["momentum"]
        if decay or group["always_adapt"]:
            norm, grad_norm = parameter.norm(), grad.norm()
            ratio = group["trust_coefficient"] * norm / (grad_norm + decay * norm + group["eps"])
            ratio = torch.where((norm > 0) & (grad_norm > 0), ratio, torch.ones_like(ratio))
            if group["trust_clip"]:
                ratio = (ratio / group["lr"]).clamp(max=1.0)
            grad = grad.add(parameter, alpha=decay) * ratio
        if momentum:
            state = self.state[parameter]
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(momentum).add_(grad)
            else:
                state["momentum_buffer"] = grad.clone()
            buffer = state["momentum_buffer"]
            grad = grad.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        parameter.add_(grad, alpha=-group["lr"])
