"""How each library builds the networks that ours are compared with, and where their blocks come out."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Sizes = tuple[tuple[int, int], ...]
Finish = Callable[[str, Any], Tensor]


def randomise(state: Mapping[str, Tensor]) -> None:
    """Draws weights, biases, norms and layer scales such that every layer tells in the output; the rest stays."""
    generator = torch.Generator().manual_seed(0)
    for key, value in state.items():
        leaf = key.rpartition(".")[2]
        if leaf in ("running_mean", "_mean") or leaf.endswith("bias"):
            value.normal_(0, 0.1, generator=generator)
        elif leaf in ("running_var", "_variance"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif leaf in ("gamma", "layer_scale") or (leaf == "weight" and value.dim() == 1):
            value.uniform_(0.5, 1, generator=generator)
        elif leaf.endswith("weight"):
            value.normal_(0, math.sqrt(2 / value[0].numel()), generator=generator)


def first(_node: str, output: Any) -> Tensor:
    return output[0] if isinstance(output, list | tuple) else output


def channels_first(_node: str, x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def rectified(*nodes: str) -> Finish:
    """A ReLU after these, which is no module of its own or one that runs more than once."""
    return lambda node, x: x.relu() if node in nodes else x


def as_map(side: int, tokens: int = 1, num_others: int = 1) -> Finish:
    """Maps of the tokens, which lie along the dimension `tokens`, without the class token."""

    def finish(_node: str, x: Tensor) -> Tensor:
        return x.movedim(tokens, 2)[:, :, num_others:].unflatten(2, (side, side)) if x.dim() == 3 else x

    return finish


def concatenated(_node: str, branches: Sequence[Tensor]) -> Tensor:
    size = branches[0].shape[2:]
    return torch.cat([F.interpolate(x, size, mode="bilinear", align_corners=False) for x in branches], 1)


class TorchReference:
    """A torch module; `nodes` are the submodules whose first outputs, finished, are the blocks."""

    def __init__(self, module: nn.Module, nodes: Sequence[str], finish: Finish) -> None:
        self.module = module.eval()
        randomise(module.state_dict())
        self.module.double()
        self.nodes = nodes
        self.finish = finish

    def state(self) -> Mapping[str, Tensor]:
        return self.module.state_dict()

    def blocks(self, image: Tensor) -> list[Tensor]:
        found: dict[str, Tensor] = {}

        def keep(node: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found.setdefault(node, self.finish(node, output).clone())

            return hook

        handles = [self.module.get_submodule(node).register_forward_hook(keep(node)) for node in self.nodes]
        self.module(image)
        for handle in handles:
            handle.remove()
        return [found[node] for node in self.nodes]


class PaddleReference:
    """A Paddle layer that returns its blocks as a list."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        layer.eval()
        layer.to(dtype="float64")
        self.tensors = {key: torch.from_numpy(value.numpy()) for key, value in layer.state_dict().items()}
        randomise(self.tensors)
        layer.set_state_dict({key: value.numpy() for key, value in self.tensors.items()})

    def state(self) -> Mapping[str, Tensor]:
        return self.tensors

    def blocks(self, image: Tensor) -> list[Tensor]:
        paddle = importlib.import_module("paddle")
        return [torch.from_numpy(x.numpy()) for x in self.layer(paddle.to_tensor(image.numpy()))]


def _of_torchvision(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    return importlib.import_module("torchvision.models").get_model(name, **arguments)


def _of_timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    return importlib.import_module("timm").create_model(name, **arguments)


def _of_classyvision(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    return importlib.import_module("classy_vision.models").build_model({"name": name, **arguments})


def _of_pytorch_encoding(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    with mock.patch("torch.utils.cpp_extension.load"):  # its C++, which no network here calls, fails with today's torch
        return _function("encoding.models.backbone", name)(**arguments)


def _of_paddleseg(name: str, arguments: Mapping[str, Any]) -> Any:
    sys.modules.setdefault("visualdl", mock.MagicMock())  # its plots, which are imported whether or not they are drawn
    return _function("paddleseg.models.backbones", name)(**arguments)


def _function(package: str, name: str) -> Callable[..., Any]:
    """`name` is the module and the function: not all are among what the package itself gives."""
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"{package}.{module}"), function)


LIBRARIES: dict[str, tuple[str, Callable[[str, Mapping[str, Any]], Any]]] = {
    "torchvision": ("torchvision", _of_torchvision),
    "timm": ("timm", _of_timm),
    "classyvision": ("classy_vision", _of_classyvision),
    "pytorch_encoding": ("encoding", _of_pytorch_encoding),
    "paddleseg": ("paddleseg", _of_paddleseg),
}
"""The package to import, and what builds a network of it by name."""


@dataclass(frozen=True)
class Case:
    """Our `name` with `config` beside the `library`'s `reference` with `arguments`.

    The blocks are what the reference's submodules `nodes` give, after `finish`; PaddleSeg's networks return them.
    """

    name: str
    library: str
    reference: str
    nodes: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    finish: Finish = first
    sizes: Sizes = ((96, 96), (97, 129))

    @property
    def module(self) -> str:
        return LIBRARIES[self.library][0]

    def build(self) -> TorchReference | PaddleReference:
        network = LIBRARIES[self.library][1](self.reference, self.arguments)
        return TorchReference(network, self.nodes, self.finish) if self.nodes else PaddleReference(network)


def rows(
    library: str,
    names: str | Mapping[str, str],
    nodes: Sequence[str] = (),
    *,
    both: Mapping[str, Any] | None = None,
    strides: str = "",
    **options: Any,
) -> list[Case]:
    """A case for each of our `names`, which are the library's, too, unless they are given with its own.

    `both` and each of the output `strides` are settings of one name here and there.
    """
    pairs = names if isinstance(names, Mapping) else {name: name for name in names.split()}
    settings = [{**(both or {}), "output_stride": int(stride)} for stride in strides.split()] or [both or {}]
    config, arguments = options.pop("config", {}), options.pop("arguments", {})
    return [
        Case(ours, library, theirs, nodes, {**config, **setting}, {**arguments, **setting}, **options)
        for setting in settings
        for ours, theirs in pairs.items()
    ]
