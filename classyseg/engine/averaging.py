"""An exponential moving average of a model's weights, and how it takes their place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from classyseg.averaging import AveragingConfig
from classyseg.sharded import local


class Averaging:
    """Keeps the average of the weights of `model`, which may be sharded: then each process averages its part.

    It holds one tensor for each weight that trains, and for each buffer of floats unless these are copied. What does
    not train, or is an integer, is the model's own. There is no second model: `swap` exchanges the numbers.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 1992.
    """

    def __init__(self, model: nn.Module, config: AveragingConfig) -> None:
        self.config = config
        self.num_steps = 0
        """The steps since the averaging began; also those from which nothing was learnt."""
        self.is_swapped = False
        """Whether the model has the average, and this object the model's own weights."""
        self.named: dict[str, Tensor] = {}
        """By the names of the model's state. Tied weights have several names."""
        by_identity: dict[int, Tensor] = {}
        for name, own in model.state_dict(keep_vars=True).items():
            trains = own.requires_grad if isinstance(own, nn.Parameter) else config.buffers == "average"
            if trains and own.is_floating_point():
                self.named[name] = by_identity.setdefault(id(own), own.detach().clone())
        parameters = {id(own): own for own in model.parameters() if id(own) in by_identity}
        buffers = {
            id(own): (module._buffers, key)
            for module in model.modules()
            for key, own in module._buffers.items()
            if id(own) in by_identity
        }
        self._parameters = [local(own.detach()) for own in parameters.values()]
        # A layer may put a new tensor in the place of a buffer: they are looked up each time.
        self._buffers = list(buffers.values())
        self._averages = [local(by_identity[key]) for key in (*parameters, *buffers)]
        self.buffers = [by_identity[key] for key in buffers]
        named = (*model.named_parameters(), *model.named_buffers())
        self.by_module_name = {name: by_identity[id(own)] for name, own in named if id(own) in by_identity}
        """By the names that `torch.func.functional_call` takes."""

    def _own(self) -> list[Tensor]:
        """What the model has, in the order of the averages."""
        return [*self._parameters, *(tensors[key] for tensors, key in self._buffers)]  # type: ignore[list-item]

    def restart(self) -> None:
        """Begins with the model's weights, as they are now."""
        self.num_steps = 0
        self._copy()

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights after step `num_steps` into the average."""
        config, since = self.config, self.num_steps - self.config.start_step
        if since <= 0:
            self._copy()
        elif since % config.every == 0:
            decay = config.decay_of(since // config.every - 1)
            torch._foreach_lerp_(self._averages, self._own(), 1 - decay)

    @torch.no_grad()
    def _copy(self) -> None:
        torch._foreach_copy_(self._averages, self._own())

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the numbers of the model and of the average, one tensor after the other."""
        self.is_swapped = not self.is_swapped
        for weights, average in zip(self._own(), self._averages, strict=True):
            before = weights.clone()
            weights.copy_(average)
            average.copy_(before)

    def average_of(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's `state` with the average in it."""
        return dict(state) if self.is_swapped else {**state, **self.named}

    def own_of(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's `state` with its own weights in it."""
        return {**state, **self.named} if self.is_swapped else dict(state)
