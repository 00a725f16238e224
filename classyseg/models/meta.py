"""Runs a model on torch's `meta` device, without values and without changing it: what shapes it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from classyseg.errors import ConfigError

if TYPE_CHECKING:
    from classyseg.models.classy_model import ClassyModel

T = TypeVar("T")
PROBE_SIZE = 256
"""The side of the image with which channels and strides are found."""


def run_on_meta(
    model: nn.Module, shape: Sequence[int], call: Callable[[Tensor], T] | None = None, *, training: bool = False
) -> T | Any:
    """The result of `call`, by default `model` itself, for an input of `shape` on the `meta` device.

    `call` runs `model` or a part of it. Meanwhile parameters and buffers lie on `meta`, and the model is in training or
    eval mode; afterwards all is as before. Within `classyseg.shapes.Shapes` most networks take a part of the time.
    Errors of torch and of the model are raised as they are.
    """
    state = {
        name: value if value.is_meta else torch.empty_like(value, device="meta")
        for name, value in chain(model.named_parameters("model"), model.named_buffers("model"))
    }
    dtype = next((value.dtype for value in state.values() if value.is_floating_point()), None)
    modes = [(module, module.training) for module in model.modules()]
    calls = _Calls(model, call or model)
    model.train(training)
    try:
        with torch.no_grad():
            return functional_call(calls, state, torch.empty(*shape, device="meta", dtype=dtype))
    finally:
        for module, mode in modes:
            module.training = mode


def features_on_meta(model: ClassyModel, size: int) -> dict[str, Tensor]:
    """The features of one input of `size` x `size`, in eval mode.

    Raises: `ConfigError` for a backbone that needs values, or other sizes of images.
    """
    try:
        return run_on_meta(model, (1, *model.input_shape(size, size)), model.extract_features)
    except Exception as error:  # a plugin's backbone may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"{type(model).__name__} cannot be run on torch's meta device with {size} x {size} pixels, which tells "
            f"the shapes of what it computes: {reason}"
        ) from error


class _Calls(nn.Module):
    """Has the model's tensors, and any function as its forward pass: `functional_call` takes a module only."""

    call: Callable[[Tensor], Any]

    def __init__(self, model: nn.Module, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        object.__setattr__(self, "call", call)  # not as a submodule: its tensors would come twice

    def forward(self, image: Tensor) -> Any:
        return self.call(image)
