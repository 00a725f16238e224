"""Batch norm folded into the convolutions before it, for inference."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from classyseg.layers.same import SameConv2d
from classyseg.models.classy_model import ClassyModel

Model = TypeVar("Model", bound=ClassyModel)
PROBE_SIZE = 64
FOLDABLE = (nn.Conv2d, nn.Conv3d, SameConv2d)


def fuse(model: Model) -> Model:
    """A copy of `model` in eval mode that gives the same outputs with fewer operations. It cannot be trained.

    If only a batch norm reads the output of a convolution, it is folded into the convolution and becomes an identity.
    Kernels, and so maps, are laid out channels last, which is faster on most machines. The copy's state dict has other
    keys: save and load that of the original.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    modules = dict(twin.named_modules())
    for conv, norm in _pairs(twin):
        _replace(twin, conv, fuse_conv_bn_eval(modules[conv], modules[norm]))  # type: ignore[type-var]
        _replace(twin, norm, nn.Identity())
    twin.taps.renew(twin)
    for module in twin.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return twin


def _pairs(model: ClassyModel) -> list[tuple[str, str]]:
    """Pairs of names: a convolution, and the batch norm that alone reads its output. A forward pass finds them."""
    modules = {name: module for name, module in model.named_modules() if not any(module.children())}
    reads = _Reads()
    handles = [module.register_forward_hook(reads.watch(name)) for name, module in modules.items()]
    try:
        with torch.no_grad(), reads:
            parameter = next(model.parameters())
            image = torch.zeros(1, *model.input_shape(PROBE_SIZE, PROBE_SIZE))
            features = model.forward_features(image.to(parameter))
            model(features)
    finally:
        for handle in handles:
            handle.remove()
    given = {reads.makers.get(id(value)) for value in features.values()} | model.blocks_read()
    return [
        (conv, names[0])
        for conv, names in reads.readers.items()
        if len(names) == 1
        and _folds(modules[names[0]])
        and reads.runs[conv] == reads.runs[names[0]] == reads.uses[conv] == 1
        and conv not in given
    ]


def _folds(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


class _Reads(TorchFunctionMode):
    """Records which modules made and read the outputs of convolutions, and how many of torch's functions read them."""

    def __init__(self) -> None:
        super().__init__()
        self.makers: dict[int, str] = {}
        self.readers: dict[str, list[str]] = {}
        self.runs: Counter[str] = Counter()
        self.uses: Counter[str] = Counter()
        self.kept: list[Tensor] = []  # kept alive, so that no `id` is used twice

    def watch(self, name: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.runs[name] += 1
            for value in inputs:
                if id(value) in self.makers:
                    self.readers.setdefault(self.makers[id(value)], []).append(name)
            if isinstance(output, Tensor) and type(module) in FOLDABLE:
                self.makers[id(output)] = name
                self.kept.append(output)

        return record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor | tuple | list) and not isinstance(output, torch.Size):
            read = {id(value) for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
            self.uses.update(self.makers[value] for value in read if value in self.makers)
        return output


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
