"""Cross entropy on logits of any stride: resized and compared with the mask in chunks, never held at full size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from classyseg.config import ConfigError
from classyseg.layers import interpolation_matrix, row_tap_range
from classyseg.losses.classy_loss import ClassyLoss
from classyseg.registry import LOSSES

CHUNK_BYTES = {"cpu": 4_000_000}
DEFAULT_CHUNK_BYTES = 128_000_000
"""How large a chunk of full-size logits may be: what a processor's cache holds; elsewhere, what fills the device."""


@LOSSES.register("cross_entropy")
class CrossEntropyLoss(ClassyLoss):
    """Cross entropy with class weights and label smoothing; the mean that `torch.nn.functional.cross_entropy` defines.

    `class_weights` are one per class: as in torch, a pixel then counts as much as its class weighs, in the sum and in
    what the sum is divided by. `label_smoothing` spreads that share of each pixel's target evenly over the classes.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        class_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        head_weights: dict[str, Annotated[float, Field(ge=0)]] | None = None,
    ) -> None:
        super().__init__(ignore_index, head_weights=head_weights)
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def check_num_classes(self, num_classes: int) -> None:
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ConfigError(
                f"loss.class_weights: found {len(self.class_weights)} weights for {num_classes} classes; "
                "expected one per class"
            )

    def count(self, target: Tensor) -> Tensor:
        if self.class_weights is None:
            return super().count(target)
        valid = target != self.ignore_index
        return (self.class_weights.double()[target.where(valid, 0)] * valid).sum()

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        weights = self.class_weights
        self.check_num_classes(logits.shape[1])
        if logits.dim() == 4:
            return _ChunkedCrossEntropy.apply(logits, target, weights, self.ignore_index, self.label_smoothing)
        return functional.cross_entropy(
            logits.float() if logits.dtype != torch.float64 else logits,
            target,
            weights,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The sum over valid pixels of the cross entropy of bilinearly resized logits.

    A resize is linear: `up = rows @ logits @ columns.T`, with two non-zeros in each row of `rows` and `columns`. For
    each band of output rows the forward pass makes `up`, its loss and, where a gradient is wanted, at once the
    gradient, brought back by the transposed matrices. What stays is a gradient of the logits' own size.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, weights: Tensor | None, ignore_index: int, smoothing: float
    ) -> Tensor:
        wanted = logits.requires_grad
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        gradient = torch.empty_like(logits, dtype=dtype, memory_format=torch.contiguous_format) if wanted else None
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        with _full_precision_products(logits):
            for i in range(len(logits)):
                image = _ImageChunks(logits[i].to(dtype), target[i], weights, ignore_index, smoothing)
                total += image.run(gradient[i] if gradient is not None else None)
        ctx.dtype = logits.dtype
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * scale).to(ctx.dtype), None, None, None, None


class _ImageChunks:
    """One image of `_ChunkedCrossEntropy`: logits (C, h, w), mask (H, W)."""

    def __init__(
        self, logits: Tensor, target: Tensor, weights: Tensor | None, ignore_index: int, smoothing: float
    ) -> None:
        num_classes, self.in_height, in_width = logits.shape
        self.height, width = target.shape
        self.smoothing = smoothing
        self.target = target
        self.ignore_index = ignore_index
        weights = weights if weights is not None else torch.ones(num_classes, device=logits.device)
        self.weights = weights.to(logits.dtype)
        same_width = in_width == width
        self.columns = None if same_width else interpolation_matrix(in_width, width, logits)
        self.rows = None if self.in_height == self.height else interpolation_matrix(self.in_height, self.height, logits)
        logits = logits.contiguous()
        self.wide = logits if self.columns is None else logits @ self.columns.T  # (C, h, W)
        chunk_bytes = CHUNK_BYTES.get(logits.device.type, DEFAULT_CHUNK_BYTES)
        self.band = max(1, chunk_bytes // (num_classes * width * logits.element_size()))

    def run(self, gradient: Tensor | None) -> Tensor:
        """The loss of the image; writes its gradient (C, h, w) into `gradient`."""
        total = torch.zeros((), dtype=torch.float64, device=self.wide.device)
        wide_gradient = None if gradient is None else torch.zeros_like(self.wide)
        for start in range(0, self.height, self.band):
            stop = min(start + self.band, self.height)
            total += self._band(start, stop, wide_gradient)
        if gradient is not None and wide_gradient is not None:
            gradient.copy_(wide_gradient if self.columns is None else wide_gradient @ self.columns)
        return total

    def _band(self, start: int, stop: int, wide_gradient: Tensor | None) -> Tensor:
        if self.rows is None:
            first, last, rows = start, stop, None
            x = self.wide[:, start:stop].clone()
        else:
            first, last = row_tap_range(self.in_height, self.height, start, stop)
            rows = self.rows[start:stop, first:last]
            x = torch.matmul(rows, self.wide[:, first:last])
        target = self.target[start:stop]
        valid = target != self.ignore_index
        target = target.where(valid, 0).unsqueeze(0)
        pixel_weight = self.weights[target] * valid  # (1, band, W)

        x -= x.amax(0, keepdim=True)
        picked = x.gather(0, target)
        smooth = (self.weights.view(-1, 1, 1) * x).sum(0, keepdim=True) if self.smoothing else None
        x.exp_()
        normalizer = x.sum(0, keepdim=True)
        log_normalizer = normalizer.log()
        loss = (pixel_weight * (log_normalizer - picked)).sum(dtype=torch.float64) * (1 - self.smoothing)
        share = pixel_weight * (1 - self.smoothing)
        if smooth is not None:
            spread = self.smoothing / len(self.weights)
            loss += spread * (valid * (self.weights.sum() * log_normalizer - smooth)).sum(dtype=torch.float64)
        if wide_gradient is None:
            return loss

        everywhere = share if smooth is None else share + spread * self.weights.sum() * valid
        x *= everywhere / normalizer
        x.scatter_add_(0, target, -share)
        if smooth is not None:
            x -= spread * self.weights.view(-1, 1, 1) * valid
        if rows is None:
            wide_gradient[:, start:stop] = x
        else:
            wide_gradient[:, first:last] += torch.matmul(rows.T, x)
        return loss


@contextmanager
def _full_precision_products(like: Tensor) -> Iterator[None]:
    """Keeps TF32 and autocast away from the interpolation, whose error would become an error of the loss."""
    precision = torch.get_float32_matmul_precision()
    if precision == "highest" or like.device.type != "cuda":
        with torch.autocast(like.device.type, enabled=False):
            yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(like.device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
