"""A model run on torch's `meta` device: the shapes of what it computes, without values and without changing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from classyseg.config import ConfigError

if TYPE_CHECKING:
    from classyseg.models.classy_model import ClassyModel

T = TypeVar("T")
PROBE_SIZE = 256
"""The side of the image by which channels and strides are found."""


def run_on_meta(
    model: nn.Module, shape: Sequence[int], call: Callable[[Tensor], T] | None = None, *, training: bool = False
) -> T | Any:
    """What `call`, by default `model` itself, gives for an input of `shape` on the `meta` device.

    `call` runs `model` or a part of it. Meanwhile parameters and buffers lie on `meta`, and the model is in training
    or in eval mode; afterwards all are as before. Within `classyseg.shapes.Shapes` most networks need a part of the
    time. Whatever goes wrong is raised as torch or the model raise it.
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

    Raises: `ConfigError` for a backbone that needs values, or images of another size.
    """
    try:
        return run_on_meta(model, (1, *model.input_shape(size, size)), model.extract_features)
    except Exception as error:  # of a plugin's own kind
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"{type(model).__name__} cannot be run on torch's meta device with {size} x {size} pixels, which tells "
            f"the shapes of what it computes: {reason}"
        ) from error


class _Calls(nn.Module):
    """Has the model's tensors as its own, and any function as its forward: what `functional_call` takes."""

    call: Callable[[Tensor], Any]

    def __init__(self, model: nn.Module, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        object.__setattr__(self, "call", call)  # not a submodule, whose tensors would come twice

    def forward(self, image: Tensor) -> Any:
        return self.call(image)
