"""The contract of optimizers: a torch optimizer over named groups of parameters; its rate follows a schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import ConfigRecord, Float, Text, closest
from classyseg.console import MAX_NAME, printable, shown
from classyseg.errors import ConfigError, within
from classyseg.optim.schedules import ClassyScheduler
from classyseg.registry import SCHEDULERS, Configurable
from classyseg.structures import RunLength


class ParameterGroup(ConfigRecord):
    """The parameters whose names match `match`, a pattern with `*` and `?`, and factors for their options.

    A parameter belongs to the first group that matches it. A pattern that gets no parameter is an error.

    ```yaml
    optimizer:
      name: sgd
      lr: 0.01
      groups:
        - {match: "heads.*", lr_factor: 10}
        - {match: "layer1.*", lr_factor: 0}
    ```

    Args:
        match: A pattern with `*` and `?` for the whole name, such as `heads.*` or `layer1.*`.
        lr_factor: Multiplies the learning rate.
        weight_decay_factor: Multiplies the weight decay.
    """

    match: Text
    lr_factor: Annotated[Float, Field(ge=0, le=1e6)] = 1.0
    weight_decay_factor: Annotated[Float, Field(ge=0, le=1e6)] = 1.0


class ClassyOptimizer(Configurable, ABC):
    """Built as `Optimizer(named_parameters, length, *, options)`, where `length` is the run's.

    A subclass passes the shared options to the base and gives `torch_optimizer`. Parameters that need no gradient are
    left out. With `decay_vectors: false`, biases and scales of norms have no weight decay, whatever their names.
    """

    replaced = {"__init__(num_epochs)": "take `length`, a `RunLength` with `epochs` and `steps`, in its place"}

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        length: RunLength,
        *,
        lr: float,
        weight_decay: float,
        decay_vectors: bool,
        groups: Sequence[ParameterGroup | Mapping[str, Any]],
        schedule: Any,
        clip_norm: float | None,
    ) -> None:
        RunLength.require(length)
        self.lr = lr
        self.clip_norm = clip_norm
        self._schedule_config = schedule
        self.schedule: ClassyScheduler = self.schedule_for(length)
        self.current_lr = lr * self.schedule(0.0)
        parameters = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
        if not parameters:
            raise ConfigError("found no parameter that needs a gradient")
        self.names: list[list[str]] = []
        self.lr_factors: list[float] = []
        torch_groups = []
        for group, names in _split([ParameterGroup.model_validate(group) for group in groups], parameters):
            for vectors in (False, True):
                chosen = [name for name in names if (parameters[name].dim() <= 1) == vectors]
                if chosen:
                    decay = weight_decay * group.weight_decay_factor * (decay_vectors or not vectors)
                    torch_groups.append({"params": [parameters[name] for name in chosen], "weight_decay": decay})
                    self.names.append(chosen)
                    self.lr_factors.append(group.lr_factor)
        self._torch_groups = torch_groups

    def schedule_for(self, length: RunLength) -> ClassyScheduler:
        """The same schedule for a run of another length."""
        with within("schedule"):
            schedule: ClassyScheduler = SCHEDULERS.build(self._schedule_config, length)
        return schedule

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """torch's optimizer, made at its first use: torch imports its compiler for it, which a check does not need."""
        optimizer = self.torch_optimizer(self._torch_groups)
        self._set_rates(optimizer, 0.0)
        return optimizer

    def _set_rates(self, optimizer: torch.optim.Optimizer, share_done: float) -> None:
        self.current_lr = self.lr * self.schedule(share_done)
        for group, factor in zip(optimizer.param_groups, self.lr_factors, strict=True):
            group["lr"] = self.current_lr * factor

    @abstractmethod
    def torch_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The torch optimizer over `groups`, which hold `params` and `weight_decay`."""

    def set_progress(self, share_done: float) -> None:
        """Sets the learning rates of the next step; `share_done`, in [0, 1), is the share of the run before it."""
        self._set_rates(self.optimizer, share_done)

    def count_on_device(self) -> None:
        """Lets torch's optimizers that count their steps (Adam) do it on the device, where a step can be undone."""
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One update by the gradients, which are finite and not scaled."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(
                (p for group in self.optimizer.param_groups for p in group["params"]), self.clip_norm
            )
        self.optimizer.step()

    # -- state -------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The optimizer's state: tensors by `PARAMETER/KEY`."""
        found: dict[str, Tensor] = {}
        for names, group in zip(self.names, self.optimizer.param_groups, strict=True):
            for name, parameter in zip(names, group["params"], strict=True):
                for key, value in self.optimizer.state.get(parameter, {}).items():
                    if value is not None:
                        found[f"{name}/{key}"] = torch.as_tensor(value)
        return found

    def load_state(self, state: Mapping[str, Tensor], num_steps: int | None = None) -> None:
        """Takes what `state()` gave after `num_steps` steps.

        Raises: `ConfigError` for an impossible state: of another parameter, of another shape or type, not finite, or of
            more steps.
        """
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, _, option = key.rpartition("/")
            by_name.setdefault(name, {})[option] = value
        parameters = {
            name: parameter
            for names, group in zip(self.names, self.optimizer.param_groups, strict=True)
            for name, parameter in zip(names, group["params"], strict=True)
        }
        if strangers := by_name.keys() - parameters.keys():
            listed = ", ".join(printable(name, MAX_NAME) for name in sorted(strangers)[:5])
            raise ConfigError(f"the saved state is of other parameters: {listed}")
        for names in self.names:
            kinds = {", ".join(sorted(by_name[name])): name for name in names if name in by_name}
            if len(kinds) > 1:
                told = [f"{shown(name, MAX_NAME)} has {shown(options)}" for options, name in list(kinds.items())[:2]]
                raise ConfigError(" and ".join(told))
        for name, found in by_name.items():
            for option, value in found.items():
                if problem := self.problem_of_state(option, value, parameters[name], num_steps):
                    raise ConfigError(f"{shown(f'{name}/{option}', MAX_NAME)}: {problem}")
        counting = [group["params"] for group in self.optimizer.param_groups if group.get("capturable")]
        on_device = set(chain.from_iterable(counting))
        for name, parameter in parameters.items():
            # torch keeps `step`, a count, on the host, unless told otherwise; the other values are like the parameter.
            place = parameter.device if parameter in on_device else torch.device("cpu")
            self.optimizer.state[parameter] = {
                option: value.to(place, copy=True)
                if option == "step"
                else torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                for option, value in by_name.get(name, {}).items()
            }

    def problem_of_state(self, option: str, value: Tensor, parameter: Tensor, num_steps: int | None) -> str | None:
        """What is wrong with a saved value of `parameter`; None if nothing is.

        An optimizer with values that are not like the parameter overrides it.
        """
        if option == "step":
            if value.dim() or value.dtype != torch.float32:
                return f"found {list(value.shape)} of {value.dtype}; expected one number of torch.float32"
            count = float(value)
            if not count.is_integer() or count < 0 or (num_steps is not None and count > num_steps):
                return f"found {count:g} after {num_steps} steps of the run"
        elif value.shape != parameter.shape or value.dtype != parameter.dtype:
            wanted = f"{list(parameter.shape)} of {parameter.dtype}"
            return f"found {list(value.shape)} of {value.dtype}; expected {wanted}"
        elif not bool(value.isfinite().all()):
            return "holds numbers that are not finite"
        return None


def _split(
    groups: Sequence[ParameterGroup], parameters: Mapping[str, nn.Parameter]
) -> list[tuple[ParameterGroup, list[str]]]:
    """Each group with the names that it gets; the rest is in a last group, without factors.

    Raises: `ConfigError` for a pattern that gets no parameter.
    """
    left = list(parameters)
    found = []
    for i, group in enumerate(groups):
        names = [name for name in left if fnmatchcase(name, group.match)]
        if not names:
            near = closest(group.match, {name.split(".")[0] + ".*" for name in parameters})
            raise ConfigError(
                f"groups[{i}].match",
                f"found {shown(group.match)}, which matches no parameter that is left"
                f"{f'; did you mean {near!r}?' if near else ''}; names are such as {next(iter(parameters))}",
            )
        left = [name for name in left if name not in set(names)]
        found.append((group, names))
    return [*found, (ParameterGroup(match="*"), left)]
