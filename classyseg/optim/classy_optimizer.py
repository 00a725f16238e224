"""The contract of optimizers: a torch optimizer over named groups of parameters; its options follow schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from classyseg import distributed
from classyseg.config import unknown
from classyseg.console import MAX_NAME, printable, shown
from classyseg.errors import ConfigError, within
from classyseg.optim import zero
from classyseg.optim.classy_scheduler import ClassyScheduler
from classyseg.optim.groups import ParameterGroup, split
from classyseg.optim.without_compiler import making_optimizers, update
from classyseg.registry import SCHEDULERS, Configurable
from classyseg.sharded import clip_norm, filled_like, is_sharded
from classyseg.structures import Depths, RunLength

NUM_CHECKED = 1000
"""A schedule is tried at so many places of a run, evenly spread."""
LAST_SHARE = 1 - 1e-7
"""What is done of a long run before its last step."""


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
        layer_decay: float | None = None,
        zero: bool = False,
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
        self.layer_decay = layer_decay
        self.zero = zero
        self.parameters = {name: parameter for name, parameter in _pairs(named_parameters) if parameter.requires_grad}
        if not self.parameters:
            raise ConfigError("found no parameter that needs a gradient")
        self.decay_vectors = decay_vectors
        self.groups = [ParameterGroup.model_validate(group) for group in groups]
        self._depths: Depths | None = None
        self._counts_on_device = False
        self.norm_before_clipping: Tensor | None = None
        """The norm of all gradients of the last step, on the device; None without `clip_norm`."""
        self._split()

    def _split(self) -> None:
        found = split(
            self.groups,
            self.parameters,
            weight_decay=self.weight_decay,
            decay_vectors=self.decay_vectors,
            kind_of=self.kind_of,
            layer_decay=self.layer_decay,
            depths=self._depths,
        )
        self.names = [group.names for group in found]
        self.lr_factors = [group.lr_factor for group in found]
        self._decays = [group.weight_decay for group in found]
        self._kinds = [group.kind for group in found]
        self._labels = [group.label for group in found]

    def kind_of(self, name: str, parameter: nn.Parameter) -> str:
        """How an optimizer that treats parameters in several ways treats this one. Torch's groups tell it as `kind`."""
        return ""

    def use_depths(self, depths: Depths) -> None:
        """Tells how deep in the model each parameter is, which `layer_decay` needs, before the first use.

        Learning rates are multiplied by `layer_decay ** (deepest - depth)`. Raises: `ValueError` afterwards.
        """
        self._require_unused()
        self._depths = depths
        self._split()

    def adopt(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Takes parameters in place of those of the same names, before the first use: sharding a model makes new ones.

        Raises: `ValueError` afterwards; `ConfigError` for sharded parameters with `zero`.
        """
        self._require_unused()
        parameters = dict(named_parameters)
        self.parameters = {name: parameters[name] for name in self.parameters}
        if self.zero and any(is_sharded(parameter) for parameter in self.parameters.values()):
            raise ConfigError(
                "zero", "found true, but runtime.strategy: fsdp shares the optimizer's state already; leave it out"
            )

    def _require_unused(self) -> None:
        if "optimizer" in vars(self):
            raise ValueError("the optimizer is in use; give it depths and other parameters before its first use")

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
                    instead = "the learning rate's is the key schedule." if option == "lr" else ""
                    raise ConfigError(unknown("option", option, self.scheduled, instead=instead))
                found[option] = SCHEDULERS.build(config, length)
                found[option].refuse_min_lr()
                base = self.base_of(option)
                if not base:
                    raise ConfigError(
                        f"found a schedule, but {option} is 0, and a schedule multiplies it: give it a value"
                    )
                most = base * max(found[option](min(i / NUM_CHECKED, LAST_SHARE)) for i in range(NUM_CHECKED + 1))
                if option == "momentum" and most >= 1:
                    raise ConfigError(f"gives a momentum of {most:g}; expected one below 1 throughout")
        return found

    def base_of(self, option: str) -> float:
        """The value of one of the `scheduled` options that its schedule multiplies."""
        value: float = self.betas[0] if self._is_in_betas(option) else getattr(self, option)  # type: ignore[attr-defined]
        return value

    def _is_in_betas(self, option: str) -> bool:
        return option == "momentum" and not hasattr(self, option)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """torch's optimizer, made at its first use: a check of a config needs none."""
        if self.layer_decay is not None and self._depths is None:
            raise ValueError(
                "layer_decay needs the parameters' depths; call use_depths(models.parameter_depths(model))"
            )
        groups = [
            {"params": [self.parameters[name] for name in names], "weight_decay": decay}
            | ({"kind": kind} if kind else {})
            for names, decay, kind in zip(self.names, self._decays, self._kinds, strict=True)
        ]
        is_shared = self.zero and distributed.world_size() > 1
        with making_optimizers():
            optimizer = zero.shared(groups, self.torch_optimizer) if is_shared else self.torch_optimizer(groups)
        self._set_options(optimizer, 0.0)
        if self._counts_on_device:
            self._let_count_on_device(optimizer)
        return optimizer

    def _set_options(self, optimizer: torch.optim.Optimizer, share_done: float) -> None:
        self.current_lr = self.lr * self.schedule(share_done)
        factors = {option: schedule(share_done) for option, schedule in self.schedules.items()}
        for i, (group, lr_factor) in enumerate(zip(optimizer.param_groups, self.lr_factors, strict=True)):
            group["lr"] = self.current_lr * lr_factor
            for option, factor in factors.items():
                if option == "weight_decay":  # each group has its own
                    group[option] = self._decays[i] * factor
                elif self._is_in_betas(option):
                    group["betas"] = (self.base_of(option) * factor, group["betas"][1])
                elif option in group:
                    group[option] = self.base_of(option) * factor

    @abstractmethod
    def torch_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The torch optimizer over `groups`, which hold `params` and `weight_decay`; and `kind`, see `kind_of`."""

    def set_progress(self, share_done: float) -> None:
        """Sets the learning rates and scheduled options of the next step.

        `share_done`, in [0, 1), is the share of the run before it.
        """
        self._set_options(self.optimizer, share_done)

    def count_on_device(self) -> None:
        """Lets torch's optimizers that count their steps (Adam) do it on the device, where a step can be undone."""
        self._counts_on_device = True
        if "optimizer" in vars(self):
            self._let_count_on_device(self.optimizer)

    def _let_count_on_device(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True

    def zero_grad(self) -> None:
        self.norm_before_clipping = None  # else that of an earlier step, if nothing is learnt from the next one
        if type(self.optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
            self.optimizer.zero_grad(set_to_none=True)
            return
        # What torch's own does, in a tenth of its time: that one also writes to a profile and leaves a compiled graph.
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self) -> None:
        """One update by the gradients, which are finite and not scaled."""
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(self._in_groups(), self.clip_value)
        if self.clip_norm is not None:
            self.norm_before_clipping = clip_norm(self._in_groups(), self.clip_norm)
        update(self.optimizer)

    def _in_groups(self) -> list[nn.Parameter]:
        return [self.parameters[name] for names in self.names for name in names]

    def numbers(self) -> dict[str, Any]:
        """What the last step was made with: `gradient_norm` of all gradients, before `clip_norm`, and `groups`.

        By group: `lr` and the other scheduled options, `gradient_norm` after clipping, `weight_norm` after the step.
        It waits for the device. Every process calls it: parameters may be spread over them.
        """
        groups: dict[str, dict[str, float]] = {}
        for label, names, group in zip(self._labels, self.names, self.optimizer.param_groups, strict=True):
            parameters = [self.parameters[name] for name in names]
            options = {key: group[key] for key in ("lr", *self.scheduled) if isinstance(group.get(key), int | float)}
            if "betas" in group and "momentum" in self.scheduled:
                options["momentum"] = group["betas"][0]
            norms = {"gradient_norm": _norm([p.grad for p in parameters]), "weight_norm": _norm(parameters)}
            groups[label] = {**options, **norms}
        whole = self.norm_before_clipping
        if whole is None:
            whole = torch.tensor([group["gradient_norm"] for group in groups.values()], dtype=torch.float64).norm()
        return {"gradient_norm": _number(whole), "groups": groups}

    # -- state -------------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Tensor]:
        """The tensors of the state that this process holds and a step changes, by `PARAMETER/KEY`."""
        own = zero.own_part(self.optimizer).state
        return {
            f"{name}/{key}": torch.as_tensor(value)
            for names in self.names
            for name in names
            for key, value in own.get(self.parameters[name], {}).items()
            if value is not None
        }

    def state(self) -> dict[str, Tensor]:
        """The optimizer's state: tensors by `PARAMETER/KEY`. Every process calls it.

        With `zero`, it has the values of all processes, on the host. Values of sharded parameters are sharded, too.
        """
        own = self.own_state()
        return zero.from_all_processes(own, self.parameters) if zero.is_shared(self.optimizer) else own

    def load_state(self, state: Mapping[str, Tensor], num_steps: int | None = None) -> None:
        """Takes what `state()` gave after `num_steps` steps.

        Raises: `ConfigError` for an impossible state: of another parameter, of another shape or type, not finite, or of
            more steps.
        """
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, _, option = key.rpartition("/")
            by_name.setdefault(name, {})[option] = value
        parameters = self.parameters
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
        part = zero.own_part(self.optimizer)
        for parameter in chain.from_iterable(group["params"] for group in part.param_groups):
            part.state[parameter] = {}
        for name, found in by_name.items():
            parameter = parameters[name]
            # torch keeps `step`, a count, on the host, unless told otherwise; the other values are like the parameter.
            place = parameter.device if parameter in on_device else torch.device("cpu")
            if parameter in part.state:
                part.state[parameter] = {
                    option: value.to(place, copy=True) if option == "step" else filled_like(parameter, value)
                    for option, value in found.items()
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


def _pairs(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, nn.Parameter]]:
    """Raises: `TypeError` for parameters without names, whose rows would be taken for pairs."""
    for pair in named_parameters:
        if not isinstance(pair, tuple):
            raise TypeError(
                f"named_parameters: found a {type(pair).__name__}; give names, too, such as model.named_parameters()"
            )
        yield pair


def _norm(tensors: Sequence[Tensor | None]) -> float:
    """The Euclidean norm of all values."""
    return _number(nn.utils.get_total_norm([tensor.detach() for tensor in tensors if tensor is not None]))


def _number(norm: Tensor) -> float:
    """The value of a norm, which may be spread over the processes."""
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
