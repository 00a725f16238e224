"""What a network costs: parameters, multiply-adds and activations of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry


@dataclass(frozen=True)
class Cost:
    """`multiply_adds` counts each product that is added to a sum as one, as papers do.

    `activations` are the numbers that convolutions and matrix products give; attention counts its result.
    """

    parameters: int
    multiply_adds: int
    activations: int


@dataclass(frozen=True)
class Complexity(Cost):
    """The cost of a whole network. `by_module` has that of each module by its name in torch, its children included.

    Convolutions, matrix products and attention are counted; norms, activation functions and resizing are not.
    """

    by_module: dict[str, Cost]


def complexity(module: nn.Module, run: Callable[[], Any]) -> Complexity:
    """The cost of `module` in the forward pass that `run` makes; shapes on the `meta` device are enough.

    Source: torch's own counter, `torch.utils.flop_counter`, whose operations are two for each multiply-add. What counts
    as an activation is as in Radosavovic et al., "Designing Network Design Spaces", CVPR 2020, and in fvcore.
    """
    names = [name for name, _ in module.named_modules() if name]
    multiply_adds, activations = (dict.fromkeys(("", *names), 0) for _ in range(2))
    active: list[str] = []

    def counted(formula: Callable[..., int]) -> Callable[..., int]:
        def count(*given: Any, out_val: Any = None, **options: Any) -> int:
            operations = formula(*given, out_val=out_val, **options)
            result = next((leaf for leaf in tree_leaves(out_val) if isinstance(leaf, Tensor)), None)
            for name in {"", *active}:
                multiply_adds[name] += operations // 2
                activations[name] += 0 if result is None else result.numel()
            return operations

        count._get_raw = True  # type: ignore[attr-defined]  # torch's counter hands the tensors on, not their shapes
        return count

    handles = []
    for name, part in module.named_modules():
        if name:
            handles.append(part.register_forward_pre_hook(lambda *_, name=name: active.append(name)))
            handles.append(part.register_forward_hook(lambda *_: active.pop() and None, always_call=True))
    formulas = {operation: counted(formula) for operation, formula in flop_registry.items()}
    try:
        with FlopCounterMode(display=False, custom_mapping=formulas):
            run()
    finally:
        for handle in handles:
            handle.remove()
    parameters = {name: _parameters(part) for name, part in module.named_modules()}
    costs = {name: Cost(parameters[name], multiply_adds[name], activations[name]) for name in ("", *names)}
    whole = costs.pop("")
    return Complexity(whole.parameters, whole.multiply_adds, whole.activations, costs)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
