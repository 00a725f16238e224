"""torch's own optimizers: SGD, Adam, AdamW and RMSProp."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from classyseg.errors import ConfigError
from classyseg.optim import zero
from classyseg.optim.classy_optimizer import ClassyOptimizer
from classyseg.optim.groups import ParameterGroup
from classyseg.optim.options import Beta, LayerDecay, NotNegative, Positive, Schedules
from classyseg.registry import OPTIMIZERS, ScheduleConfig
from classyseg.structures import RunLength


@OPTIMIZERS.register("sgd")
class SGD(ClassyOptimizer):
    """Stochastic gradient descent with momentum.

    Args:
        lr: The base rate, which the schedule multiplies.
        momentum: 0 or more, below 1.
        nesterov: Nesterov's momentum.
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
        self.momentum = momentum
        self.nesterov = nesterov
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
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


@OPTIMIZERS.register("adam")
class Adam(ClassyOptimizer):
    """Adam, whose weight decay is L2 in the gradient. Take `adamw` for a decay that the moments do not scale.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.

    Args:
        lr: The base rate, which the schedule multiplies.
        betas: Decay of the two moments. `schedules` calls the first one `momentum`.
        eps: Added to the denominator.
        amsgrad: Divides by the largest second moment so far.
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
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: Positive = 1e-8,
        amsgrad: bool = False,
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
        self.betas = betas
        self.eps = eps
        self.amsgrad = amsgrad
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
        return torch.optim.Adam(groups, lr=self.lr, betas=self.betas, eps=self.eps, amsgrad=self.amsgrad)


@OPTIMIZERS.register("adamw")
class AdamW(ClassyOptimizer):
    """Adam with decoupled weight decay.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.

    Args:
        lr: The base rate, which the schedule multiplies.
        betas: Decay of the two moments. `schedules` calls the first one `momentum`.
        eps: Added to the denominator.
        amsgrad: Divides by the largest second moment so far.
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
        eps: Positive = 1e-8,
        amsgrad: bool = False,
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
        self.betas = betas
        self.eps = eps
        self.amsgrad = amsgrad
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
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, amsgrad=self.amsgrad)


@OPTIMIZERS.register("rmsprop")
class RMSProp(ClassyOptimizer):
    """RMSProp as torch computes it. The published recipes of EfficientNet and MobileNetV3 need `rmsprop_tf`.

    Source: Tieleman and Hinton, "Lecture 6.5: rmsprop", Coursera 2012.

    Args:
        lr: The base rate, which the schedule multiplies.
        alpha: Decay of the mean of squares.
        eps: Added to the denominator.
        momentum: 0 or more, below 1.
        centered: Divides by the deviation of the gradient in place of the root of its mean square.
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
        alpha: Beta = 0.99,
        eps: Positive = 1e-8,
        momentum: Beta = 0.0,
        centered: bool = False,
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
        return torch.optim.RMSprop(
            groups, lr=self.lr, alpha=self.alpha, eps=self.eps, momentum=self.momentum, centered=self.centered
        )

    def set_progress(self, share_done: float) -> None:
        super().set_progress(share_done)
        if "momentum" not in self.schedules:
            return
        # torch makes the memory of the momentum in the first step alone, and not if the momentum is 0 then.
        for state in zero.own_part(self.optimizer).state.values():
            if state and "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(state["square_avg"])
