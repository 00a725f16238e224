"""Activation compression: what autograd keeps for the backward pass, in fewer bits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

if TYPE_CHECKING:
    from classyseg.models.classy_model import ClassyModel

Compression = Literal["none", "bfloat16", "int8"]
MIN_ELEMENTS = 4096
"""Smaller tensors stay as they are: they hold statistics, and take little memory."""
LEVELS = 255


class Packed:
    """A compressed tensor. It is an object, so that several uses of one activation can share it."""

    __slots__ = ("__weakref__", "dtype", "offset", "scale", "values")

    def __init__(self, tensor: Tensor, how: Compression) -> None:
        self.dtype = tensor.dtype
        self.scale: Tensor | None = None
        if how == "bfloat16":
            self.values = tensor.to(torch.bfloat16)
            return
        # A scale for each sample and channel of a map, and for each token of a sequence.
        axes = _group_axes(tensor)
        low, high = torch.aminmax(tensor.flatten(axes[0]), dim=-1)
        low, high = (value.reshape(*value.shape, *[1] * len(axes)).float() for value in (low, high))
        self.offset, self.scale = low, (high - low).clamp(min=torch.finfo(torch.float32).tiny) / LEVELS
        levels = ((tensor - low) / self.scale).round_()
        # Rounding never moves a value down to the minimum: the gradient of a ReLU depends on which values are zero.
        self.values = torch.where(tensor > low, levels.clamp_(1, LEVELS), 0).to(torch.uint8)

    def tensor(self) -> Tensor:
        if self.scale is None:
            return self.values.to(self.dtype)
        return (self.values * self.scale + self.offset).to(self.dtype)


def _group_axes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(range(2, tensor.dim())) if tensor.dim() >= 4 else (tensor.dim() - 1,)


def _is_smaller_packed(tensor: Tensor, how: Compression) -> bool:
    """Whether the packed values (in 8-bit form with 8 bytes for each group) take less memory than the tensor."""
    if how == "bfloat16":
        return tensor.element_size() > 2
    num_groups = tensor.numel() // math.prod(tensor.shape[axis] for axis in _group_axes(tensor))
    return tensor.numel() + 8 * num_groups < tensor.numel() * tensor.element_size()


class _Key(NamedTuple):
    storage: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    version: int


class Packer:
    """Packs the activations of one forward pass. An activation that several operations keep is packed once."""

    def __init__(self, how: Compression, left_alone: Collection[Tensor]) -> None:
        self.how = how
        self.left_alone = {tensor.untyped_storage().data_ptr() for tensor in left_alone}
        # Autocast keeps a copy of each weight, and layers may change weights before use: copies are known by their
        # shapes.
        self.weights = {shape for tensor in left_alone if isinstance(tensor, nn.Parameter) for shape in _forms(tensor)}
        self.packed: WeakValueDictionary[_Key, Packed] = WeakValueDictionary()
        # A freed storage's address may be used again. A weak reference keeps it from meaning another tensor.
        self.storages: dict[int, StorageWeakRef] = {}

    def pack(self, tensor: Tensor) -> Tensor | Packed:
        if not tensor.is_floating_point() or tensor.numel() < MIN_ELEMENTS or tensor.dim() < 2:
            return tensor
        if tuple(tensor.shape) in self.weights or not _is_smaller_packed(tensor, self.how):
            return tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.left_alone:
            return tensor
        reference = StorageWeakRef(storage)
        self.storages.setdefault(reference.cdata, reference)
        key = _Key(
            reference.cdata, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()), tensor._version
        )
        packed = self.packed.get(key)
        if packed is None:
            packed = self.packed[key] = Packed(tensor.detach(), self.how)
        return packed

    @staticmethod
    def unpack(kept: Any) -> Tensor:
        return kept.tensor() if isinstance(kept, Packed) else kept


def _forms(weight: Tensor) -> set[tuple[int, ...]]:
    """The shapes in which operations take a weight: its own, transposed, and as rows of one sample (standardised)."""
    shape = tuple(weight.shape)
    if len(shape) < 2:
        return set()
    return {shape, shape[::-1], (1, shape[0], weight.numel() // max(1, shape[0]))}


def compressed(model: ClassyModel, image: Tensor) -> AbstractContextManager[Any]:
    """A context for the forward pass of `model`: autograd keeps activations as `activation_compression` says.

    They are kept as `bfloat16`, or as 8 bits between the extremes of each channel. The forward pass computes with full
    values. Gradients that read an activation lose the bits that were not kept. Tensors that live anyway are left alone:
    parameters and their copies, buffers and `image`. So are tensors that would not get smaller: under autocast to 16
    bits, `bfloat16` finds little to do. Masks (of dropout, arg-max) stay as they are.

    Source: the 8-bit form is that of Chen et al., "ActNN", ICML 2021, with one group for each sample and channel and
    rounding to nearest.
    """
    if model.activation_compression == "none" or not model.training or not torch.is_grad_enabled():
        return contextlib.nullcontext()
    packer = Packer(model.activation_compression, [image, *model.parameters(), *model.buffers()])
    return saved_tensors_hooks(packer.pack, packer.unpack)
