"""Submodules as blocks: what they put out is kept for the heads that read them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from classyseg.models.memory.recompute import is_recomputing
from classyseg.structures import BlockInfo


class Tapped:
    """What tapped submodules put out in the forward pass under way, by thread; empty between passes."""

    def __init__(self) -> None:
        self.outputs: dict[int, dict[str, Tensor]] = {}

    def put(self, name: str, output: Tensor) -> None:
        self.outputs.setdefault(_thread(), {})[name] = output

    def take(self) -> dict[str, Tensor]:
        return self.outputs.pop(_thread(), {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tapped:
        memo[id(self)] = copy = Tapped()
        return copy

    def __reduce__(self) -> tuple[type[Tapped], tuple[()]]:
        return Tapped, ()


class Tap:
    """A forward hook that keeps a submodule's output for the heads; an object, so that a copied model has its own."""

    handle: Any

    def __init__(self, tapped: Tapped, info: BlockInfo) -> None:
        self.tapped = tapped
        self.info = info

    def __call__(self, module: nn.Module, inputs: Sequence[Any], output: Tensor) -> None:
        if not is_recomputing():
            self.tapped.put(self.info.name, output.clone())  # what follows may work in place


def _thread() -> int:
    """Whose forward pass this is. A compiler traces one pass at a time."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
