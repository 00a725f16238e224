"""The contract of optimizers: a torch optimizer over named groups of parameters; its options follow schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from classyseg.config import unknown
from classyseg.console import MAX_NAME, printable, shown
from classyseg.errors import ConfigError, within
from classyseg.optim.classy_scheduler import ClassyScheduler
from classyseg.optim.groups import ParameterGroup, split
from classyseg.registry import SCHEDULERS, Configurable
from classyseg.sharded import clip_norm, filled_like
from classyseg.structures import RunLength

NUM_CHECKED = 1000
"""A schedule is tried at so many places of a run, evenly spread."""


class ClassyOptimizer(Configurable, ABC):
    """Built as `Optimizer(named_parameters, length, *, options)`, where `length` is the run's.

    A subclass passes the shared options to the base and gives `torch_optimizer`. Parameters that need no gradient are
    left out. With `decay_vectors: false`, biases and scales of norms have no weight decay, whatever their names.
    """

    replaced = {"__init__(num_epochs)": "take `length`, a `RunLength` with `epochs` and `steps`, in its place"}
    scheduled: ClassVar[tuple[str, ...]] = ("weight_decay",)
    """The options, besides the learning rate, that `schedules` may name: numbers in torch's groups. `momentum` is the
    first of `betas` where the groups have these."""

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
        clip_value: float | None = None,
        schedules: Mapping[str, Any] | None = None,
    ) -> None:
        RunLength.require(length)
        self.lr = lr
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self._schedule_config = schedule
        self._schedule_configs = dict(schedules or {})
        self.schedule: ClassyScheduler = self.schedule_for(length)
        self.schedules = self.schedules_for(length)
        """The schedules of other options than the learning rate, by the option's name."""
        self.current_lr = lr * self.schedule(0.0)
        parameters = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
        if not parameters:
            raise ConfigError("found no parameter that needs a gradient")
        found = split(
            [ParameterGroup.model_validate(group) for group in groups],
            parameters,
            weight_decay=weight_decay,
            decay_vectors=decay_vectors,
            kind_of=self.kind_of,
        )
        self.names = [group.names for group in found]
        self.lr_factors = [group.lr_factor for group in found]
        self._decays = [group.weight_decay for group in found]
        self._torch_groups = [
            {
                "params": [parameters[name] for name in group.names],
                "weight_decay": group.weight_decay,
                "kind": group.kind,
            }
            for group in found
        ]

    def kind_of(self, name: str, parameter: nn.Parameter) -> str:
        """How an optimizer that treats parameters in several ways treats this one. Torch's groups tell it as `kind`."""
        return ""

    def adopt(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Takes parameters in place of those of the same names: sharding a model makes new ones.

        To be called before the optimizer is first used. Raises: `ValueError` afterwards.
        """
        if "optimizer" in vars(self):
            raise ValueError("the optimizer is in use; give it other parameters before its first use")
        parameters = dict(named_parameters)
        for names, group in zip(self.names, self._torch_groups, strict=True):
            group["params"] = [parameters[name] for name in names]

    # -- schedules ---------------------------------------------------------------------------------------------------

    def schedule_for(self, length: RunLength) -> ClassyScheduler:
        """The same schedule of the learning rate for a run of another length."""
        with within("schedule"):
            schedule: ClassyScheduler = SCHEDULERS.build(self._schedule_config, length)
            schedule.take_base(self.lr)
        return schedule

    def schedules_for(self, length: RunLength) -> dict[str, ClassyScheduler]:
        """The same schedules of other options for a run of another length. Raises: `ConfigError`."""
        found: dict[str, ClassyScheduler] = {}
        for option, config in self._schedule_configs.items():
            with within(f"schedules.{option}"):
                if option not in self.scheduled:
                    instead = "the learning rate's is the key schedule" if option == "lr" else ""
                    raise ConfigError(unknown("option", option, self.scheduled, instead=instead))
                found[option] = SCHEDULERS.build(config, length)
                found[option].refuse_min_lr()
                base = self.base_of(option)
                if not base:
                    raise ConfigError(
                        f"found a schedule, but {option} is 0, and a schedule multiplies it: give it a value"
                    )
                most = base * max(found[option](i / NUM_CHECKED) for i in range(NUM_CHECKED))
                if option == "momentum" and most >= 1:
                    raise ConfigError(f"gives a momentum of {most:g}; expected one below 1 throughout")
        return found

    def base_of(self, option: str) -> float:
        """The value of one of the `scheduled` options that its schedule multiplies."""
        betas = getattr(self, "betas", None)
        value: float = betas[0] if option == "momentum" and betas is not None else getattr(self, option)
        return value

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """torch's optimizer, made at its first use: torch imports its compiler for it, which a check does not need."""
        optimizer = self.torch_optimizer(self._torch_groups)
        self._set_options(optimizer, 0.0)
        return optimizer

    def _set_options(self, optimizer: torch.optim.Optimizer, share_done: float) -> None:
        self.current_lr = self.lr * self.schedule(share_done)
        factors = {option: schedule(share_done) for option, schedule in self.schedules.items()}
        for i, (group, lr_factor) in enumerate(zip(optimizer.param_groups, self.lr_factors, strict=True)):
            group["lr"] = self.current_lr * lr_factor
            for option, factor in factors.items():
                if option == "weight_decay":  # each group has its own
                    group[option] = self._decays[i] * factor
                elif option == "momentum" and "betas" in group:
                    group["betas"] = (self.base_of(option) * factor, group["betas"][1])
                elif option in group:
                    group[option] = self.base_of(option) * factor

    @abstractmethod
    def torch_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The torch optimizer over `groups`, which hold `params`, `weight_decay` and the `kind` of the parameters."""

    def set_progress(self, share_done: float) -> None:
        """Sets the learning rates and scheduled options of the next step.

        `share_done`, in [0, 1), is the share of the run before it.
        """
        self._set_options(self.optimizer, share_done)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """One update; `scaler` is that of float16 training, which skips it when a gradient is not finite."""
        if scaler is not None and (self.clip_norm is not None or self.clip_value is not None):
            scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(parameters, self.clip_value)
        if self.clip_norm is not None:
            clip_norm(parameters, self.clip_norm)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

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
        for name, parameter in parameters.items():
            # torch keeps `step`, a count, on the host; the other values are like the parameter.
            self.optimizer.state[parameter] = {
                option: value.clone() if option == "step" else filled_like(parameter, value)
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
