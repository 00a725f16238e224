"""Resizing in pieces is resizing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from classyseg.layers import argmax_at, interpolation_matrix, resize, row_tap_range

SIZES = [(8, 64), (7, 50), (5, 5), (20, 7), (1, 9), (9, 1), (33, 97)]


@pytest.mark.parametrize("budget", [1, 40_000, 10**9])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_streamed_arg_max_is_bitwise_the_full_one(
    monkeypatch: pytest.MonkeyPatch, budget: int, layout: torch.memory_format
) -> None:
    monkeypatch.setattr(resize, "ARGMAX_BYTES", budget)
    torch.manual_seed(0)
    logits = torch.randn(2, 13, 7, 9)
    expected = functional.interpolate(logits, (50, 71), mode="bilinear").argmax(1)
    assert torch.equal(argmax_at(logits.contiguous(memory_format=layout), (50, 71)), expected)


def test_the_first_of_equal_classes_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize, "ARGMAX_BYTES", 1)
    assert (argmax_at(torch.zeros(1, 5, 3, 3), (6, 6)) == 0).all()


@pytest.mark.parametrize(("in_size", "out_size"), SIZES)
def test_the_matrix_is_the_resize_and_its_transpose_the_gradient(in_size: int, out_size: int) -> None:
    x = torch.randn(1, 1, in_size, 3, dtype=torch.float64, requires_grad=True)
    expected = functional.interpolate(x, (out_size, 3), mode="bilinear")
    matrix = interpolation_matrix(in_size, out_size, x)
    torch.testing.assert_close(matrix @ x[0, 0], expected[0, 0])
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(matrix.T @ weights[0, 0], gradient[0, 0])


@pytest.mark.parametrize(("in_size", "out_size"), SIZES)
def test_a_band_of_rows_reads_only_its_range(in_size: int, out_size: int) -> None:
    matrix = interpolation_matrix(in_size, out_size, torch.zeros(()))
    for start in range(0, out_size, 4):
        stop = min(start + 4, out_size)
        first, last = row_tap_range(in_size, out_size, start, stop)
        inside = torch.zeros(in_size, dtype=torch.bool)
        inside[first:last] = True
        assert (matrix[start:stop][:, ~inside] == 0).all()
