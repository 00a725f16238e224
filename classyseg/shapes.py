"""Shapes without values: modules on torch's `meta` device, within bounds, faster than torch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from classyseg.errors import ConfigError

MIN_VALUES = 2
"""A batch norm needs this many values of each channel in training."""


MAX_MODULES = 8_000
MAX_PARAMETERS = 10**10
MAX_REAL_PARAMETERS = 250_000_000


@contextmanager
def bounded(*, real: bool = False, most: int | None = None) -> Iterator[None]:
    """Within the block, a model with absurdly many layers or parameters is refused while it is built.

    With `real`, parameters take memory, and more than a gigabyte of them is refused; `most` sets another limit.
    Raises: `ConfigError`.
    """
    modules, parameters = 0, 0
    if most is None:
        most = MAX_REAL_PARAMETERS if real else MAX_PARAMETERS

    def count_module(module: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > MAX_MODULES:
            raise ConfigError(f"a model of more than {MAX_MODULES} layers; choose smaller depths, or fewer blocks")

    def count_parameters(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters
        parameters += 0 if parameter is None else parameter.numel()
        if parameters > most:
            raise ConfigError(f"a model of more than {most:.0e} parameters; choose smaller widths, or fewer blocks")

    hooks = [
        register_module_module_registration_hook(count_module),
        register_module_parameter_registration_hook(count_parameters),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _conv2d(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    if isinstance(padding, str) or image.dim() != 4 or weight.dim() != 4 or image.dtype != weight.dtype:
        return None
    if image.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    size = [
        (image.shape[2 + i] + 2 * _pair(padding)[i] - _pair(dilation)[i] * (weight.shape[2 + i] - 1) - 1)
        // _pair(stride)[i]
        + 1
        for i in range(2)
    ]
    return image.new_empty(image.shape[0], weight.shape[0], *size) if min(size) > 0 else None


def _as_it_is(image: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    return image.new_empty(image.shape)


def _activation(values: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    known = all(isinstance(x, bool | int | float) or x in ("none", "tanh") for x in (*args, *kwargs.values()))
    return values.new_empty(values.shape) if known and values.is_floating_point() else None


def _square(values: Tensor, **kwargs: Any) -> Tensor | None:
    return values.new_empty(values.shape) if values.is_floating_point() and not kwargs else None


def _in_place(values: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    return values


def _add_in_place(first: Tensor, second: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    found = _elementwise(first, second, *args, **kwargs)
    return first if found is not None and found.shape == first.shape else None


def _batch_norm(
    image: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Tensor | None:
    known = next((value for value in (weight, running_mean) if value is not None), None)
    few = training and image.numel() < MIN_VALUES * image.shape[1]  # left to torch, whose error tells more
    return None if few or known is None or known.shape[0] != image.shape[1] else image.new_empty(image.shape)


def _group_norm(
    image: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor | None:
    if image.dim() < 2 or image.numel() < MIN_VALUES * image.shape[0] * num_groups or image.shape[1] % num_groups:
        return None
    return _as_it_is(image) if _are_of_shape([image.shape[1]], weight, bias) else None


def _layer_norm(
    values: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor | None:
    known = bool(shape) and list(values.shape[-len(shape) :]) == list(shape) and values.is_floating_point()
    return _as_it_is(values) if known and _are_of_shape(list(shape), weight, bias) else None


def _are_of_shape(shape: list[int], *tensors: Tensor | None) -> bool:
    return all(tensor is None or list(tensor.shape) == shape for tensor in tensors)


def _interpolate(image: Tensor, size: Any = None, scale_factor: Any = None, *args: Any, **kwargs: Any) -> Tensor | None:
    if size is None or image.dim() != 4 or min(image.shape) < 1 or min(_pair(size)) < 1:
        return None
    return image.new_empty(*image.shape[:2], *_pair(size))


def _adaptive_pool(image: Tensor, output_size: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    size = _pair(output_size)
    if image.dim() != 4 or None in size or min(image.shape) < 1:
        return None
    return image.new_empty(*image.shape[:2], *size)


def _max_pool2d(
    image: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    if ceil_mode or return_indices or image.dim() != 4:
        return None
    kernel, step = _pair(kernel_size), _pair(stride or kernel_size)
    size = [
        (image.shape[2 + i] + 2 * _pair(padding)[i] - _pair(dilation)[i] * (kernel[i] - 1) - 1) // step[i] + 1
        for i in range(2)
    ]
    return image.new_empty(*image.shape[:2], *size) if min(size) > 0 else None


def _elementwise(first: Any, second: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    if not isinstance(first, Tensor) or not first.is_floating_point() or kwargs:
        return None
    if isinstance(second, int | float):
        return first.new_empty(first.shape)
    if not isinstance(second, Tensor) or second.dtype != first.dtype:
        return None
    dims = max(first.dim(), second.dim())
    pairs = list(zip(*([1] * (dims - each.dim()) + list(each.shape) for each in (first, second)), strict=True))
    fits = all(a == b or 1 in (a, b) for a, b in pairs)
    return first.new_empty([max(pair) if min(pair) else 0 for pair in pairs]) if fits else None


def _cat(parts: Any, dim: int = 0) -> Tensor | None:
    first = parts[0]
    shapes = [list(part.shape) for part in parts]
    joined = shapes[0]
    for part, shape in zip(parts[1:], shapes[1:], strict=True):
        if part.dtype != first.dtype or len(shape) != len(joined):
            return None
        if any(a != b for i, (a, b) in enumerate(zip(joined, shape, strict=True)) if i != dim % len(joined)):
            return None
        joined[dim] += shape[dim]
    return first.new_empty(joined)


def _softmax(image: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Tensor | None:
    known = isinstance(dim, int) and -image.dim() <= dim < image.dim()
    return image.new_empty(image.shape) if known and image.is_floating_point() and not (args or kwargs) else None


def _matmul(first: Tensor, second: Any) -> Tensor | None:
    """The product of two matrices, of a stack and one matrix, or of two equally large stacks."""
    if not isinstance(second, Tensor) or first.dim() < 2 or first.dtype != second.dtype:
        return None
    alike = second.dim() == 2 or (second.dim() == first.dim() and second.shape[:-2] == first.shape[:-2])
    fits = alike and first.shape[-1] == second.shape[-2]
    return first.new_empty(*first.shape[:-1], second.shape[-1]) if fits else None


def _linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    fits = bias is None or bias.shape == weight.shape[:1]
    return _matmul(values, weight.T) if weight.dim() == 2 and fits else None


def _mean(image: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor | None:
    if dim is None or kwargs or not image.is_floating_point():
        return None
    given = (dim,) if isinstance(dim, int) else tuple(dim)
    if not given or not all(-image.dim() <= number < image.dim() for number in given):
        return None
    dims = {number % image.dim() for number in given}
    if len(dims) < len(given):
        return None
    kept = [1 if i in dims else side for i, side in enumerate(image.shape) if keepdim or i not in dims]
    return image.new_empty(kept)


_SHAPES: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv2d: _conv2d,
    F.relu: _as_it_is,
    F.relu_: _as_it_is,
    F.linear: _linear,
    torch.relu: _as_it_is,
    Tensor.relu: _as_it_is,
    F.batch_norm: _batch_norm,
    F.interpolate: _interpolate,
    F.adaptive_avg_pool2d: _adaptive_pool,
    F.max_pool2d: _max_pool2d,
    F.dropout: _as_it_is,
    F.dropout2d: _as_it_is,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh), _activation),
    **dict.fromkeys((F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.mish), _activation),
    **dict.fromkeys((F.relu6, F.selu, F.silu, F.softplus), _activation),
    **dict.fromkeys((Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_), _in_place),
    **{getattr(Tensor, name): _add_in_place for name in ("add_", "mul_", "__iadd__", "__imul__")},
    torch.cat: _cat,
    **dict.fromkeys((torch.mean, Tensor.mean, torch.sum, Tensor.sum), _mean),
    **dict.fromkeys((torch.square, Tensor.square), _square),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), _softmax),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.add, torch.mul, torch.sub), _elementwise),
    **{
        getattr(Tensor, name): _elementwise
        for name in ("add", "mul", "sub", "__add__", "__mul__", "__sub__", "__radd__", "__rmul__")
    },
}


class Shapes(TorchFunctionMode):
    """Within the block, functions that most convolutional networks use give tensors of the right shape, without values.

    torch itself runs them in Python on the `meta` device, and first imports its compiler and sympy, which takes a
    second of processor time. Calls that may be wrong are left to torch, whose errors say what is wrong.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shape = _SHAPES.get(func)
        if shape is not None and args:
            first = args[0][0] if func is torch.cat and args[0] else args[0]
            found = shape(*args, **(kwargs or {})) if isinstance(first, Tensor) and first.is_meta else None
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))
