"""Batch norm folded into the convolutions before it, for inference."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from classyseg.layers.same import SameConv2d
from classyseg.models.classy_model import ClassyModel

Model = TypeVar("Model", bound=ClassyModel)
PROBE_SIZE = 64


def fuse(model: Model) -> Model:
    """A copy of `model` in eval mode that gives the same outputs with fewer operations; to be used, not trained.

    A batch norm that reads the output of one convolution, which nothing else reads, is folded into it and becomes an
    identity. The state dict of the copy is its own: save and load that of the original.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    modules = dict(twin.named_modules())
    for conv, norm in _pairs(twin):
        _replace(twin, conv, fuse_conv_bn_eval(modules[conv], modules[norm]))  # type: ignore[type-var]
        _replace(twin, norm, nn.Identity())
    twin.renew_taps()
    return twin


def _pairs(model: ClassyModel) -> list[tuple[str, str]]:
    """The names of convolutions with the batch norm that alone reads each one's output, found by a forward pass."""
    makers: dict[int, str] = {}
    readers: dict[str, list[str]] = {}
    runs: dict[str, int] = {}
    kept: list[Tensor] = []  # so that no identity is given twice

    def watch(name: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            runs[name] = runs.get(name, 0) + 1
            for value in inputs:
                if id(value) in makers:
                    readers.setdefault(makers[id(value)], []).append(name)
            if isinstance(output, Tensor) and type(module) in (nn.Conv2d, nn.Conv3d, SameConv2d):
                makers[id(output)] = name
                kept.append(output)

        return record

    modules = {name: module for name, module in model.named_modules() if not any(module.children())}
    handles = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            parameter = next(model.parameters())
            image = torch.zeros(1, *model.input_shape(PROBE_SIZE, PROBE_SIZE))
            model(image.to(parameter))
    finally:
        for handle in handles:
            handle.remove()
    tapped = {block.name for head in model.heads.values() for block in head.blocks}  # type: ignore[union-attr]
    return [
        (conv, names[0])
        for conv, names in readers.items()
        if len(names) == 1
        and isinstance(modules[names[0]], nn.BatchNorm2d | nn.BatchNorm3d)
        and runs[conv] == runs[names[0]] == 1
        and conv not in tapped
    ]


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
