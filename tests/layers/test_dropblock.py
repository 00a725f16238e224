"""DropBlock drops the share that it says, in squares, on a schedule that begins at zero."""

from __future__ import annotations

import copy

import goldens
import pytest
import torch

from classyseg.layers import DropBlock2d

SECTION = "modules_losses_metrics_lr_transforms_eval"


@pytest.mark.parametrize(
    ("name", "probability", "size", "shape"),
    [
        ("p0.1_bs3_14x14", 0.1, 3, (14, 14)),
        ("p0.1_bs7_28x28", 0.1, 7, (28, 28)),
        ("p0.2_bs3_7x5", 0.2, 3, (7, 5)),
    ],
)
def test_rates_are_pytorch_encodings(name: str, probability: float, size: int, shape: tuple[int, int]) -> None:
    expected = goldens.goldens("float64")[SECTION]["DropBlock_gamma"][name]
    assert DropBlock2d(probability, size).rate(*shape).item() == pytest.approx(expected, rel=1e-6)


def test_a_square_around_each_centre_is_dropped() -> None:
    centres = torch.zeros(1, 2, 6, 6)
    centres[0, 0, 2, 2] = centres[0, 1, 0, 5] = 1
    keep = DropBlock2d(0.1).keep_mask(centres)
    expected = torch.ones(1, 2, 6, 6)
    expected[0, 0, 1:4, 1:4] = 0
    expected[0, 1, 0:2, 4:6] = 0
    assert torch.equal(keep, expected)


def test_evaluation_changes_nothing() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert DropBlock2d(0.5).eval()(x) is x


def test_in_training_the_share_dropped_is_the_probability_and_the_sum_stays() -> None:
    torch.manual_seed(0)
    out = DropBlock2d(0.2, 3)(torch.ones(2, 512, 32, 32))
    assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=0.03)  # squares overlap
    assert out.mean().item() == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(out[0], out[1])


def test_shared_channels_lose_the_same_squares() -> None:
    torch.manual_seed(0)
    out = DropBlock2d(0.3, share_channels=True)(torch.ones(1, 4, 16, 16))
    assert 0 < (out[0, 0] == 0).sum() < 256
    assert torch.equal(out, out[:, :1].expand_as(out))


def test_the_ramp_starts_at_zero_and_reaches_the_probability() -> None:
    drop = DropBlock2d(0.3, ramp=0.5)
    x = torch.ones(1, 8, 16, 16)
    assert torch.equal(drop(x), x)
    rates = []
    for progress in (0.0, 0.125, 0.25, 0.5, 1.0):
        drop.set_progress(progress)
        rates.append(drop.rate(16, 16).item())
    full = DropBlock2d(0.3).rate(16, 16).item()
    assert rates == pytest.approx([0, 0.25 * full, 0.5 * full, full, full])


def test_nothing_is_in_the_state_dict_and_a_copy_stands_where_the_original_does() -> None:
    drop = DropBlock2d(0.3, ramp=1.0)
    drop.set_progress(0.5)
    assert drop.state_dict() == {}
    assert torch.equal(copy.deepcopy(drop).rate(8, 8), drop.rate(8, 8))


@pytest.mark.parametrize("size", [(1, 1), (2, 5)])
def test_maps_smaller_than_a_square_give_no_nan(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    drop = DropBlock2d(0.99, 7)
    assert all(drop(torch.ones(1, 4, *size)).isfinite().all() for _ in range(20))


def test_half_precision_stays() -> None:
    assert DropBlock2d(0.1)(torch.ones(1, 2, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_an_even_square_has_no_centre() -> None:
    with pytest.raises(ValueError, match=r"block_size.*4.*odd"):
        DropBlock2d(0.1, 4)
