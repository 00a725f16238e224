"""Windows around rare classes, regions that are too small, and regions pasted from other samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from classyseg import ConfigError
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms import PairTransform, build_transform
from classyseg.transforms.regions import regions_of

IGNORED = 255
CROP = (24, 32)
AROUND = {"name": "random_crop", "size": CROP, "class_share": 1.0}


def rare(size: tuple[int, int] = (120, 160)) -> Sample:
    """An image of class 0 whose colours tell the places of its pixels, a block of 20 x 10 of class 1, 9 pixels of 2."""
    height, width = size
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[60:80, 100:110] = 1
    mask[30:33, 20:23] = 2
    mask[:4] = IGNORED
    rows, columns = torch.arange(height)[:, None].expand(size), torch.arange(width)[None].expand(size)
    return Sample(torch.stack([rows, columns, rows]).to(torch.uint8), mask, "rare.png")


RARE = rare()


def crops(config: dict[str, Any], count: int, sample: Sample = RARE) -> list[Sample]:
    """The windows of the seeds 0, 1, 2, ..."""
    transform = build_transform(config, IGNORED)
    return [transform(sample, generator_for(seed)) for seed in range(count)]


def mixed(config: dict[str, Any], count: int, other: Sample = RARE) -> list[Sample]:
    """`PLAIN` with something of `other`, by the seeds 0, 1, 2, ..."""
    transform: PairTransform = build_transform({"probability": 1.0, **config}, IGNORED)
    return [transform.mix(PLAIN, generator_for(seed), lambda: other, 5) for seed in range(count)]


def chi_square(counts: list[int], shares: list[float]) -> float:
    total = sum(counts)
    return sum((count - total * share) ** 2 / (total * share) for count, share in zip(counts, shares, strict=True))


def test_windows_around_a_class_lie_around_each_class_equally_often() -> None:
    counts = [0, 0, 0]
    for after in crops({**AROUND, "size": (1, 1)}, 400):
        counts[int(after.target)] += 1
    assert chi_square(counts, [1 / 3] * 3) < 9.2  # the quantile of 99 % for two degrees of freedom


def test_the_pixel_of_a_class_is_drawn_among_all_of_its_pixels() -> None:
    found = crops({**AROUND, "size": (1, 1), "class_labels": [2]}, 450)
    places = [tuple(after.image.flatten().tolist()[:2]) for after in found]
    block = [(row, column) for row in range(30, 33) for column in range(20, 23)]
    assert set(places) == set(block)
    assert chi_square([places.count(place) for place in block], [1 / 9] * 9) < 20.1  # 99 % for 8 degrees of freedom


def test_a_window_around_a_pixel_has_it_in_its_middle_unless_it_would_leave_the_image() -> None:
    for after in crops({**AROUND, "class_labels": [2]}, 50):
        top, left = int(after.image[0, 0, 0]), int(after.image[1, 0, 0])
        assert after.target.shape == CROP
        assert torch.equal(after.target, RARE.target[top : top + CROP[0], left : left + CROP[1]])
        middle = top + CROP[0] // 2, left + CROP[1] // 2
        assert 30 <= middle[0] < 33
        assert 20 <= middle[1] < 23 or left == 0
    corner = rare()
    corner.target[:] = 0
    corner.target[-1, -1] = 3
    (after,) = crops({**AROUND, "class_labels": [3]}, 1, corner)
    assert torch.equal(after.target, corner.target[-CROP[0] :, -CROP[1] :])


def test_the_share_of_windows_around_a_class_is_the_one_of_the_config() -> None:
    config = {**AROUND, "class_share": 0.33, "class_labels": [2]}
    has, by_chance = (
        sum(bool((after.target == 2).any()) for after in crops(each, 500))
        for each in (config, {"name": "random_crop", "size": CROP})
    )
    assert abs(has / 500 - (0.33 + 0.67 * by_chance / 500)) < 0.063  # three deviations


def test_without_a_share_windows_are_those_of_before_and_an_image_without_the_classes_gets_one_of_them() -> None:
    plain = {"name": "random_scale_crop", "size": CROP}
    for before, after in zip(crops(plain, 10), crops({**plain, "class_share": 0.0}, 10), strict=True):
        assert torch.equal(before.image, after.image)
    for after in crops({**plain, "class_share": 1.0, "class_labels": [7]}, 10):
        assert after.target.shape == CROP


def test_a_class_of_fewer_pixels_than_min_pixels_is_not_drawn() -> None:
    config = {**AROUND, "class_labels": [1, 2], "min_pixels": 10}
    for after in crops(config, 60):
        assert int((after.target == 1).sum()) >= 10
    assert any((after.target == 2).any() for after in crops({**config, "min_pixels": 9}, 20))


def test_windows_with_fewer_labelled_pixels_are_drawn_anew() -> None:
    half = rare()
    half.target[:, :80] = IGNORED
    fewer = []
    for least in (0, 300):
        found = crops({"name": "random_crop", "size": CROP, "min_pixels": least}, 200, half)
        fewer.append(sum(int((after.target != IGNORED).sum()) < 300 for after in found))
    assert fewer[0] > 80
    assert fewer[1] <= 2  # ten windows in a row


def test_negative_and_large_labels_are_drawn_as_bytes_are() -> None:
    wide = RARE.replace(target=torch.where(RARE.target == IGNORED, -1, RARE.target.long()))
    config = {**AROUND, "class_share": 0.7}
    transform = build_transform(config, -1)
    for seed, expected in enumerate(crops(config, 20)):
        assert torch.equal(transform(wide, generator_for(seed)).image, expected.image)


@pytest.mark.parametrize(
    ("options", "word"), [({"class_labels": [1]}, "class_share"), ({"class_share": 0.5, "class_labels": [255]}, "255")]
)
def test_options_that_say_nothing_are_errors(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=f"class_labels.*{word}"):
        build_transform({"name": "random_crop", "size": CROP, **options}, IGNORED)


# -- regions ----------------------------------------------------------------------------------------------------------


def flooded(mask: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Regions by flooding from pixel to pixel."""
    numbers, sizes = np.full(mask.shape, -1), []
    for start in np.ndindex(mask.shape):
        if numbers[start] >= 0:
            continue
        numbers[start], waiting, size = len(sizes), [start], 0
        while waiting:
            row, column = waiting.pop()
            size += 1
            for r in range(max(0, row - 1), min(mask.shape[0], row + 2)):
                for c in range(max(0, column - 1), min(mask.shape[1], column + 2)):
                    if numbers[r, c] < 0 and mask[r, c] == mask[row, column]:
                        numbers[r, c] = len(sizes)
                        waiting.append((r, c))
        sizes.append(size)
    return numbers, sizes


