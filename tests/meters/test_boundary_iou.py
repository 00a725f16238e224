"""Boundary IoU looks at the bands that eroding each class's mask takes away."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from classyseg.meters import BoundaryIoUMeter, build_meter

IGNORED = 255
Map = npt.NDArray[np.int64]


def meter_of(classes: int, ratio: float = 0.02) -> BoundaryIoUMeter:
    config = {"name": "boundary_iou", "dilation_ratio": ratio}
    meter: BoundaryIoUMeter = build_meter(config, tuple(map(str, range(classes))), IGNORED)
    return meter


def blocks(random: np.random.RandomState, classes: int, height: int, width: int, side: int) -> Map:
    coarse = random.randint(classes, size=(-(-height // side), -(-width // side)))
    return np.kron(coarse, np.ones((side, side), dtype=np.int64))[:height, :width]


def random_maps(seed: int) -> tuple[Map, Map, int, float]:
    """Predicted and true classes (H, W) of blocks, some of them ignored; the number of classes; the dilation ratio."""
    random = np.random.RandomState(seed)
    classes, height, width, side = (random.randint(*bounds) for bounds in ((2, 6), (1, 50), (1, 50), (1, 9)))
    target = blocks(random, classes, height, width, side)
    other = blocks(random, classes, height, width, side)
    prediction = np.where(random.uniform(size=target.shape) < 0.9, target, other) if seed % 2 else np.roll(target, 1, 0)
    ignored = blocks(random, 100, height, width, side) < random.uniform(0, 50)
    return prediction, np.where(ignored, IGNORED, target), classes, (0.02, 0.05, 0.1)[seed % 3]


def band(mask: npt.NDArray[np.bool_], ratio: float) -> npt.NDArray[np.bool_]:
    """What is lost by so many erosions with 3 x 3 pixels, the outside being empty."""
    height, width = mask.shape
    eroded = mask
    for _ in range(max(1, round(ratio * math.sqrt(height**2 + width**2)))):
        padded = np.pad(eroded, 1)
        eroded = np.all([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    return mask & ~eroded


@pytest.mark.parametrize("seed", range(30))
def test_the_bands_are_what_erosion_takes_away(seed: int) -> None:
    prediction, target, classes, ratio = random_maps(seed)
    valid = target != IGNORED
    expected = {}
    for label in range(classes):
        true, found = band((target == label) & valid, ratio), band((prediction == label) & valid, ratio)
        union = int((true | found).sum())
        expected[str(label)] = int((true & found).sum()) / union if union else None
    meter = meter_of(classes, ratio)
    meter.update(torch.from_numpy(prediction)[None], torch.from_numpy(target)[None])
    values = meter.compute()
    assert values["boundary_iou"] == expected
    present = [value for value in expected.values() if value is not None]
    assert values["mean_boundary_iou"] == (pytest.approx(np.mean(present)) if present else None)


def squares(inner: int) -> torch.Tensor:
    mask = torch.zeros(1, 60, 80, dtype=torch.int64)
    mask[:, 20 : 20 + inner, 20 : 20 + inner] = 1
    return mask


def test_a_square_that_is_two_pixels_too_wide_by_hand() -> None:
    # d is 2: 2 % of the diagonal, 100. Both bands hold the top and the left edge of the smaller square, 2 x 20 each.
    meter = meter_of(2)
    meter.update(squares(22), squares(20))
    assert meter.counts[:, 1].tolist() == [2 * (2 * 20) - 2 * 2, 20**2 - 16**2, 22**2 - 18**2]


def test_it_punishes_a_wrong_outline_more_than_iou_does() -> None:
    boundary, plain = meter_of(2), build_meter("mean_iou", ("0", "1"), IGNORED)
    for meter in (boundary, plain):
        meter.update(squares(38), squares(36))
    assert boundary.compute()["boundary_iou"]["1"] < plain.compute()["iou"]["1"] - 0.2


def test_images_are_summed_each_with_the_band_of_its_size() -> None:
    both, first, second = meter_of(3), meter_of(3), meter_of(3)
    for seed, meter in ((1, first), (7, second)):
        prediction, target, _, _ = random_maps(seed)
        for one in (meter, both):
            one.update(torch.from_numpy(prediction % 3)[None], torch.from_numpy(target % 3)[None])
    assert torch.equal(both.counts, first.counts + second.counts)
