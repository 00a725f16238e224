"""SGD and AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from classyseg.errors import ConfigError
from classyseg.optim.classy_optimizer import ClassyOptimizer, ParameterGroup
from classyseg.registry import OPTIMIZERS, ScheduleConfig
from classyseg.structures import RunLength

Positive = Annotated[float, Field(gt=0, le=1e6)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
Beta = Annotated[float, Field(ge=0, lt=1)]


@OPTIMIZERS.register("sgd")
class SGD(ClassyOptimizer):
    """Stochastic gradient descent with momentum. `clip_norm` bounds the norm of the whole gradient.

    Args:
        lr: The base rate, which the schedule multiplies.
        momentum: 0 or more, below 1.
        nesterov: Nesterov's momentum.
        weight_decay: L2, added to the gradient.
        decay_vectors: false: no decay for parameters of one dimension, which are biases and the scales of norms.
        groups: See key `groups`.
        schedule: A schedule.
        clip_norm: Bounds the L2 norm of the whole gradient.
    """

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
        clip_norm: Positive | None = None,
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
            clip_norm=clip_norm,
        )

    def torch_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


@OPTIMIZERS.register("adamw")
class AdamW(ClassyOptimizer):
    """Adam with decoupled weight decay. `clip_norm` bounds the norm of the whole gradient.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.

    Args:
        lr: The base rate, which the schedule multiplies.
        betas: Decay of the two moments.
        eps: Added to the denominator.
        weight_decay: Decoupled.
        decay_vectors: false: no decay for parameters of one dimension, which are biases and the scales of norms.
        groups: See key `groups`.
        schedule: A schedule.
        clip_norm: Bounds the L2 norm of the whole gradient.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        length: RunLength,
        *,
        lr: Positive,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: Positive = 1e-8,
        weight_decay: NotNegative = 0.01,
        decay_vectors: bool = True,
        groups: tuple[ParameterGroup, ...] = (),
        schedule: ScheduleConfig = "constant",
        clip_norm: Positive | None = None,
    ) -> None:
        self.betas = betas
        self.eps = eps
        super().__init__(
            named_parameters,
            length,
            lr=lr,
            weight_decay=weight_decay,
            decay_vectors=decay_vectors,
            groups=groups,
            schedule=schedule,
            clip_norm=clip_norm,
        )

    def torch_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)
