"""Submodules as blocks: their shapes, found by a run without values, and their outputs, kept for the heads."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from classyseg.console import shown
from classyseg.errors import ConfigError
from classyseg.models.memory.recompute import is_recomputing
from classyseg.models.meta import PROBE_SIZE, features_on_meta
from classyseg.structures import BlockInfo

if TYPE_CHECKING:
    from classyseg.models.classy_model import ClassyModel


def submodule_block(model: ClassyModel, name: str) -> BlockInfo:
    """The output of the submodule `name` as a block: a map (N, C, h, w), or vectors (N, count, C) with the stride 0.

    Raises: `ConfigError` for another kind of output, and for a submodule that does not run exactly once.
    """
    outputs: list[Any] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        features_on_meta(model, PROBE_SIZE)
    finally:
        handle.remove()
    if len(outputs) != 1:
        raise ConfigError(
            "blocks", f"{shown(name)} runs {len(outputs)} times in a forward pass; name a submodule that runs once"
        )
    (output,) = outputs
    if not isinstance(output, Tensor) or output.dim() not in (3, 4):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(
            "blocks",
            f"{shown(name)} puts out {found}; a head needs a feature map (N, C, h, w), or vectors (N, count, C)",
        )
    if output.dim() == 3:
        return BlockInfo(name, output.shape[2], 0)
    return BlockInfo(name, output.shape[1], round(PROBE_SIZE / output.shape[2]))


class Outputs:
    """The outputs of tapped submodules in the current forward pass, by thread; empty between passes."""

    def __init__(self) -> None:
        self.by_thread: dict[int, dict[str, Tensor]] = {}

    def put(self, name: str, output: Tensor) -> None:
        self.by_thread.setdefault(_thread(), {})[name] = output

    def take(self) -> dict[str, Tensor]:
        return self.by_thread.pop(_thread(), {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Outputs:
        memo[id(self)] = copy = Outputs()
        return copy

    def __reduce__(self) -> tuple[type[Outputs], tuple[()]]:
        return Outputs, ()


class Tap:
    """A forward hook that keeps a submodule's output for the heads; as an object, it is copied with its model."""

    handle: Any

    def __init__(self, outputs: Outputs, info: BlockInfo) -> None:
        self.outputs = outputs
        self.info = info

    def __call__(self, module: nn.Module, inputs: Sequence[Any], output: Tensor) -> None:
        if not is_recomputing():
            self.outputs.put(self.info.name, output.clone())  # a copy: the next layer may work in place


class Taps:
    """The tapped submodules of one model."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tap] = {}
        self.outputs = Outputs()

    def info(self, name: str) -> BlockInfo | None:
        return self.by_name[name].info if name in self.by_name else None

    def add(self, info: BlockInfo, module: nn.Module) -> None:
        """Taps `module` as the block `info`, once."""
        if info.name not in self.by_name:
            self.by_name[info.name] = tap = Tap(self.outputs, info)
            tap.handle = module.register_forward_hook(tap)

    def keep(self, names: Collection[str]) -> None:
        """Removes all other taps."""
        for name in [name for name in self.by_name if name not in names]:
            self.by_name.pop(name).handle.remove()

    def renew(self, model: nn.Module) -> None:
        """Taps the submodules again by name. Call it after submodules were replaced by others."""
        for name, tap in self.by_name.items():
            tap.handle.remove()
            tap.handle = model.get_submodule(name).register_forward_hook(tap)


def _thread() -> int:
    """Which thread runs this forward pass. A compiler traces one pass at a time, and cannot trace the question."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
