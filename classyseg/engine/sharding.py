"""One model in several processes, each of which holds a part of its parameters, gradients and optimizer state."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from classyseg import distributed
from classyseg.errors import ConfigError
from classyseg.models import ClassyModel
from classyseg.models.meta import run_on_meta

log = logging.getLogger(__name__)

LARGEST_SHARE, SMALLEST_SHARE = 0.3, 0.01
"""A unit has at most and at least such a share of the parameters. What is left is gathered with the whole model."""
PROBE_SIZE = 64


class ShardedModel:
    """Shards the parameters of `model` that train, in place: torch's `fully_shard`.

    A unit's parameters are gathered before it runs, and freed afterwards. Parameters that do not train are whole in
    every process: they have neither gradients nor an optimizer state.

    All begin with the primary's weights. Raises: `ConfigError` for a parameter that cannot be shared out.
    """

    def __init__(self, model: ClassyModel, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        distributed.take_from_primary((*model.parameters(), *model.buffers()))
        if any(parameter.dim() == 4 and not parameter.is_contiguous() for parameter in model.parameters()):
            _keep_channels_last(model)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.dim() == 0:
                raise ConfigError(
                    "runtime.strategy", f"found fsdp, which cannot share out '{name}', a single number; take ddp"
                )
            parameter.data = parameter.data.contiguous()  # `fully_shard` takes no other layout
        frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
        self.model: Any = model
        self.units: list[Any] = units_of(model)
        options: dict[str, Any] = {
            "mesh": init_device_mesh(device.type, (distributed.world_size(),)),
            "reshard_after_forward": True,
            "ignored_params": frozen,
        }
        for unit in self.units:
            fully_shard(unit, **options)
        # What the root gathers is needed again when the backward pass begins: it stays until then.
        fully_shard(model, **{**options, "reshard_after_forward": False})
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._names = list(model.state_dict())

    def state(self) -> dict[str, Tensor]:
        """The model's state with the sharded parameters, whatever it has gathered at the moment."""
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        return {name: self._parameters[name] if name in self._parameters else buffers[name] for name in self._names}

    def hold(self) -> None:
        """Gathers all parameters until `release`. Meanwhile each process can run the model alone, without gradients.

        Every process calls it.
        """
        for part in (self.model, *self.units):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()

    def release(self) -> None:
        """Frees what was gathered. Call it also before the sharded parameters are changed or read."""
        for part in (self.model, *self.units):
            part.reshard()
        for unit in self.units:
            unit.set_reshard_after_forward(True, recurse=False)


def _keep_channels_last(model: nn.Module) -> None:
    """Lets convolutions give the layout that weights in this layout would: dropout draws in the order of the memory."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_pre_hook(_channels_last)


def _channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    image, *others = inputs
    return (image.contiguous(memory_format=torch.channels_last) if image.dim() == 4 else image, *others)


def units_of(model: ClassyModel) -> list[nn.Module]:
    """The submodules that are gathered one at a time: each runs as a whole, and nothing else reads its parameters.

    A run on the `meta` device finds them. A model that cannot run there is gathered as a whole.
    """
    shape = (2, *model.input_shape(PROBE_SIZE, PROBE_SIZE))
    uses = _Uses(model)
    try:
        run_on_meta(model, shape, uses, training=True)
    except Exception as error:  # a plugin's model may need values, and fail without them in any way
        log.info("%s is gathered as a whole, as it cannot run on the meta device: %s", type(model).__name__, error)
        return []
    total = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return list(_units_within(model, "", uses.able(), total))


def _units_within(module: nn.Module, path: str, able: set[str], total: int) -> Iterator[nn.Module]:
    for name, child in module.named_children():
        place = f"{path}{name}"
        size = sum(parameter.numel() for parameter in child.parameters() if parameter.requires_grad)
        if size < SMALLEST_SHARE * total:
            continue
        if place in able and size <= LARGEST_SHARE * total:
            yield child
            continue
        inner = list(_units_within(child, f"{place}.", able, total))
        if inner or place not in able:
            yield from inner
        else:
            yield child  # large, but in one piece


class _Uses:
    """Runs a model, and notes for each parameter in which submodules it was read."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.running: list[str] = []
        self.calls: defaultdict[str, int] = defaultdict(int)
        self.readers: defaultdict[str, list[set[str]]] = defaultdict(list)
        """For each name of a parameter, the submodules that ran, at each use of it."""

    def __call__(self, image: Tensor) -> Any:
        # On the `meta` device the model has other tensors than before: they are looked up now.
        names: defaultdict[int, list[str]] = defaultdict(list)
        for path, module in self.model.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:  # a tied one has several names
                    names[id(parameter)].append(f"{path}.{name}" if path else name)
        hooks = []
        for name, module in self.model.named_modules():
            if isinstance(module, _BatchNorm):
                module.training = False  # it would ask the other processes for their statistics
            hooks += [
                module.register_forward_pre_hook(lambda *_, name=name: self._begin(name)),
                module.register_forward_hook(lambda *_, name=name: self._end(), always_call=True),
            ]
        try:
            with torch.enable_grad(), _Reading(names, self):  # as in training: what is recomputed runs otherwise
                return self.model(image)
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, name: str) -> None:
        self.calls[name] += 1
        self.running.append(name)

    def _end(self) -> None:
        self.running.pop()

    def able(self) -> set[str]:
        """The submodules that run once, while any of their parameters is read."""
        found = {name for name, count in self.calls.items() if name and count == 1}
        for parameter, uses in self.readers.items():
            for running in uses:
                found -= {name for name in found if parameter.startswith(f"{name}.") and name not in running}
        return found


class _Reading(TorchFunctionMode):
    def __init__(self, names: Mapping[int, Sequence[str]], uses: _Uses) -> None:
        super().__init__()
        self.names, self.uses = names, uses

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            for name in self.names.get(id(value), ()):
                self.uses.readers[name].append(set(self.uses.running))
        return func(*args, **(kwargs or {}))
