"""Activation checkpointing: layers whose activations are computed again in the backward pass instead of kept."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_thread = threading.local()


def recomputed(layer: nn.Module, *inputs: Tensor) -> Any:
    """`layer(*inputs)` whose inner activations are not kept; of an `nn.Sequential`, each part's inputs are.

    Running statistics are updated once, and dropout draws the same numbers again.
    """
    if isinstance(layer, nn.Sequential) and len(inputs) == 1:
        x: Any = inputs[0]
        for part in layer:
            x = checkpoint(part, x, use_reentrant=False, context_fn=partial(_contexts, part))
        return x
    return checkpoint(layer, *inputs, use_reentrant=False, context_fn=partial(_contexts, layer))


def is_recomputing() -> bool:
    """Whether this thread runs a forward pass for the second time, for the gradients."""
    return not torch.compiler.is_compiling() and getattr(_thread, "recomputing", False)


def _contexts(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return contextlib.nullcontext(), _second_time(layer)


@contextlib.contextmanager
def _second_time(layer: nn.Module) -> Iterator[None]:
    norms: list[Any] = [module for module in layer.modules() if getattr(module, "track_running_stats", False)]
    _thread.recomputing = True
    for norm in norms:
        if norm.training:  # it normalises by the batch as before, and leaves the statistics alone
            norm.track_running_stats = False
    try:
        yield
    finally:
        _thread.recomputing = False
        for norm in norms:
            norm.track_running_stats = True
