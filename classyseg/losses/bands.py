"""Losses of resized logits in bands of rows: full-size logits are never held, and gradients are made on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from classyseg.layers import interpolation_matrix, row_tap_range
from classyseg.switches import float32_matmul_precision

CHUNK_BYTES = {"cpu": 4_000_000}
DEFAULT_CHUNK_BYTES = 128_000_000
"""Bytes of a chunk of full-size logits: a processor's cache holds it; other devices are kept busy by it."""

Run = Callable[[Tensor, Tensor | None], Tensor]
"""A function of logits (N, C, h, w) and of the tensor for their gradient, if wanted. It gives the loss."""

Rule = Callable[[Tensor, int, slice, bool], Tensor]
"""A function of a band (C, rows, W) of full-size logits, its image and its rows. It gives the band's loss and, if
wanted, leaves the gradient in the band."""


def as_pixels(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, C, h, w) and their target as they are; a classification's as N pixels of one image."""
    if logits.dim() == 4:
        return logits, target
    soft = target.dim() == 2
    return logits.T[None, :, None], target.T[None, :, None] if soft else target[None, None]


def with_gradient(logits: Tensor, run: Run) -> Tensor:
    """The value of `run` in float32 (float64 for float64 logits), with the gradient that `run` writes."""
    wanted = torch.is_grad_enabled() and logits.requires_grad
    return _WithGradient.apply(logits, run, wanted)


def sum_over_pixels(logits: Tensor, size: Sequence[int], rule: Rule) -> Tensor:
    """The sum of `rule` over all bands of the logits (N, C, h, w) at `size` (H, W), with its gradient."""

    def run(logits: Tensor, gradient: Tensor | None) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for i, image in enumerate(resized(logits, size)):
            for rows, x in image:
                total += rule(x, i, rows, gradient is not None)
                if gradient is not None:
                    image.add_gradient(rows, x)
            if gradient is not None:
                gradient[i] = image.gradient()
        return total

    return with_gradient(logits, run)


def resized(logits: Tensor, size: Sequence[int]) -> Iterator[ResizedImage]:
    """The images of `logits` (N, C, h, w) at `size` (H, W), one after the other."""
    (in_height, in_width), (height, width) = logits.shape[2:], (int(size[0]), int(size[1]))
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    like = torch.empty(0, dtype=dtype, device=logits.device)
    rows = None if in_height == height else interpolation_matrix(in_height, height, like)
    columns = None if in_width == width else interpolation_matrix(in_width, width, like)
    for image in logits:
        yield ResizedImage(image.to(dtype).contiguous(), (height, width), rows, columns)


class ResizedImage:
    """One image's logits (C, h, w), resized to (H, W) by bilinear interpolation, as bands of rows made on demand.

    A resize is linear: `rows @ logits @ columns.T`. Each row of `rows` and `columns` has two non-zeros; where the size
    stays there is no matrix. The transposed matrices bring a gradient back.
    """

    def __init__(self, logits: Tensor, size: tuple[int, int], rows: Tensor | None, columns: Tensor | None) -> None:
        num_classes, self.in_height = logits.shape[:2]
        self.height, width = size
        self.rows, self.columns = rows, columns
        self.wide = logits if columns is None else logits @ columns.T  # (C, h, W)
        self._wide_gradient: Tensor | None = None
        chunk_bytes = CHUNK_BYTES.get(logits.device.type, DEFAULT_CHUNK_BYTES)
        self.band = max(1, chunk_bytes // (num_classes * width * logits.element_size()))

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """The bands: which rows, and their logits (C, rows, W), a copy to write to."""
        for start in range(0, self.height, self.band):
            rows = slice(start, min(start + self.band, self.height))
            if self.rows is None:
                yield rows, self.wide[:, rows].clone()
            else:
                first, last = row_tap_range(self.in_height, self.height, rows.start, rows.stop)
                yield rows, torch.matmul(self.rows[rows, first:last], self.wide[:, first:last])

    def of_class(self, index: int) -> Tensor:
        """One class's logits, (H, W), to be only read."""
        wide = self.wide[index]
        return wide if self.rows is None else self.rows @ wide

    def add_gradient(self, rows: slice, gradient: Tensor) -> None:
        """Adds what the band `rows` (C, rows, W) gives to the gradient."""
        if self._wide_gradient is None:
            self._wide_gradient = torch.zeros_like(self.wide)
        if self.rows is None:
            self._wide_gradient[:, rows] += gradient
        else:
            first, last = row_tap_range(self.in_height, self.height, rows.start, rows.stop)
            self._wide_gradient[:, first:last] += torch.matmul(self.rows[rows, first:last].T, gradient)

    def add_class_gradient(self, index: int, gradient: Tensor) -> None:
        """Adds what one class's logits (H, W) give to the gradient."""
        if self._wide_gradient is None:
            self._wide_gradient = torch.zeros_like(self.wide)
        self._wide_gradient[index] += gradient if self.rows is None else self.rows.T @ gradient

    def gradient(self) -> Tensor:
        """The gradient of the logits (C, h, w): of all that was added."""
        if self._wide_gradient is None:
            self._wide_gradient = torch.zeros_like(self.wide)
        return self._wide_gradient if self.columns is None else self._wide_gradient @ self.columns


class _WithGradient(torch.autograd.Function):
    """A value whose gradient is made in the forward pass: only a tensor of the logits' own size is kept."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, run: Run, wanted: bool) -> Tensor:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        gradient = torch.empty_like(logits, dtype=dtype, memory_format=torch.contiguous_format) if wanted else None
        with full_precision_products(logits):
            total = run(logits, gradient)
        ctx.dtype = logits.dtype
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * scale).to(ctx.dtype), None, None


@contextmanager
def full_precision_products(like: Tensor) -> Iterator[None]:
    """Switches TF32 and autocast off for the interpolation: its error would become an error of the loss."""
    device_type = like.device.type
    with torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext():
        if device_type != "cuda":
            yield
            return
        precision, matmul = float32_matmul_precision(), torch.backends.cuda.matmul
        if precision == "highest":
            yield
            return
        if precision is not None:
            exact, put = "highest", torch.set_float32_matmul_precision
        else:  # only torch's newer names tell the setting
            exact, precision, put = "ieee", matmul.fp32_precision, partial(setattr, matmul, "fp32_precision")
        put(exact)
        try:
            yield
        finally:
            put(precision)
