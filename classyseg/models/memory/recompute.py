"""Activation checkpointing: layers whose activations are computed again in the backward pass instead of kept."""

from __future__ import annotations

import contextlib
import threading
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_thread = threading.local()


def recomputed(layer: nn.Module, *inputs: Tensor) -> Any:
    """`layer(*inputs)` whose inner activations are not kept; of an `nn.Sequential` of blocks, each block's input is.

    A sequence of plain layers, which may work in place on one another's outputs, counts as one layer. Running
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
    """Whether this thread runs a forward pass for the second time, for the gradients."""
    return not torch.compiler.is_compiling() and getattr(_thread, "recomputing", False)


def _contexts(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return contextlib.nullcontext(), _SecondTime(layer)


class _SecondTime(AbstractContextManager[None]):
    """Around a forward pass for the gradients; it can be entered again, as a graph that is kept is."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.before: list[tuple[Any, float | None, Tensor]] = []

    def __enter__(self) -> None:
        _thread.recomputing = True
        for module in self.layer.modules():
            norm: Any = module
            if getattr(norm, "num_batches_tracked", None) is not None:
                self.before.append((norm, norm.momentum, norm.num_batches_tracked))
                # It normalises by the batch as before, gives the statistics a share of 0 in it, and counts in a copy.
                norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()

    def __exit__(self, *_: object) -> None:
        _thread.recomputing = False
        for norm, momentum, count in self.before:
            norm.momentum, norm.num_batches_tracked = momentum, count
        self.before.clear()
