"""Muon for matrices, with AdamW for all other parameters."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from classyseg.config import Text
from classyseg.optim.classy_optimizer import ClassyOptimizer
from classyseg.optim.groups import ParameterGroup
from classyseg.optim.options import Beta, LayerDecay, NotNegative, Positive, Schedules
from classyseg.optim.without_compiler import update
from classyseg.registry import OPTIMIZERS, ScheduleConfig
from classyseg.structures import RunLength

log = logging.getLogger(__name__)


@OPTIMIZERS.register("muon")
class Muon(ClassyOptimizer):
    """Momentum whose updates are made orthogonal, for matrices; all other parameters are trained by AdamW.

    Matrices are parameters of two dimensions, such as the linear layers of transformers. Kernels of convolutions,
    biases and norms are not: a network of convolutions is trained by AdamW alone, and the log says so. `lr` and
    `weight_decay` are those of both. A checkpoint holds the state of both.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; torch computes it.

    Args:
        lr: The base rate, which the schedule multiplies.
        momentum: Of the matrices, 0 or more, below 1.
        nesterov: Nesterov's momentum.
        adjust_lr: How a matrix's rate follows its shape. `match_rms_adamw` makes updates as large as AdamW's, so that
            one `lr` fits both; `original` is the inventors', for rates of about 0.02.
        num_iterations: Steps of the iteration that makes an update orthogonal.
        adamw_match: Patterns for the names of matrices that AdamW trains, too: classifiers and embeddings.
        betas: AdamW's decay of the two moments.
        eps: Added to AdamW's denominator.
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
        momentum: Beta = 0.95,
        nesterov: bool = True,
        adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        num_iterations: Annotated[int, Field(ge=1, lt=100)] = 5,
        adamw_match: tuple[Text, ...] = ("heads.*", "*bias_table*"),
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: Positive = 1e-8,
        weight_decay: NotNegative = 0.1,
        decay_vectors: bool = True,
        groups: tuple[ParameterGroup, ...] = (),
        schedule: ScheduleConfig = "constant",
        schedules: Schedules | None = None,
        clip_norm: Positive | None = None,
        clip_value: Positive | None = None,
        layer_decay: LayerDecay | None = None,
        zero: bool = False,
    ) -> None:
        self.momentum, self.nesterov = momentum, nesterov
        self.adjust_lr, self.num_iterations, self.adamw_match = adjust_lr, num_iterations, adamw_match
        self.betas, self.eps = betas, eps
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

    def kind_of(self, name: str, parameter: nn.Parameter) -> str:
        is_matrix = parameter.dim() == 2 and not any(fnmatchcase(name, pattern) for pattern in self.adamw_match)
        return MUON if is_matrix else ADAMW

    def torch_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return _MuonAndAdamW(groups, self)


MUON, ADAMW = "muon", "adamw"


class _MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW over one list of groups, with one state."""

    def __init__(self, groups: list[dict[str, Any]], options: Muon) -> None:
        super().__init__(groups, {"lr": options.lr})
        matrices, others = ([group for group in groups if group["kind"] == kind] for kind in (MUON, ADAMW))
        if not matrices:
            log.info("optimizer: found no matrix for Muon; AdamW trains all parameters")
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(
                torch.optim.Muon(
                    matrices,
                    momentum=options.momentum,
                    nesterov=options.nesterov,
                    ns_steps=options.num_iterations,
                    adjust_lr_fn=options.adjust_lr,
                )
            )
        if others:
            self._parts.append(torch.optim.AdamW(others, betas=options.betas, eps=options.eps))
        for part in self._parts:  # they read and write this one's state; groups are the same objects already
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self._parts:
            update(part)
