"""Activation checkpointing: activations are not kept, but computed again in the backward pass."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from classyseg.console import shown
from classyseg.errors import ConfigError
from classyseg.models.meta import PROBE_SIZE, features_on_meta

if TYPE_CHECKING:
    from classyseg.models.classy_model import ClassyModel

_thread = threading.local()


def checkpoint_activations(model: ClassyModel, blocks: bool | Sequence[str] = True) -> None:
    """In training, keeps only the inputs of these blocks' layers, and computes the rest again for the gradients.

    `True` means all layers that the backbone runs by `run_layer`, `False` none.

    Raises: `ConfigError` for an unknown block, for a block whose layers cannot be computed again, and with `True` for a
    backbone without any other block.
    """
    if not blocks:
        for module in model.modules():
            module.recompute = False  # type: ignore[assignment]
        return
    layers = _layers_run(model)
    by_block = {block: [layer for layer in layers if layer in _made(model, block)] for block in model.declared_blocks}
    able = [block for block, found in by_block.items() if found]
    if blocks is True:
        if not able:
            raise ConfigError(
                "activation_checkpointing",
                f"found true, but {type(model).__name__} runs no layer of a block through `self.run_layer`",
            )
        wanted = layers
    else:
        for block in blocks:
            if block not in able:
                raise ConfigError(
                    "activation_checkpointing", f"found {shown(block)}; it is one of {', '.join(able) or 'none'}"
                )
        wanted = [layer for block in blocks for layer in by_block[block]]
    for layer in layers:
        layer.recompute = layer in wanted  # type: ignore[assignment]


def recomputes(model: nn.Module) -> bool:
    """Whether some layer's activations are computed again. A compiler cannot take such a model."""
    return any(getattr(module, "recompute", False) for module in model.modules())


def _layers_run(model: ClassyModel) -> list[nn.Module]:
    """The layers that the backbone runs by `run_layer`, found by a run on the `meta` device."""
    layers: list[nn.Module] = []

    def run_layer(layer: nn.Module, *inputs: Tensor) -> Any:
        layers.append(layer)
        return layer(*inputs)

    model.__dict__["run_layer"] = run_layer  # an attribute of the instance hides the method meanwhile
    try:
        features_on_meta(model, PROBE_SIZE)
    finally:
        del model.__dict__["run_layer"]
    return layers


def _made(model: ClassyModel, block: str) -> list[nn.Module]:
    """The submodules that make `block`, without single parameters."""
    modules = dict(model.named_modules())
    return [modules[name] for name in model.layers_of(block) if name in modules]


def recomputed(layer: nn.Module, *inputs: Tensor) -> Any:
    """`layer(*inputs)` without keeping inner activations. For an `nn.Sequential` of blocks, each block's input is kept.

    A sequence of plain layers counts as one layer, as they may work in place on each other's outputs. Running
    statistics are updated once, and dropout draws the same numbers again.
    """
    plain = isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward
    if plain and all(any(part.children()) for part in layer.children()):
        x: Any = inputs[0]
        for part in layer.children():
            x = checkpoint(part, x, use_reentrant=False, context_fn=partial(_contexts, part))
        return x
    return checkpoint(layer, *inputs, use_reentrant=False, context_fn=partial(_contexts, layer))


def is_recomputing() -> bool:
    """Whether this thread computes activations again, in the backward pass."""
    return not torch.compiler.is_compiling() and getattr(_thread, "recomputing", False)


def _contexts(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return contextlib.nullcontext(), _SecondTime(layer)


class _SecondTime(AbstractContextManager[None]):
    """Surrounds the second forward pass. It can be entered several times: a kept graph may be used again."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.before: list[tuple[Any, float | None, Tensor]] = []

    def __enter__(self) -> None:
        _thread.recomputing = True
        for module in self.layer.modules():
            norm: Any = module
            if getattr(norm, "num_batches_tracked", None) is not None:
                self.before.append((norm, norm.momentum, norm.num_batches_tracked))
                # The norm uses the batch's statistics as before, but with a momentum of 0 and a copy of the counter
                # nothing changes.
                norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()

    def __exit__(self, *_: object) -> None:
        _thread.recomputing = False
        for norm, momentum, count in self.before:
            norm.momentum, norm.num_batches_tracked = momentum, count
        self.before.clear()
