"""RMSProp as TensorFlow computes it."""

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


@OPTIMIZERS.register("rmsprop_tf")
class RMSPropTF(ClassyOptimizer):
    """RMSProp as TensorFlow computes it: as in the recipes of EfficientNet and MobileNetV3.

    The mean of squares starts at 1, `eps` is added under the root, and the momentum gathers updates that the learning
    rate has already scaled.

    Source: Tieleman and Hinton, "Lecture 6.5: rmsprop", Coursera 2012; the differences are those of timm's
    `RMSpropTF`.

    Args:
        lr: The base rate, which the schedule multiplies.
        alpha: Decay of the mean of squares.
        eps: Added under the root. EfficientNet's recipe has 0.001.
        momentum: 0 or more, below 1.
        centered: Divides by the deviation of the gradient in place of the root of its mean square.
        lr_in_momentum: false: the learning rate scales the momentum, not what it gathers, as in torch.
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
        alpha: Beta = 0.9,
        eps: Positive = 1e-10,
        momentum: Beta = 0.0,
        centered: bool = False,
        lr_in_momentum: bool = True,
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
        self.alpha, self.eps, self.momentum, self.centered = alpha, eps, momentum, centered
        self.lr_in_momentum = lr_in_momentum
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
            "alpha": self.alpha,
            "eps": self.eps,
            "momentum": self.momentum,
            "centered": self.centered,
            "lr_in_momentum": self.lr_in_momentum,
        }
        return _RMSPropTF(groups, {"lr": self.lr, **options})


class _RMSPropTF(EachParameter):
    def update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "square_avg" not in state:
            state["square_avg"] = torch.ones_like(parameter)
        if group["weight_decay"]:
            grad = grad.add(parameter, alpha=group["weight_decay"])
        square = state["square_avg"]
        square.add_(grad.square() - square, alpha=1 - group["alpha"])
        mean_square = square
        if group["centered"]:
            mean = state.setdefault("grad_avg", torch.zeros_like(parameter))
            mean.add_(grad - mean, alpha=1 - group["alpha"])
            mean_square = square.addcmul(mean, mean, value=-1)
        update = grad / mean_square.add(group["eps"]).sqrt_()
        lr, inner = group["lr"], group["lr_in_momentum"]
        if group["momentum"]:
            buffer = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
            update = buffer.mul_(group["momentum"]).add_(update, alpha=lr if inner else 1.0)
            lr = 1.0 if inner else lr
        parameter.add_(update, alpha=-lr)
