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
        """The steps since the averaging began."""
        self.is_swapped = False
        """Whether the model has the average, and this object the model's own weights."""
        self.named: dict[str, Tensor] = {}
        """By the names of the model's state. Tied weights have several names."""
        by_identity: dict[int, Tensor] = {}
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for name, own in model.state_dict(keep_vars=True).items():
            trains = own.requires_grad if isinstance(own, nn.Parameter) else config.buffers == "average"
            if not trains or not own.is_floating_point():
                continue
            if id(own) not in by_identity:
                by_identity[id(own)] = own.detach().clone()
                self._pairs.append((local(own.detach()), local(by_identity[id(own)])))
            self.named[name] = by_identity[id(own)]
        parameters, buffers = (
            {name: by_identity[id(own)] for name, own in named if id(own) in by_identity}
            for named in (model.named_parameters(), model.named_buffers())
        )
        self.buffers = list(buffers.values())
        self.by_module_name = {**parameters, **buffers}
        """By the names that `torch.func.functional_call` takes."""
        self._weights, self._averages = ([pair[i] for pair in self._pairs] for i in (0, 1))

    def restart(self) -> None:
        """Begins with the model's weights, as they are now."""
        self.num_steps = 0
        self._copy()

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights after a step into the average."""
        self.num_steps += 1
        config, since = self.config, self.num_steps - self.config.start_step
        if since <= 0:
            self._copy()
        elif since % config.every == 0:
            decay = config.decay_of(since // config.every - 1)
            torch._foreach_lerp_(self._averages, self._weights, 1 - decay)

    @torch.no_grad()
    def _copy(self) -> None:
        torch._foreach_copy_(self._averages, self._weights)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the numbers of the model and of the average, one tensor after the other."""
        self.is_swapped = not self.is_swapped
        for weights, average in self._pairs:
            before = weights.clone()
            weights.copy_(average)
            average.copy_(before)

    def average_of(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's `state` with the average in it."""
        return dict(state) if self.is_swapped else {**state, **self.named}

    def own_of(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's `state` with its own weights in it."""
        return {**state, **self.named} if self.is_swapped else dict(state)
