"""Resizing: the arg-max without full-size logits, and the matrices that are a bilinear resize."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classyseg.layers import argmax_at, interpolation_matrix, resize, resize_logits, row_tap_range

LENGTHS = [(1, 5), (4, 4), (3, 24), (7, 50), (13, 5), (30, 7), (225, 900)]


def full_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return resize_logits(logits, size).argmax(1)


def scores(classes: int, height: int, width: int) -> Tensor:
    return torch.randn(2, classes, height, width, generator=torch.Generator().manual_seed(classes + height))


@pytest.mark.parametrize("chunk_classes", [1, 2, 4, 5, 100])
@pytest.mark.parametrize("size", [(64, 64), (50, 71), (7, 9), (3, 4)])
def test_argmax_at_is_bitwise_the_full_argmax(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], chunk_classes: int
) -> None:
    monkeypatch.setattr(resize, "ARGMAX_BYTES", chunk_classes * 4 * size[0] * size[1])
    logits = scores(11, 7, 9)
    assert torch.equal(argmax_at(logits, size), full_argmax(logits, size))


@pytest.mark.parametrize("chunk_classes", [1, 3])
def test_the_first_of_equal_classes_wins_in_whichever_chunk(
    monkeypatch: pytest.MonkeyPatch, chunk_classes: int
) -> None:
    monkeypatch.setattr(resize, "ARGMAX_BYTES", chunk_classes * 4 * 12 * 10)
    logits = torch.randint(0, 3, (2, 7, 6, 5), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(argmax_at(logits, (12, 10)), full_argmax(logits, (12, 10)))


def test_the_memory_format_does_not_change_the_argmax() -> None:
    logits = scores(11, 7, 9)
    channels_last = logits.contiguous(memory_format=torch.channels_last)
    assert torch.equal(argmax_at(channels_last, (50, 71)), argmax_at(logits, (50, 71)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_have_an_argmax_in_int64(dtype: torch.dtype) -> None:
    labels = argmax_at(scores(5, 4, 4).to(dtype), (9, 9))
    assert labels.dtype == torch.int64
    assert torch.equal(labels, full_argmax(scores(5, 4, 4).to(dtype), (9, 9)))


@pytest.mark.parametrize(("in_size", "out_size"), LENGTHS)
def test_the_matrix_is_torchs_interpolation(in_size: int, out_size: int) -> None:
    x = torch.randn(1, 1, in_size, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = interpolation_matrix(in_size, out_size, x)
    expected = functional.interpolate(x, (out_size, 1), mode="bilinear")
    torch.testing.assert_close(matrix @ x[0, 0], expected[0, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("in_size", "out_size"), LENGTHS)
def test_the_transposed_matrix_is_the_gradient_of_torchs_interpolation(in_size: int, out_size: int) -> None:
    x = torch.zeros(1, 1, in_size, 1, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(out_size, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    output = functional.interpolate(x, (out_size, 1), mode="bilinear")
    (gradient,) = torch.autograd.grad((output[0, 0] * direction).sum(), x)
    found = interpolation_matrix(in_size, out_size, x.detach()).T @ direction
    torch.testing.assert_close(found, gradient[0, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("in_size", "out_size"), LENGTHS)
def test_a_band_of_rows_mixes_nothing_outside_its_range(in_size: int, out_size: int) -> None:
    matrix = interpolation_matrix(in_size, out_size, torch.zeros((), dtype=torch.float64))
    for start in range(0, out_size, 3):
        stop = min(start + 3, out_size)
        first, last = row_tap_range(in_size, out_size, start, stop)
        assert matrix[start:stop, first:last].sum() == pytest.approx(stop - start)
        assert torch.equal(matrix[start:stop].sum(), matrix[start:stop, first:last].sum())


def test_logits_of_the_wanted_size_are_passed_on() -> None:
    logits = scores(3, 8, 8)
    assert resize_logits(logits, (8, 8)) is logits
