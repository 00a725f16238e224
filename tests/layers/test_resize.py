"""Resizing in pieces, and as matrices, is torch's bilinear resize."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classyseg.layers import argmax_at, interpolation_matrix, rank_at, resize_logits, row_tap_range, scores_at
from classyseg.layers.resize import best_class

SIZES = [(1, 1), (1, 7), (4, 32), (5, 17), (9, 9), (13, 100), (32, 4), (30, 7), (7, 6), (45, 360)]
LOW_SIZES = [(5, 7), (20, 30), (1, 1), (40, 11)]


def interpolate(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def random_logits(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("classes_at_once", [0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("low", LOW_SIZES, ids=str)
def test_argmax_in_chunks_is_the_argmax_of_all_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, classes_at_once: int, low: tuple[int, int]
) -> None:
    size = (20, 30)
    monkeypatch.setattr("classyseg.layers.resize.CHUNK_BYTES", 4 * size[0] * size[1] * classes_at_once)
    logits = random_logits(2, 7, *low)
    found = argmax_at(logits, size)
    assert found.dtype == torch.int64
    assert torch.equal(found, interpolate(logits, size).argmax(1))


@pytest.mark.parametrize("classes_at_once", [1, 2, 100])
def test_of_equal_classes_the_first_wins(monkeypatch: pytest.MonkeyPatch, classes_at_once: int) -> None:
    monkeypatch.setattr("classyseg.layers.resize.CHUNK_BYTES", 4 * 64 * classes_at_once)
    logits = torch.zeros(1, 6, 4, 4)
    logits[:, [2, 3, 5], :, :2] = 1.0
    found = argmax_at(logits, (8, 8))
    assert torch.equal(found, interpolate(logits, (8, 8)).argmax(1))
    assert found[0, 0].tolist() == [2, 2, 2, 2, 2, 0, 0, 0]


@pytest.mark.parametrize("classes_at_once", [2, 100])
def test_argmax_of_channels_last_logits(monkeypatch: pytest.MonkeyPatch, classes_at_once: int) -> None:
    monkeypatch.setattr("classyseg.layers.resize.CHUNK_BYTES", 4 * 256 * classes_at_once)
    logits = random_logits(2, 5, 4, 4)
    strided = logits.contiguous(memory_format=torch.channels_last)
    assert torch.equal(argmax_at(strided, (16, 16)), interpolate(logits, (16, 16)).argmax(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_argmax_of_half_precision_logits(dtype: torch.dtype) -> None:
    logits = random_logits(1, 5, 4, 4).to(dtype)
    assert torch.equal(argmax_at(logits, (16, 16)), interpolate(logits, (16, 16)).argmax(1))


@pytest.mark.parametrize("classes_at_once", [1, 2, 3, 100])
def test_what_is_not_finite_goes_as_in_a_whole_argmax(monkeypatch: pytest.MonkeyPatch, classes_at_once: int) -> None:
    monkeypatch.setattr("classyseg.layers.resize.CHUNK_BYTES", 4 * 36 * classes_at_once)
    logits = random_logits(3, 6, 3, 3)
    logits[0, [2, 4], 0, 0] = torch.nan
    logits[0, 1] = torch.inf
    logits[1] = -torch.inf
    logits[2, :4, :2] = -torch.inf
    assert torch.equal(argmax_at(logits, (6, 6)), interpolate(logits, (6, 6)).argmax(1))


@pytest.mark.parametrize("classes_at_once", [1, 2, 3, 100])
@pytest.mark.parametrize("low", LOW_SIZES, ids=str)
def test_the_rank_of_a_label_is_its_place_in_the_sorted_classes(
    monkeypatch: pytest.MonkeyPatch, classes_at_once: int, low: tuple[int, int]
) -> None:
    monkeypatch.setattr("classyseg.layers.resize.CHUNK_BYTES", 4 * 600 * classes_at_once)
    logits = random_logits(2, 7, *low)
    logits[:, 4] = logits[:, 2]
    labels = torch.randint(0, 7, (2, 20, 30), generator=torch.Generator().manual_seed(0))
    classes = interpolate(logits, (20, 30)).argsort(dim=1, descending=True, stable=True)
    found = rank_at(logits, labels)
    assert torch.equal(found, (classes == labels[:, None]).int().argmax(1))
    assert torch.equal(found == 0, argmax_at(logits, (20, 30)) == labels)


def test_a_label_with_a_logit_of_nan_ranks_last_and_behind_nan() -> None:
    logits = torch.tensor([1.0, torch.nan, 3.0]).view(1, 3, 1, 1)
    assert [rank_at(logits, torch.full((1, 1, 1), label)).item() for label in range(3)] == [2, 3, 1]


def test_a_label_beyond_the_classes_is_no_error() -> None:
    assert rank_at(random_logits(1, 3, 2, 2), torch.full((1, 4, 4), 255)).shape == (1, 4, 4)


def test_argmax_keeps_no_graph() -> None:
    assert not argmax_at(random_logits(1, 3, 4, 4).requires_grad_(), (8, 8)).requires_grad


@pytest.mark.parametrize("band_bytes", [1, 10_000, 10**9])
@pytest.mark.parametrize(("low", "size"), [((5, 7), (24, 31)), ((6, 6), (6, 6)), ((20, 9), (7, 11)), ((1, 1), (3, 5))])
@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_scores_are_the_softmax_of_resized_logits_and_of_one_class_the_sigmoid(
    monkeypatch: pytest.MonkeyPatch, num_classes: int, low: tuple[int, int], size: tuple[int, int], band_bytes: int
) -> None:
    monkeypatch.setattr("classyseg.layers.resize.CHUNK_BYTES", band_bytes)
    logits = random_logits(2, num_classes, *low)
    resized = interpolate(logits, size)
    expected = resized.sigmoid() if num_classes == 1 else resized.softmax(1)
    torch.testing.assert_close(scores_at(logits, size), expected, rtol=1e-6, atol=1e-7)
    half = scores_at(logits.bfloat16().requires_grad_(), size)
    torch.testing.assert_close(half, scores_at(logits.bfloat16().float(), size), rtol=0, atol=0)
    assert half.dtype == torch.float32
    assert not half.requires_grad


def test_logits_that_have_the_size_are_given_back() -> None:
    logits = random_logits(1, 3, 4, 5)
    assert resize_logits(logits, (4, 5)) is logits
    assert torch.equal(resize_logits(logits, (9, 6)), interpolate(logits, (9, 6)))


@pytest.mark.parametrize(("in_size", "out_size"), SIZES)
def test_the_matrix_resizes_along_each_axis(in_size: int, out_size: int) -> None:
    values = random_logits(2, 3, in_size, in_size).double()
    matrix = interpolation_matrix(in_size, out_size, values)
    rows = interpolate(values, (out_size, in_size))
    columns = interpolate(values, (in_size, out_size))
    torch.testing.assert_close(matrix @ values, rows, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(values @ matrix.T, columns, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("in_size", "out_size"), SIZES)
def test_the_transposed_matrix_is_the_gradient(in_size: int, out_size: int) -> None:
    values = random_logits(1, 2, in_size, 3).double().requires_grad_()
    incoming = random_logits(1, 2, out_size, 3).double()
    (gradient,) = torch.autograd.grad(interpolate(values, (out_size, 3)), values, incoming)
    matrix = interpolation_matrix(in_size, out_size, values)
    torch.testing.assert_close(matrix.T @ incoming, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_matrix_has_the_type_asked_for(dtype: torch.dtype) -> None:
    matrix = interpolation_matrix(4, 8, torch.zeros(1, dtype=dtype))
    assert matrix.dtype == dtype
    assert torch.equal(matrix.sum(1), torch.ones(8, dtype=dtype))


@pytest.mark.parametrize(("in_size", "out_size"), SIZES)
def test_the_tap_range_holds_all_that_a_band_of_rows_mixes(in_size: int, out_size: int) -> None:
    matrix = interpolation_matrix(in_size, out_size, torch.zeros(1, dtype=torch.float64))
    band = max(1, out_size // 5)
    for start in range(0, out_size, band):
        stop = min(out_size, start + band)
        first, last = row_tap_range(in_size, out_size, start, stop)
        assert 0 <= first < last <= in_size
        used = matrix[start:stop].any(0).nonzero().flatten()
        assert first <= int(used.min())
        assert int(used.max()) < last
        assert last - int(used.max()) <= 2  # and hardly more


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_best_class_is_the_argmax_with_ties_and_what_is_not_finite(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 4, (2, 19, 40, 33), generator=generator).to(dtype)
    for value in (torch.nan, torch.inf, -torch.inf):
        values[torch.rand(values.shape, generator=generator) < 0.02] = value
    assert torch.equal(best_class(values, 1), values.argmax(1))