def masks() -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    spiral = np.zeros((15, 15), dtype=np.uint8)
    for i in range(0, 7, 2):
        spiral[i, i : 15 - i] = spiral[i : 15 - i, 14 - i] = spiral[14 - i, i + 1 : 15 - i] = 1
        spiral[i + 2 : 15 - i, i + 1] = 1
    comb = np.zeros((9, 21), dtype=np.uint8)
    comb[:, ::2] = 1
    comb[-1] = 1
    noise = [random.integers(0, k, size=(h, w)) for k, h, w in ((2, 30, 41), (4, 23, 17), (2, 1, 30), (3, 30, 1))]
    return [spiral, comb, comb[::-1], comb.T.copy(), np.zeros((1, 1), dtype=np.int64), *noise]


def test_regions_are_those_of_flooding_pixel_by_pixel() -> None:
    for mask in masks():
        numbers, sizes = regions_of(mask)
        expected, expected_sizes = flooded(mask)
        assert np.array_equal(numbers, expected)
        assert sizes.tolist() == expected_sizes


def test_small_regions_are_ignored_and_nothing_else_changes() -> None:
    sample = rare()
    sample.target[100, 100] = 1  # a speck of a class that also has a large region
    after = build_transform({"name": "ignore_small_regions", "min_pixels": 10}, IGNORED)(sample, generator_for(0))
    expected = RARE.target.clone()
    expected[30:33, 20:23] = IGNORED
    expected[100, 100] = IGNORED
    assert torch.equal(after.target, expected)
    assert torch.equal(after.image, RARE.image)
    only = build_transform({"name": "ignore_small_regions", "min_pixels": 10, "labels": [1]}, IGNORED)
    kept = only(sample, generator_for(0)).target
    assert int((kept == 2).sum()) == 9
    assert int(kept[100, 100]) == IGNORED


# -- copy-paste -------------------------------------------------------------------------------------------------------


PLAIN = Sample(torch.full_like(RARE.image, 200), torch.full_like(RARE.target, 3), "plain.png")


def test_each_region_is_pasted_with_its_chance_or_not_at_all() -> None:
    other = rare()
    other.target[90:94, 30:35] = 1
    counts = []
    for after in mixed({"name": "copy_paste", "classes": [1], "region_share": 0.3}, 150, other):
        found = after.target == 1
        assert torch.equal(after.image, torch.where(found, other.image, PLAIN.image))
        pixels = int(found.sum())
        counts.append([0, 20, 200, 220].index(pixels))
    assert chi_square([counts.count(i) for i in range(4)], [0.49, 0.21, 0.21, 0.09]) < 11.3  # 99 %
    (large,) = mixed({"name": "copy_paste", "classes": [1], "min_pixels": 21}, 1, other)
    assert int((large.target == 1).sum()) == 200


def test_pasted_regions_are_scaled_and_lie_elsewhere() -> None:
    areas, tops = [], set()
    for after in mixed({"name": "copy_paste", "classes": [1], "scale": [0.5, 0.5]}, 100):
        found = after.target == 1
        areas.append(int(found.sum()))
        tops.add(int(found.nonzero()[0, 0]))
        assert ((after.target == 1) | (after.target == 3)).all()  # neither the border nor what is ignored is pasted
    assert set(areas) <= set(range(40, 61))  # 200 / 4, with edges
    assert len(tops) > 30
    (bigger,) = mixed({"name": "copy_paste", "classes": [0], "scale": [2.0, 2.0]}, 1)
    assert bigger.target.shape == (120, 160)


def test_images_are_mixed_along_the_border_alone_as_a_gaussian_says() -> None:
    sigma = 1.5
    (after,) = mixed({"name": "copy_paste", "classes": [1], "blend": sigma}, 1)
    assert torch.equal(after.target, torch.where(RARE.target == 1, 1, 3).to(torch.uint8))  # labels are not
    radius = 5  # three deviations
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    pasted = np.pad((RARE.target == 1).numpy().astype(float), radius, mode="edge")
    share = np.array([[(pasted[r : r + 11, c : c + 11] * kernel).sum() for c in range(160)] for r in range(120)])
    expected = share * RARE.image.numpy() + (1 - share) * 200.0
    assert np.abs(after.image.numpy() - expected).max() <= 0.51
    far = share == 0
    assert far.any()
    assert (after.image.numpy()[:, far] == 200).all()
