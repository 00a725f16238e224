"""Transforms keep image and mask together, never mix labels, and draw from their generator alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.registry import TRANSFORMS
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms import ColorJitter, Normalize, Pad, RandomScaleCrop, Resize, build_transform

SEEDS = range(50)
IGNORED = 255
HEIGHT, WIDTH = 48, 60
MOVING: list[dict[str, Any]] = [
    {"name": "horizontal_flip"},
    {"name": "random_scale_crop", "size": [32, 40], "scale": [0.5, 2.0]},
    {"name": "random_scale_crop", "size": [70, 30], "scale": [0.5, 1.0]},
    {"name": "resize", "size": [30, 90]},
    {"name": "pad", "multiple": 32},
    {"name": "pad", "size": [50, 20]},
]
ALL: list[dict[str, Any]] = [*MOVING, {"name": "color_jitter", "hue": 0.1}, {"name": "normalize"}]


def coordinates(height: int = HEIGHT, width: int = WIDTH) -> Sample:
    """A sample whose red is 4 y, whose green is 4 x, and whose label is the checkered square that (y, x) lies in."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([4 * y, 4 * x, torch.full_like(x, 200)]).to(torch.uint8)
    return Sample(image, label_at(y, x), "made")


def label_at(y: Tensor, x: Tensor) -> Tensor:
    return (y // 8) * 8 + x // 8


def transformed(config: dict[str, Any], seed: int, sample: Sample | None = None) -> Sample:
    return build_transform(config, IGNORED)(sample or coordinates(), generator_for(seed, 0, 0))


@pytest.mark.parametrize("config", MOVING, ids=str)
@pytest.mark.parametrize("height", [HEIGHT, 20])
def test_each_pixel_keeps_its_label(config: dict[str, Any], height: int) -> None:
    for seed in SEEDS:
        found = transformed(config, seed, coordinates(height))
        assert found.image.shape[1:] == found.target.shape
        red, green = found.image[0].double() / 4, found.image[1].double() / 4
        # Pixels whose place is surely inside a square; smoothing moves values by a pixel or two near the border.
        inside = ((red % 8 - 3.5).abs() < 2) & ((green % 8 - 3.5).abs() < 2) & (found.target != IGNORED)
        inside &= (red > 3) & (red < height - 4) & (green > 3) & (green < WIDTH - 4)
        expected = label_at(red.floor().long(), green.floor().long())
        assert torch.equal(found.target[inside], expected[inside])
        assert inside.any()


@pytest.mark.parametrize("config", MOVING, ids=str)
def test_masks_hold_old_labels_and_ignored_ones_only(config: dict[str, Any]) -> None:
    sample = coordinates()
    known = {*sample.target.unique().tolist(), IGNORED}
    for seed in SEEDS:
        found = transformed(config, seed).target
        assert found.dtype == torch.int64
        assert set(found.unique().tolist()) <= known


@pytest.mark.parametrize("config", MOVING, ids=str)
def test_a_border_is_filled_in_the_image_exactly_where_the_mask_is_ignored(config: dict[str, Any]) -> None:
    for seed in SEEDS:
        found = transformed(config, seed)
        assert torch.equal(found.image[2] == 0, found.target == IGNORED)


@pytest.mark.parametrize("config", ALL, ids=str)
def test_the_result_depends_on_the_generator_alone(config: dict[str, Any]) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        first = transformed(config, seed)
        torch.manual_seed(seed + 100)
        state = torch.get_rng_state()
        second = transformed(config, seed)
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.target, second.target)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("config", ALL, ids=str)
def test_the_sample_that_goes_in_is_left_as_it_is(config: dict[str, Any]) -> None:
    sample, same = coordinates(), coordinates()
    for seed in range(10):
        transformed(config, seed, sample)
    assert torch.equal(sample.image, same.image)
    assert torch.equal(sample.target, same.target)


@pytest.mark.parametrize("name", ["horizontal_flip", "random_scale_crop", "color_jitter"])
def test_random_transforms_differ_from_seed_to_seed(name: str) -> None:
    options = {"size": [32, 32]} if name == "random_scale_crop" else {}
    images = {transformed({"name": name, **options}, seed).image.numpy().tobytes() for seed in SEEDS}
    assert len(images) == (2 if name == "horizontal_flip" else 50)


def test_every_registered_transform_is_tested_here() -> None:
    builtin = {name for name in TRANSFORMS.names() if TRANSFORMS.entry(name).distribution == "classyseg"}
    assert builtin == {config["name"] for config in ALL}


@pytest.mark.parametrize("size", [(16, 16), (48, 60), (100, 20), (20, 100), (200, 200), (1, 1)])
def test_a_crop_has_its_size_whatever_the_images(size: tuple[int, int]) -> None:
    crop = RandomScaleCrop(IGNORED, size=size)
    for seed in SEEDS:
        found = crop(coordinates(), generator_for(seed))
        assert found.image.shape == (3, *size)
        assert found.target.shape == size


def test_a_scaled_image_smaller_than_the_crop_is_whole_and_lies_anywhere_in_it() -> None:
    crop = RandomScaleCrop(IGNORED, size=(64, 80), scale=(0.5, 0.5))
    corners = set()
    for seed in SEEDS:
        inside = (crop(coordinates(), generator_for(seed)).target != IGNORED).nonzero()
        top, left = inside.min(0).values.tolist()
        assert (inside.max(0).values - inside.min(0).values + 1).tolist() == [24, 30]
        corners.add((top, left))
    assert {top for top, _ in corners} >= {0, 40} or len({top for top, _ in corners}) > 15
    assert all(0 <= top <= 40 and 0 <= left <= 50 for top, left in corners)


