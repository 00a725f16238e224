"""Bilinear resizing, decided in one place: of maps to other strides, and of logits without holding them whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

ALIGN_CORNERS = False
"""Whether the corner pixels' centres coincide, for every resize of features and logits in classyseg."""

CHUNK_BYTES = 64_000_000
"""Memory for resized logits in `argmax_at` and `rank_at`: in all, they take twice as much and their results.
`scores_at` takes it once."""


def ceil_div(a: int, b: int) -> int:
    """`a / b`, rounded up, of sizes from 0 on, also symbolic ones.

    Python's other way, the negative of `-a // b`, is wrong in an export: ONNX and OpenVINO round it toward 0.
    """
    return (a + b - 1) // b


def div_mod(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`index // size` and `index % size` of integers from 0 on, also by symbolic sizes.

    ONNX has no remainder by a free size.
    """
    quotient = index // size
    return quotient, index - quotient * size


def resize_logits(logits: Tensor, size: Sequence[int], *, align_corners: bool = ALIGN_CORNERS) -> Tensor:
    """`logits` (N, C, h, w) at `size` (H, W), bilinear; the input itself if it has that size.

    While a graph is traced it does not compare sizes, so that an export leaves them free. `align_corners` is for heads
    that were trained with it by other libraries.
    """
    if not torch.compiler.is_compiling() and tuple(logits.shape[2:]) == tuple(size):
        return logits
    return functional.interpolate(logits, tuple(size), mode="bilinear", align_corners=align_corners)


def resample(x: Tensor, stride: int, target: int, size: Sequence[int]) -> Tensor:
    """A map (N, C, h, w) of `stride` at another stride `target`, where an image has `size` (height, width) positions.

    Bilinear on the exact grid of the target, so that pixels keep their places; for a coarser target, after a mean over
    whole steps. At the bottom and right, the border is repeated. It has no parameters; sizes may be symbolic.
    """
    if target == stride:
        return x
    steps = max(1, target // stride)
    ratio = target / (stride * steps)
    for axis, length in zip((2, 3), size, strict=True):
        num_means = length if ratio == 1 else ceil_div(x.shape[axis], steps)
        if steps > 1:
            index = torch.arange(num_means * steps, device=x.device).clamp(max=x.shape[axis] - 1)
            x = x.index_select(axis, index).unflatten(axis, (num_means, steps)).mean(axis + 1)
        if ratio != 1:
            position = ((torch.arange(length, device=x.device) + 0.5) * ratio - 0.5).clamp(0, num_means - 1)
            low = position.floor().long()
            high = (low + 1).clamp(max=num_means - 1)
            share = (position - low).to(x.dtype)
            share = share if axis == 3 else share[:, None]
            x = torch.lerp(x.index_select(axis, low), x.index_select(axis, high), share)
    return x


def extended(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map (N, C, h, w) at `size` (height, width): cut, or with the border repeated at the bottom and right.

    The map itself if it has that size. While a graph is traced, sizes are not compared.
    """
    if not torch.compiler.is_compiling() and tuple(x.shape[2:]) == tuple(size):
        return x
    for axis, length in zip((2, 3), size, strict=True):
        x = x.index_select(axis, torch.arange(length, device=x.device).clamp(max=x.shape[axis] - 1))
    return x


def best_class(values: Tensor, dim: int) -> Tensor:
    """`values.argmax(dim)`, on the CPU in about half of the time for a dimension that is not the last."""
    return values.max(dim).indices if values.device.type == "cpu" else values.argmax(dim)


def argmax_at(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The class of each pixel, (N, H, W) int64, of logits (N, C, h, w) resized to `size` (H, W).

    Equal, bit for bit, to `resize_logits(logits, size).argmax(1)`, but resizes a few classes at a time and keeps the
    best. In a traced graph it is just that, as a graph knows no loop over a free number of images.
    """
    if torch.compiler.is_compiling():
        return resize_logits(logits, size).argmax(1)
    logits = logits.detach().contiguous()
    if tuple(logits.shape[2:]) == tuple(size):
        return best_class(logits, 1)
    labels = torch.zeros(len(logits), *size, dtype=torch.int64, device=logits.device)
    buffer = _class_buffer(logits, size, extra=1)
    best, room = buffer[0], buffer[1:]
    for image, found in zip(logits, labels, strict=True):
        best.fill_(-torch.inf)
        for first, resized in _class_chunks(image, room):
            # One maximum with the best so far in first place: equal values and NaN give the same as a whole arg-max.
            value, index = buffer[: 1 + len(resized)].max(0)
            torch.where(index > 0, index + (first - 1), found, out=found)
            best.copy_(value)
    return labels


def flags_at(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Whether each pixel has each class, (N, C, H, W) uint8 of 0 and 1: where logits resized to `size` (H, W) are >= 0.

    These are sigmoids of a half and more. A few classes are resized at a time; in a traced graph all at once.
    """
    if torch.compiler.is_compiling():
        return (resize_logits(logits, size) >= 0).to(torch.uint8)
    logits = logits.detach().contiguous()
    if tuple(logits.shape[2:]) == tuple(size):
        return (logits >= 0).to(torch.uint8)
    flags = torch.empty(*logits.shape[:2], *size, dtype=torch.uint8, device=logits.device)
    room = _class_buffer(logits, size)
    for image, found in zip(logits, flags, strict=True):
        for first, resized in _class_chunks(image, room):
            found[first : first + len(resized)] = resized >= 0
    return flags


def scores_at(logits: Tensor, size: Sequence[int], *, sigmoid: bool = False) -> Tensor:
    """Probabilities (N, C, H, W) float32: the softmax of logits (N, C, h, w) resized to `size` (H, W).

    For a single class, and with `sigmoid`, the sigmoid. Nothing else of full size is held: the softmax is made in
    place, in bands of rows. In a traced graph it is made at once.
    """
    if torch.compiler.is_compiling():
        resized = resize_logits(logits.float(), size)
        return resized.sigmoid() if sigmoid or logits.shape[1] == 1 else resized.softmax(1)
    logits = logits.detach().float().contiguous()
    num_classes, (height, width) = logits.shape[1], size
    scores = logits.new_empty(len(logits), num_classes, height, width)
    band = max(1, CHUNK_BYTES // (logits.element_size() * num_classes * width))
    for image, found in zip(logits, scores, strict=True):
        for _ in _class_chunks(image, found):  # one chunk, as there is room for all classes
            pass
        for start in range(0, height, band):
            rows = found[:, start : start + band]
            rows.copy_(rows.sigmoid() if sigmoid or num_classes == 1 else rows.softmax(0))
    return scores


def band_at(logits: Tensor, size: Sequence[int], rows: slice) -> Tensor:
    """The rows `rows` of an image's logits (C, h, w) resized to `size` (H, W): (C, rows, W), float32 or wider.

    A new tensor. Nothing else of full size is made.
    """
    (in_height, in_width), (height, width) = logits.shape[1:], size
    first, last = row_tap_range(in_height, height, rows.start, rows.stop)
    band = logits[:, first:last].to(logits.dtype if logits.dtype == torch.float64 else torch.float32)
    if in_width != width:
        band = band @ interpolation_matrix(in_width, width, band).T
    if in_height != height:
        return torch.matmul(interpolation_matrix(in_height, height, band)[rows, first:last], band)
    return band.clone() if in_width == width else band


def confident_classes_at(logits: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The class of each pixel, (N, H, W) int64, and its probability, float32, of logits resized to `size` (H, W).

    The probability is the softmax of the resized logits. They are made in bands of rows, never whole.
    """
    logits, (height, width) = logits.detach(), size
    labels = torch.zeros(len(logits), height, width, dtype=torch.int64, device=logits.device)
    confidence = torch.zeros(len(logits), height, width, device=logits.device)
    band = max(1, CHUNK_BYTES // (4 * logits.shape[1] * width))
    for image, found, sure in zip(logits, labels, confidence, strict=True):
        for start in range(0, height, band):
            rows = slice(start, min(start + band, height))
            x = band_at(image, size, rows)
            highest, found[rows] = x.max(0)
            sure[rows] = x.sub_(highest).exp_().sum(0).reciprocal_()
    return labels, confidence


def rank_at(logits: Tensor, labels: Tensor) -> Tensor:
    """The rank of the class of `labels` (N, H, W) at each pixel by its logit, (N, H, W) int64.

    With equal logits the lower class comes first, so that rank 0 is `argmax_at`. A NaN comes last if it belongs to the
    label, else first. The logits (N, C, h, w) are resized to the labels' size a few classes at a time. A label without
    a class gets some rank.
    """
    logits = logits.detach().contiguous()
    num_classes, size = logits.shape[1], labels.shape[1:]
    ranks = torch.zeros_like(labels)
    room = _class_buffer(logits, size)
    own = torch.empty(size, dtype=logits.dtype, device=logits.device)
    for image, label, rank in zip(logits, labels.clamp(0, num_classes - 1), ranks, strict=True):
        for first, resized in _class_chunks(image, room):
            inside = (label >= first) & (label < first + len(resized))
            at = (label - first).clamp(0, len(resized) - 1)
            torch.where(inside, resized.gather(0, at[None])[0], own, out=own)
        for first, resized in _class_chunks(image, room):
            for i, value in enumerate(resized, start=first):
                rank += ~((value < own) | ((value == own) & (label <= i)))
    return ranks


def _class_buffer(logits: Tensor, size: Sequence[int], extra: int = 0) -> Tensor:
    """Memory for a few resized classes of `logits`, (classes, H, W), and for `extra` more."""
    height, width = size
    num_classes = max(1, CHUNK_BYTES // (logits.element_size() * height * width))
    return logits.new_empty(extra + min(num_classes, logits.shape[1]), height, width)


def _class_chunks(logits: Tensor, room: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The logits (C, h, w) of an image resized to the size of `room` (classes at once, H, W), which holds them.

    Gives a few classes at a time, (classes, H, W), behind the number of the first one.
    """
    for first in range(0, len(logits), len(room)):
        part = logits[first : first + len(room)]
        resized = room[: len(part)]
        if part.shape == resized.shape:
            resized.copy_(part)
        else:
            # `interpolate` calls this, but cannot be told where to write.
            torch.ops.aten.upsample_bilinear2d.out(
                part[None], room.shape[1:], ALIGN_CORNERS, None, None, out=resized[None]
            )
        yield first, resized


@lru_cache(maxsize=64)
def neighbours(in_size: int, out_size: int, align_corners: bool = ALIGN_CORNERS) -> tuple[Tensor, Tensor, Tensor]:
    """For each output position: the two input positions that it mixes, and the share of the second (float64)."""
    position = torch.arange(out_size, dtype=torch.float64)
    if align_corners:
        position *= (in_size - 1) / max(1, out_size - 1)
    else:
        position = (position + 0.5) * (in_size / out_size) - 0.5
    position = position.clamp(0, in_size - 1)
    low = position.floor().long()
    return low, (low + 1).clamp(max=in_size - 1), position - low


def interpolation_matrix(in_size: int, out_size: int, like: Tensor) -> Tensor:
    """The (out_size, in_size) matrix of a bilinear resize along one axis, in `like`'s type and device.

    Its transpose is the resize's gradient. It is kept for the next call, so it may only be read: to copy it to a GPU is
    to wait for the GPU.
    """
    if type(like) is not Tensor or torch.compiler.is_compiling():  # of a tracer, which must see how it is made
        return _new_matrix(in_size, out_size, like)
    key = (in_size, out_size, like.dtype, like.device)
    matrix = _matrices.get(key)
    if matrix is None:
        with torch.inference_mode(False):
            matrix = _new_matrix(in_size, out_size, torch.empty(0, dtype=like.dtype, device=like.device))
        with _changing_matrices:
            while len(_matrices) >= MAX_MATRICES:
                del _matrices[next(iter(_matrices))]
            _matrices[key] = matrix
    return matrix


_matrices: dict[tuple[int, int, torch.dtype, torch.device], Tensor] = {}
_changing_matrices = threading.Lock()
MAX_MATRICES = 16


def _new_matrix(in_size: int, out_size: int, like: Tensor) -> Tensor:
    low, high, share = neighbours(in_size, out_size)
    matrix = torch.zeros(out_size, in_size, dtype=torch.float64)
    rows = torch.arange(out_size)
    matrix[rows, low] += 1 - share
    matrix[rows, high] += share
    return matrix.to(like)


@lru_cache(4096)
def row_tap_range(in_size: int, out_size: int, start: int, stop: int) -> tuple[int, int]:
    """The input positions [first, last) that the output positions [start, stop) mix."""
    low, high, _ = neighbours(in_size, out_size)
    return int(low[start]), int(high[stop - 1]) + 1
