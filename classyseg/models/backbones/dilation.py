"""An output stride for networks whose layers are somebody else's: strides beyond it become dilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.models.classy_model import ClassyModel
from classyseg.models.meta import features_on_meta

PROBE_SIZE = 512

Strided = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d
Pair = tuple[int, int]


class PaddedConv2d(nn.Conv2d):
    """A convolution with zeros of its own on each side: what keeps an even kernel's grid without its stride."""

    before: Pair
    after: Pair

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        (top, left), (bottom, right) = self.before, self.after
        return F.conv2d(F.pad(x, (left, right, top, bottom)), self.weight, self.bias, 1, 0, self.dilation, self.groups)


class DilatedMaxPool2d(nn.Module):
    """The maximum over a kernel x kernel window whose taps lie `dilation` apart, at stride 1: (N, C, H, W) stays that.

    torch's own pads by no more than half a kernel.
    """

    def __init__(self, kernel: int, dilation: int, before: int, after: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.dilation = dilation
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.before, self.after, self.before, self.after), value=float("-inf"))
        return F.max_pool2d(x, self.kernel, 1, 0, self.dilation)


class DilatedAvgPool2d(nn.Module):
    """The mean over a kernel x kernel window whose taps lie `dilation` apart, at stride 1: (N, C, H, W) stays that.

    Zeros follow at the bottom and the right, which the positions of the strided pool do not read.
    """

    def __init__(self, kernel: int, dilation: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        reach = (self.kernel - 1) * self.dilation
        x = F.pad(x, (0, reach, 0, reach))
        taps = [i * self.dilation for i in range(self.kernel)]
        total = sum(x[:, :, i : i + height, j : j + width] for i in taps for j in taps)
        return total / self.kernel**2  # type: ignore[return-value]


def replace_stride_with_dilation(model: ClassyModel, output_stride: int) -> None:
    """Changes the convolutions and pools of `model` so that none goes beyond `output_stride`; the keys stay.

    To be called at the end of `__init__`. A layer that reads a map of stride s, beyond the target T, gets its dilation
    and padding times s / T; one that would go beyond T loses its stride. At the positions of the coarse grid the values
    stay what they were, except for means over the whole map (squeeze and excitation).

    Raises: `ValueError` for a layer that has no dilated counterpart.
    """
    strides = _input_strides(model)
    for name, module in list(model.named_modules()):
        if name not in strides or not isinstance(module, Strided):
            continue
        factor = max(1, strides[name] // output_stride)
        stride = _pair(module.stride)[0]
        loses = stride > 1 and strides[name] * stride > output_stride
        if factor > 1 or loses:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _dilated(module, factor, loses, name))


def _dilated(module: Any, factor: int, loses: bool, name: str) -> nn.Module:
    kernel, dilation = _pair(module.kernel_size), _pair(getattr(module, "dilation", 1))
    padding = _pair(module.padding)
    if isinstance(module, nn.AvgPool2d):
        if padding != (0, 0) or module.ceil_mode or not loses:
            raise ValueError(f"{name}: {module} has no dilated counterpart")
        return DilatedAvgPool2d(kernel[0], factor)
    reach = [(k - 1) * d * factor for k, d in zip(kernel, dilation, strict=True)]
    before = [p * factor for p in padding]
    after = [r - b for r, b in zip(reach, before, strict=True)]
    if isinstance(module, nn.MaxPool2d):
        if module.ceil_mode or not loses:
            raise ValueError(f"{name}: {module} has no dilated counterpart")
        return DilatedMaxPool2d(kernel[0], dilation[0] * factor, before[0], after[0])
    if loses:
        module.stride = (1, 1)
    if after == before:
        module.dilation = (dilation[0] * factor, dilation[1] * factor)
        module.padding = (before[0], before[1])
        return module
    if not loses:
        raise ValueError(f"{name}: {module} has no dilated counterpart")
    with torch.device("meta"):
        padded = PaddedConv2d(module.in_channels, module.out_channels, kernel, groups=module.groups)
    padded.weight, padded.bias = module.weight, module.bias
    padded.dilation = (dilation[0] * factor, dilation[1] * factor)
    padded.before, padded.after = (before[0], before[1]), (after[0], after[1])
    return padded


def _input_strides(model: ClassyModel) -> dict[str, int]:
    """The stride of the map that each convolution and pool reads, by name."""
    strides: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].dim() == 4 and inputs[0].shape[2] > 1:
                strides[name] = round(PROBE_SIZE / inputs[0].shape[2])

        return record

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, Strided)]
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers]
    try:
        features_on_meta(model, PROBE_SIZE)
    finally:
        for handle in handles:
            handle.remove()
    return strides


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