def test_a_crop_reaches_every_part_of_the_image() -> None:
    crop = RandomScaleCrop(IGNORED, size=(16, 16), scale=(1.0, 1.0))
    seen = {label for seed in range(200) for label in crop(coordinates(), generator_for(seed)).target.unique().tolist()}
    assert seen == set(coordinates().target.unique().tolist())


def test_a_crop_at_scale_one_copies_pixels() -> None:
    crop = RandomScaleCrop(IGNORED, size=(32, 40), scale=(1.0, 1.0))
    for seed in SEEDS:
        found = crop(coordinates(), generator_for(seed))
        top, left = (int(value) // 4 for value in found.image[:2, 0, 0])
        assert torch.equal(found.image, coordinates().image[:, top : top + 32, left : left + 40])
        assert torch.equal(found.target, coordinates().target[top : top + 32, left : left + 40])


@pytest.mark.parametrize(("probability", "flips"), [(0.0, False), (1.0, True)])
def test_a_certain_flip_mirrors_and_an_impossible_one_does_not(probability: float, flips: bool) -> None:
    sample = coordinates()
    for seed in SEEDS:
        found = transformed({"name": "horizontal_flip", "probability": probability}, seed)
        assert torch.equal(found.image, sample.image.flip(2) if flips else sample.image)
        assert torch.equal(found.target, sample.target.flip(1) if flips else sample.target)


def test_resizing_the_image_alone_keeps_the_mask() -> None:
    found = Resize(IGNORED, size=(24, 30), image_only=True)(coordinates(), generator_for(0))
    assert found.image.shape == (3, 24, 30)
    assert torch.equal(found.target, coordinates().target)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"multiple": 32}, (64, 64)),
        ({"multiple": 12}, (48, 60)),
        ({"size": (50, 20)}, (50, 60)),
        ({"size": (10, 70)}, (48, 70)),
    ],
)
def test_a_pad_adds_below_and_to_the_right_what_is_lacking(options: dict[str, Any], size: tuple[int, int]) -> None:
    found = Pad(IGNORED, fill=7, **options)(coordinates(), generator_for(0))
    assert found.target.shape == size
    assert torch.equal(found.target[:HEIGHT, :WIDTH], coordinates().target)
    assert (found.target == IGNORED).sum() == size[0] * size[1] - HEIGHT * WIDTH
    assert set(found.image[:, found.target == IGNORED].unique().tolist()) <= {7}


def test_normalize_scales_centres_and_divides() -> None:
    sample = Sample(torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1), torch.zeros(1, 1, dtype=torch.int64))
    normalize = Normalize(IGNORED, mean=(0.5, 0.5, 0.0), std=(0.5, 0.25, 0.1))
    found = normalize(sample, generator_for(0)).image.flatten()
    torch.testing.assert_close(found, torch.tensor([-1.0, 2.0, 2.0]))


def test_jitter_of_no_strength_changes_nothing() -> None:
    jitter = ColorJitter(IGNORED, brightness=0, contrast=0, saturation=0, hue=0)
    assert torch.equal(jitter(coordinates(), generator_for(0)).image, coordinates().image)


def test_jitter_of_brightness_scales_within_its_strength() -> None:
    jitter = ColorJitter(IGNORED, brightness=0.2, contrast=0, saturation=0)
    sample = Sample(torch.full((3, 2, 2), 100, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.int64))
    values = [int(jitter(sample, generator_for(seed)).image[0, 0, 0]) for seed in SEEDS]
    assert 79 <= min(values) < 90
    assert 110 < max(values) <= 120


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "random_scale_crop", "size": [32, 32], "scale": [2.0, 0.5]}, r"scale: found \[2.0, 0.5\]"),
        ({"name": "random_scale_crop", "size": [0, 32]}, r"size\[0\]: found 0"),
        ({"name": "random_scale_crop", "size": 32}, r"size: found 32"),
        ({"name": "random_scale_crop"}, r"size: missing"),
        ({"name": "horizontal_flip", "probability": 1.1}, r"probability: found 1.1"),
        ({"name": "horizontal_flop"}, r"did you mean 'horizontal_flip'"),
        ({"name": "color_jitter", "hue": 0.6}, r"hue: found 0.6"),
        ({"name": "pad"}, r"pad: give one of 'size' and 'multiple'"),
        ({"name": "pad", "size": [8, 8], "multiple": 8}, r"pad: give one of 'size' and 'multiple'"),
        ({"name": "normalize", "mean": [0.5]}, r"normalize: found 1 means and 3 standard deviations"),
        ({"name": "normalize", "std": [0.0, 1.0, 1.0]}, r"std\[0\]: found 0.0"),
    ],
)
def test_a_wrong_option_is_named_with_what_was_found(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_transform(config, IGNORED)


def test_normalising_twice_is_an_error_that_names_the_sample() -> None:
    once = transformed({"name": "normalize"}, 0)
    with pytest.raises(ConfigError, match="made: normalised already"):
        transformed({"name": "normalize"}, 0, once)


def test_normalising_another_number_of_channels_is_an_error_that_names_the_sample() -> None:
    grey = Sample(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.int64), "grey.png")
    with pytest.raises(ConfigError, match=r"grey.png: has 1 channels; 'normalize' has 3 means"):
        transformed({"name": "normalize"}, 0, grey)
