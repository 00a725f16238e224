"""Losses of resized logits in bands of rows: full-size logits are never held, and gradients are made on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from classyseg.layers import interpolation_matrix, row_tap_range
from classyseg.losses.sharing import num_threads, share_out
from classyseg.switches import float32_matmul_precision

CHUNK_BYTES = {"cpu": 4_000_000}
DEFAULT_CHUNK_BYTES = 128_000_000
"""Bytes of a chunk of full-size logits: a processor's cache holds it; other devices are kept busy by it."""

Result = TypeVar("Result")
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
    """The sum of `rule` over all bands of the logits (N, C, h, w) at `size` (H, W), with its gradient.

    On a CPU, threads call `rule` for several bands at once.
    """

    def run(logits: Tensor, gradient: Tensor | None) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        images = dict(enumerate(resized(logits, size)))

        def work(item: tuple[int, slice | None]) -> tuple[Tensor, Tensor | None] | None:
            i, rows = item
            image = images[i]
            if rows is None:
                image.open()
                return None
            x = image.band(rows)
            value = rule(x, i, rows, gradient is not None)
            return value, image.back(rows, x) if gradient is not None else None

        def take(item: tuple[int, slice | None], result: tuple[Tensor, Tensor | None] | None) -> None:
            i, rows = item
            if rows is None or result is None:
                return
            value, back = result
            total.add_(value)
            if gradient is not None and back is not None:
                images[i].add(rows, back)
            if rows.stop == images[i].height:
                if gradient is not None:
                    gradient[i] = images[i].gradient()
                del images[i]

        # An image is opened while the bands of the one before are worked on, so that no thread waits for it.
        threads = num_threads(logits.device, logits.shape[0] * logits.shape[1] * size[0] * size[1])
        items: list[tuple[int, slice | None]] = []
        for i, image in images.items():
            if threads > 1:
                items += [(ahead, None) for ahead in ((0, 1) if i == 0 else (i + 1,)) if ahead in images]
            items += [(i, rows) for rows in image.bands()]
        share_out(items, work, take, threads)
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
        yield ResizedImage(image, dtype, (height, width), rows, columns)


def over_bands(
    image: ResizedImage,
    work: Callable[[slice, Tensor], Result],
    take: Callable[[slice, Result], object] = lambda rows, result: None,
) -> None:
    """Calls `take(rows, work(rows, band))` for all bands, as `share_out` does."""
    share_out(image.bands(), lambda rows: work(rows, image.band(rows)), take, image.threads)


class ResizedImage:
    """One image's logits (C, h, w), resized to (H, W) by bilinear interpolation, as bands of rows made on demand.

    Several threads may make bands at once; one alone may add to the gradient.

    A resize is linear: `rows @ logits @ columns.T`. Each row of `rows` and `columns` has two non-zeros; where the size
    stays there is no matrix. The transposed matrices bring a gradient back.
    """

    def __init__(
        self, logits: Tensor, dtype: torch.dtype, size: tuple[int, int], rows: Tensor | None, columns: Tensor | None
    ) -> None:
        self.num_classes, self.in_height = logits.shape[:2]
        self.height, self._width = size
        self.dtype, self.rows, self.columns = dtype, rows, columns
        self._logits = logits
        self._wide: Tensor | None = None
        self._wide_gradient: Tensor | None = None
        self._opening = threading.Lock()
        chunk_bytes = CHUNK_BYTES.get(logits.device.type, DEFAULT_CHUNK_BYTES)
        self._band = max(1, chunk_bytes // (self.num_classes * self._width * dtype.itemsize))

    @property
    def threads(self) -> int:
        """How many threads share the work on this image."""
        return num_threads(self._logits.device, self.num_classes * self.height * self._width)

    def open(self) -> Tensor:
        """The logits at full width (C, h, W), to be only read. The first call computes them."""
        if self._wide is None:
            with self._opening:
                if self._wide is None:
                    logits = self._logits.to(self.dtype).contiguous()
                    self._wide = logits if self.columns is None else logits @ self.columns.T
        return self._wide

    def bands(self) -> list[slice]:
        """The rows of each band."""
        starts = range(0, self.height, self._band)
        return [slice(start, min(start + self._band, self.height)) for start in starts]

    def band(self, rows: slice) -> Tensor:
        """The logits of a band (C, rows, W), a copy to write to."""
        if self.rows is None:
            return self.open()[:, rows].clone()
        first, last = row_tap_range(self.in_height, self.height, rows.start, rows.stop)
        return torch.matmul(self.rows[rows, first:last], self.open()[:, first:last])

    def of_class(self, index: int) -> Tensor:
        """One class's logits, (H, W), to be only read."""
        wide = self.open()[index]
        return wide if self.rows is None else self.rows @ wide

    def back(self, rows: slice, gradient: Tensor) -> Tensor:
        """What a band's gradient (C, rows, W) gives to that of the logits, for `add`."""
        if self.rows is None:
            return gradient
        first, last = row_tap_range(self.in_height, self.height, rows.start, rows.stop)
        return torch.matmul(self.rows[rows, first:last].T, gradient)

    def back_of_class(self, gradient: Tensor) -> Tensor:
        """What the gradient (H, W) of one class's logits gives, for `add_class`."""
        return gradient if self.rows is None else self.rows.T @ gradient

    def add(self, rows: slice, back: Tensor) -> None:
        """Adds to the gradient what `back` gave for a band."""
        first, last = rows.start, rows.stop
        if self.rows is not None:
            first, last = row_tap_range(self.in_height, self.height, rows.start, rows.stop)
        self._gradient()[:, first:last] += back

    def add_class(self, index: int, back: Tensor) -> None:
        """Adds to the gradient what `back_of_class` gave for a class."""
        self._gradient()[index] += back

    def gradient(self) -> Tensor:
        """The gradient of the logits (C, h, w): of all that was added."""
        return self._gradient() if self.columns is None else self._gradient() @ self.columns

    def _gradient(self) -> Tensor:
        if self._wide_gradient is None:
            self._wide_gradient = torch.zeros_like(self.open())
        return self._wide_gradient


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
