"""What a network costs: parameters, and multiply-adds of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Complexity:
    """`multiply_adds` counts each product that is added to a sum as one, as papers do. `by_module` has them for each
    module by its name in torch, its children included.

    Convolutions, matrix products and attention are counted; norms, activations and resizing are not.
    """

    parameters: int
    multiply_adds: int
    by_module: dict[str, int]


def complexity(module: nn.Module, run: Callable[[], Any]) -> Complexity:
    """The cost of `module` in the forward pass that `run` makes; shapes on the `meta` device are enough.

    Source: torch's own counter, `torch.utils.flop_counter`, whose operations are two for each multiply-add.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    root = type(module).__name__
    by_module = {
        name.removeprefix(f"{root}."): sum(counts.values()) // 2
        for name, counts in counter.get_flop_counts().items()
        if name not in ("Global", root)
    }
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Complexity(parameters, counter.get_total_flops() // 2, by_module)
