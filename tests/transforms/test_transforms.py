"""Transforms keep image and mask together, never mix labels, and draw from their generator alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import functional

from classyseg.config import ConfigError
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms import ClassyTransform, Pad, RandomScaleCrop, Resize, build_transform
from classyseg.transforms.pixels import resize_image

IGNORED = -1
STEP = 4
SEEDS = range(50)
LARGE, WIDE, SMALL = (60, 50), (20, 60), (13, 17)
CROP = (24, 32)

GEOMETRY: list[dict[str, Any]] = [
    {"name": "random_scale_crop", "size": CROP},
    {"name": "random_scale_crop", "size": CROP, "scale": (1.0, 1.0)},
    {"name": "random_scale_crop", "size": CROP, "scale": (0.3, 0.6)},
    {"name": "horizontal_flip"},
    {"name": "resize", "size": CROP},
    {"name": "pad", "size": CROP},
    {"name": "pad", "multiple": 16},
]
EVERY = [*GEOMETRY, {"name": "color_jitter", "hue": 0.1}, {"name": "normalize"}]


def named(config: dict[str, Any]) -> str:
    return "-".join(str(value) for value in config.values())


def place(size: tuple[int, int]) -> Sample:
    """An image whose first two channels, and a mask whose labels, tell the row and column of each pixel."""
    height, width = size
    row = torch.arange(height)[:, None].expand(size)
    column = torch.arange(width)[None].expand(size)
    image = torch.stack([row * STEP, column * STEP, torch.full(size, 200)]).to(torch.uint8)
    return Sample(image, row * width + column, "place.png")


def noise(size: tuple[int, int] = LARGE) -> Sample:
    generator = generator_for(7)
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return Sample(image, torch.randint(0, 4, size, generator=generator), "noise.png")


def build(config: dict[str, Any]) -> ClassyTransform:
    transform: ClassyTransform = build_transform(config, IGNORED)
    return transform


@pytest.mark.parametrize("size", [LARGE, WIDE, SMALL, CROP, (1, 1)], ids=str)
@pytest.mark.parametrize("scale", [(0.5, 2.0), (1.0, 1.0), (0.05, 0.1), (8.0, 9.0)], ids=str)
def test_a_crop_has_its_size_whatever_the_image_has(size: tuple[int, int], scale: tuple[float, float]) -> None:
    transform = build({"name": "random_scale_crop", "size": CROP, "scale": scale})
    for seed in range(20):
        after = transform(place(size), generator_for(seed))
        assert after.image.shape == (3, *CROP)
        assert after.image.dtype == torch.uint8
        assert after.target.shape == CROP


def test_a_small_image_lies_whole_in_a_border_of_fill_and_ignored_labels() -> None:
    transform = build({"name": "random_scale_crop", "size": CROP, "scale": (1.0, 1.0), "fill": 9})
    before = place(SMALL)
    corners = set()
    for seed in SEEDS:
        after = transform(before, generator_for(seed))
        valid = after.target != IGNORED
        assert (after.image[:, ~valid] == 9).all()
        assert torch.equal(after.target[valid], before.target.flatten())
        assert torch.equal(after.image[:, valid], before.image.flatten(1))
        corners.add(tuple(valid.nonzero()[0].tolist()))
    assert len(corners) > 10  # a random place


def test_a_crop_at_scale_one_is_a_window_of_the_image_bit_for_bit() -> None:
    before = noise()
    transform = build({"name": "random_scale_crop", "size": CROP, "scale": (1.0, 1.0)})
    windows = before.image.unfold(1, CROP[0], 1).unfold(2, CROP[1], 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    found = set()
    for seed in SEEDS:
        same = (windows == transform(before, generator_for(seed)).image).flatten(1).all(1).nonzero()
        assert len(same) == 1, seed
        found.add(int(same))
    assert len(found) > 20


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_crop_is_that_of_the_whole_image_scaled(scale: float) -> None:
    """Within a grey level, where the window's border, from which nothing outside is seen, is two pixels away."""
    generator = generator_for(2)
    image = resize_image(torch.randint(0, 256, (3, 8, 8), generator=generator, dtype=torch.uint8), (64, 80))
    before = Sample(image, torch.arange(64 * 80).view(64, 80))
    whole = resize_image(image, (round(64 * scale), round(80 * scale)))
    crop = build({"name": "random_scale_crop", "size": (20, 24), "scale": (scale, scale)})
    seen = 0
    for seed in SEEDS:
        after = crop(before, generator_for(seed))
        row, column = divmod(int(after.target[0, 0]), 80)
        if scale < 1 and not row % 2 == column % 2 == 1:
            continue  # the labels of a window that begins between two pixels of the scaled image
        seen += 1
        top, left = int(row * scale), int(column * scale)
        off = whole[:, top : top + 20, left : left + 24].int() - after.image.int()
        assert off[:, 2:-2, 2:-2].abs().max() <= 1
    assert seen >= 5


def test_scales_cover_their_range() -> None:
    transform = build({"name": "random_scale_crop", "size": CROP, "scale": (0.5, 2.0)})
    widths = []
    for seed in range(200):
        columns = transform(place((60, 60)), generator_for(seed)).target % 60
        widths.append(int(columns.max() - columns.min()) + 1)
    assert min(widths) <= 18  # 32 pixels at twice the size
    assert max(widths) >= 52  # at 0.5 all 60 columns


@pytest.mark.parametrize("name", ["random_scale_crop", "horizontal_flip", "color_jitter"])
def test_what_is_random_differs_between_seeds(name: str) -> None:
    transform = build({"name": name} | ({"size": CROP} if name == "random_scale_crop" else {}))
    images = [transform(noise(), generator_for(seed)).image for seed in range(10)]
    assert any(not torch.equal(images[0], image) for image in images[1:])


@pytest.mark.parametrize(("probability", "flipped"), [(0.0, 0), (1.0, 50)])
def test_flips_have_their_probability(probability: float, flipped: int) -> None:
    transform = build({"name": "horizontal_flip", "probability": probability})
    before = noise()
    after = [transform(before, generator_for(seed)) for seed in SEEDS]
    assert sum(torch.equal(sample.target, before.target.flip(-1)) for sample in after) == flipped
    assert sum(torch.equal(sample.image, before.image.flip(-1)) for sample in after) == flipped


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_images_of_any_channels_and_integers_are_resized(channels: int) -> None:
    image = torch.randint(0, 256, (channels, 20, 30), generator=generator_for(channels), dtype=torch.uint8)
    for size in ((10, 12), (1, 1), (50, 31)):
        found = resize_image(image, size)
        assert (found.int() - resize_image(image.float(), size).round().int()).abs().max() <= 1
        assert found.shape == (channels, *size)
        assert torch.equal(
            resize_image(image.int() * 250, size).int() // 250 >= found.int() - 2,
            torch.ones(found.shape, dtype=torch.bool),
        )


def test_resize_of_the_image_only_leaves_the_mask() -> None:
    after = build({"name": "resize", "size": CROP, "image_only": True})(noise(), generator_for(0))
    assert after.image.shape == (3, *CROP)
    assert torch.equal(after.target, noise().target)


@pytest.mark.parametrize("config", [c for c in GEOMETRY if c["name"] in ("random_scale_crop", "pad")], ids=named)
def test_a_crop_or_pad_after_a_resize_of_the_image_only_is_refused_and_says_what_to_do(config: dict[str, Any]) -> None:
    resized = build({"name": "resize", "size": (30, 20), "image_only": True})(noise(), generator_for(0))
    message = rf"noise\.png: '{config['name']}' found an image of 30 x 20 and a mask of 60 x 50 .* resize last"
    with pytest.raises(ConfigError, match=message):
        build(config)(resized, generator_for(0))


def test_resizing_both_brings_an_image_resized_alone_and_its_mask_together_again() -> None:
    resized = build({"name": "resize", "size": (30, 20), "image_only": True})(place(LARGE), generator_for(0))
    both = build({"name": "resize", "size": LARGE})(resized, generator_for(0))
    assert build({"name": "pad", "multiple": 32})(both, generator_for(0)).target.shape == (64, 64)


@pytest.mark.parametrize(
    ("options", "size", "expected"),
    [
        ({"size": (10, 20)}, (60, 50), (10, 20)),
        ({"shorter_side": 25}, (60, 50), (30, 25)),
        ({"shorter_side": 25}, (50, 100), (25, 50)),
        ({"longer_side": 30}, (60, 50), (30, 25)),
        ({"shorter_side": 25, "longer_side": 40}, (60, 50), (30, 25)),
        ({"shorter_side": 25, "longer_side": 40}, (50, 100), (20, 40)),
        ({"fit": (30, 30)}, (60, 40), (30, 20)),
        ({"fit": (90, 20)}, (60, 40), (30, 20)),
        ({"fit": (300, 200)}, (60, 40), (300, 200)),
        ({"shorter_side": 1}, (3, 200), (1, 67)),
    ],
)
def test_resize_has_its_forms(options: dict[str, Any], size: tuple[int, int], expected: tuple[int, int]) -> None:
    after = build({"name": "resize", **options})(noise(size), generator_for(0))
    assert after.image.shape[1:] == after.target.shape == expected


FITTED = {"fit": (90, 20)}, {"shorter_side": 25}, {"longer_side": 90}, {"shorter_side": 25, "longer_side": 40}
"""Forms of a base, for which the factors of an image of 60 x 40 are 0.5, 0.625, 1.5 and 0.625."""


@pytest.mark.parametrize("base", FITTED, ids=named)
def test_the_scale_of_a_crop_is_relative_to_the_fitted_image(base: dict[str, Any]) -> None:
    """Which gives the crop that the same factor of the image's own size gives, bit for bit."""
    size = (60, 40)
    fitted = build({"name": "resize", **base})(noise(size), generator_for(0)).target.shape
    factor = fitted[1] / size[1]
    crop = {"name": "random_scale_crop", "size": (16, 12)}
    for scale in ((0.5, 2.0), (1.0, 1.0)):
        relative = build({**crop, "scale": scale, **base})
        absolute = build({**crop, "scale": tuple(factor * bound for bound in scale)})
        for seed in range(20):
            one, other = relative(noise(size), generator_for(seed)), absolute(noise(size), generator_for(seed))
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.target, other.target)


def test_crops_of_large_and_small_images_of_one_scene_show_it_at_one_scale_with_an_absolute_base() -> None:
    """As mmsegmentation's `RandomResize(scale=(2048, 512), ratio_range=...)` and PyTorch-Encoding's `base_size`."""
    crop = build({"name": "random_scale_crop", "size": (20, 20), "scale": (1.0, 1.0), "longer_side": 80})
    for length in (40, 80, 160, 400):
        seen = crop(Sample(torch.zeros(3, 8, length), torch.arange(length).repeat(8, 1)), generator_for(0)).target
        share = (seen.max() - seen[seen != IGNORED].min() + 1) / length
        assert share == pytest.approx(20 / 80, abs=1.01 / length + 0.01)


def test_random_crop_is_the_crop_at_scale_one() -> None:
    options = {"size": CROP, "max_class_fraction": 0.3, "fill": 4}
    for seed in SEEDS:
        one = build({"name": "random_crop", **options})(noise(), generator_for(seed))
        other = build({"name": "random_scale_crop", "scale": (1.0, 1.0), **options})(noise(), generator_for(seed))
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.target, other.target)


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({"scale": (0.5, 2.0)}, (30, 20), (120, 80)),
        ({"scale": (0.5, 1.5), "longer_side": 100}, (50, 33), (150, 100)),
        ({"scale": (2.0, 2.0)}, (120, 80), (120, 80)),
        ({"scale": (0.5, 1.0), "shorter_side": 80, "longer_side": 90}, (45, 30), (90, 60)),
        ({"shorter_side": (20, 80)}, (30, 20), (120, 80)),
        ({"shorter_side": (20, 80), "longer_side": 60}, (30, 20), (60, 40)),
        ({"shorter_side": (20, 40), "scale": (0.5, 0.5)}, (15, 10), (30, 20)),
    ],
    ids=str,
)
def test_random_sizes_keep_the_ratio_and_reach_both_ends(
    options: dict[str, Any], low: tuple[int, int], high: tuple[int, int]
) -> None:
    transform = build({"name": "random_resize", **options})
    found = [transform(noise((60, 40)), generator_for(seed)) for seed in range(200)]
    sizes = {tuple(sample.image.shape[1:]) for sample in found}
    assert all(sample.image.shape[1:] == sample.target.shape for sample in found)
    assert all(abs(height - 1.5 * width) <= 1.25 for height, width in sizes)
    tolerance = 0.1 * (high[0] - low[0]) if isinstance(options.get("scale"), tuple) else 0
    assert low[0] <= min(sizes)[0] <= low[0] + tolerance
    assert high[0] - tolerance <= max(sizes)[0] <= high[0]
    assert "scale" in options or len(sizes) == len(options["shorter_side"])


def test_a_center_crop_is_the_middle_or_lies_in_the_middle_of_a_border() -> None:
    before = noise((60, 50))
    crop = build({"name": "center_crop", "size": CROP, "fill": 7})
    assert torch.equal(crop(before, generator_for(0)).image, before.image[:, 18:42, 9:41])
    assert torch.equal(crop(before, generator_for(0)).target, before.target[18:42, 9:41])
    small = crop(noise((14, 60)), generator_for(0))
    assert torch.equal(small.image[:, 5:19], noise((14, 60)).image[:, :, 14:46])
    assert (small.image[:, :5] == 7).all()
    assert (small.target[19:] == IGNORED).all()


@pytest.mark.parametrize("size", [(60, 50), (59, 51), (24, 32), (25, 31), (14, 60), (61, 15), (1, 1)], ids=str)
def test_a_center_crop_is_torchvision_s(size: tuple[int, int]) -> None:
    after = build({"name": "center_crop", "size": CROP})(noise(size), generator_for(0))
    assert torch.equal(after.image, functional.center_crop(noise(size).image, list(CROP)))


@pytest.mark.parametrize(("degrees", "turns"), [(90.0, 1), (-90.0, -1), (180.0, 2)])
def test_a_positive_angle_turns_anticlockwise(degrees: float, turns: int) -> None:
    before = noise((20, 20))
    rotation = build({"name": "random_rotation", "degrees": (degrees, degrees), "probability": 1.0})
    after = rotation(before, generator_for(0))
    assert torch.equal(after.image, before.image.rot90(turns, (1, 2)))
    assert torch.equal(after.target, before.target.rot90(turns))


def test_what_a_rotation_brings_from_outside_is_ignored_and_nothing_else() -> None:
    white = Sample(torch.full((3, 30, 40), 255, dtype=torch.uint8), torch.zeros(30, 40, dtype=torch.int64))
    rotation = build({"name": "random_rotation", "degrees": (30.0, 30.0), "probability": 1.0, "fill": 9})
    after = rotation(white, generator_for(0))
    outside = after.target == IGNORED
    assert (after.image[:, outside] == 9).all()
    assert (after.image[:, ~outside] == 255).all()
    assert 100 < outside.sum() < 600


def test_a_class_that_fills_windows_is_avoided() -> None:
    mask = torch.zeros(64, 64, dtype=torch.int64)
    mask[:, 48:] = 1
    mask[:4] = IGNORED
    before = Sample(torch.zeros(3, 64, 64, dtype=torch.uint8), mask)
    config = {"name": "random_scale_crop", "size": (16, 16), "scale": (1.0, 1.0)}
    shares: dict[float, float] = {}
    for limit in (1.0, 0.75):
        crop = build({**config, "max_class_fraction": limit})
        found = [crop(before, generator_for(seed)).target for seed in range(100)]
        within = [max((m == 0).sum(), (m == 1).sum()) <= 0.75 * (m != IGNORED).sum() for m in found]
        shares[limit] = sum(map(bool, within)) / len(within)
    assert shares[1.0] < 0.35
    assert shares[0.75] > 0.8


def test_a_window_without_a_valid_pixel_is_avoided_where_classes_are_balanced() -> None:
    mask = torch.full((64, 64), IGNORED)
    mask[::2, 32:], mask[1::2, 32:] = 0, 1
    before = Sample(torch.zeros(3, 64, 64, dtype=torch.uint8), mask)
    empty = {}
    for limit in (1.0, 0.75):
        crop = build({"name": "random_crop", "size": (16, 16), "max_class_fraction": limit})
        found = [crop(before, generator_for(seed)).target for seed in range(100)]
        empty[limit] = sum(bool((target == IGNORED).all()) for target in found)
    assert empty[1.0] > 20
    assert empty[0.75] == 0


@pytest.mark.parametrize(
    ("options", "size", "padded"),
    [
        ({"size": (40, 30)}, (20, 20), (40, 30)),
        ({"size": (10, 30)}, (20, 20), (20, 30)),
        ({"size": (10, 10)}, (20, 20), (20, 20)),
        ({"multiple": 16}, (17, 32), (32, 32)),
        ({"multiple": 1}, (17, 31), (17, 31)),
    ],
)
def test_pad_adds_below_and_to_the_right(
    options: dict[str, Any], size: tuple[int, int], padded: tuple[int, int]
) -> None:
    before = noise(size)
    after = build({"name": "pad", "fill": 5, **options})(before, generator_for(0))
    image, mask = torch.full((3, *padded), 5, dtype=torch.uint8), torch.full(padded, IGNORED)
    image[:, : size[0], : size[1]], mask[: size[0], : size[1]] = before.image, before.target
    assert torch.equal(after.image, image)
    assert torch.equal(after.target, mask)


def test_color_jitter_leaves_the_mask_and_the_type_of_the_image() -> None:
    before = noise()
    after = build({"name": "color_jitter", "hue": 0.2})(before, generator_for(1))
    assert torch.equal(after.target, before.target)
    assert after.image.dtype == torch.uint8
    assert not torch.equal(after.image, before.image)


def test_color_jitter_of_no_strength_changes_nothing() -> None:
    transform = build({"name": "color_jitter", "brightness": 0, "contrast": 0, "saturation": 0})
    assert torch.equal(transform(noise(), generator_for(1)).image, noise().image)


def test_color_jitter_refuses_an_image_that_is_normalised() -> None:
    normalised = build({"name": "normalize"})(noise(), generator_for(0))
    with pytest.raises(ConfigError, match=r"noise\.png.*'color_jitter'.*normalised"):
        build({"name": "color_jitter"})(normalised, generator_for(0))


def test_brightness_multiplies_by_one_factor_within_its_strength() -> None:
    transform = build({"name": "color_jitter", "brightness": 0.4, "contrast": 0, "saturation": 0})
    grey = Sample(torch.full((3, 2, 2), 100, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.int64))
    values = [transform(grey, generator_for(seed)).image.unique().tolist() for seed in SEEDS]
    assert all(len(value) == 1 and 59 <= value[0] <= 140 for value in values)
    assert min(values)[0] < 75
    assert max(values)[0] > 125


def test_normalize_scales_shifts_and_divides() -> None:
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    transform = build({"name": "normalize", "mean": [0.5, 0.1, 0.0], "std": [0.5, 0.2, 0.25]})
    after = transform(Sample(image, torch.zeros(1, 1, dtype=torch.int64)), generator_for(0))
    torch.testing.assert_close(after.image.flatten(), torch.tensor([-1.0, 0.5, 4.0]))


def test_to_normalize_twice_is_an_error_that_names_the_sample() -> None:
    transform = build({"name": "normalize"})
    with pytest.raises(ConfigError, match=r"noise\.png: normalised already"):
        transform(transform(noise(), generator_for(0)), generator_for(0))


def test_to_normalize_other_channels_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"noise\.png.*3 channels.*2 means"):
        build({"name": "normalize", "mean": [0.5, 0.5], "std": [1.0, 1.0]})(noise(), generator_for(0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "random_scale_crop", "size": CROP, "scale": (2.0, 0.5)}, "must not be larger than the second"),
        ({"name": "random_scale_crop", "size": CROP, "scale": (0.0, 1.0)}, "scale"),
        ({"name": "random_scale_crop", "size": (0, 8)}, "size"),
        ({"name": "random_scale_crop"}, "size"),
        ({"name": "pad", "size": CROP, "multiple": 8}, "give one of 'size' and 'multiple'"),
        ({"name": "pad"}, "give one of 'size' and 'multiple'"),
        ({"name": "pad", "multiple": 8, "fill": 256}, "fill"),
        ({"name": "horizontal_flip", "probability": 1.5}, "probability"),
        ({"name": "random_rotation", "degrees": (5.0, -5.0)}, "degrees: found .* must not be larger than the second"),
        ({"name": "random_scale_crop", "size": CROP, "max_class_fraction": 0}, "max_class_fraction"),
        ({"name": "sync_resize_crop", "scale": (2.0, 0.5)}, "scale: found .* must not be larger than the second"),
        ({"name": "resize"}, "give one of 'size', 'fit', and 'shorter_side' or 'longer_side'"),
        ({"name": "resize", "size": CROP, "shorter_side": 8}, "give one of 'size', 'fit', and 'shorter_side'"),
        ({"name": "resize", "fit": CROP, "longer_side": 8}, "fit: give either 'fit', or 'shorter_side' or"),
        ({"name": "random_scale_crop", "size": CROP, "fit": CROP, "shorter_side": 8}, "fit: give either 'fit', or"),
        ({"name": "random_resize", "scale": (1, 2), "fit": CROP, "shorter_side": [8, 9]}, "fit: give either"),
        ({"name": "random_resize"}, "scale: give a range of factors, or a list of two or more"),
        ({"name": "random_resize", "shorter_side": 8}, "scale: give a range of factors, or a list of two or more"),
        ({"name": "random_resize", "scale": (1, 2), "shorter_side": []}, "shorter_side: found an empty list"),
        ({"name": "random_resize", "scale": (2, 1)}, "scale: found .* must not be larger than the second"),
        ({"name": "random_resize", "shorter_side": [8, 0]}, "shorter_side"),
        ({"name": "color_jitter", "hue": 0.6}, "hue"),
        ({"name": "normalize", "mean": [0.5]}, "found 1 means and 3 standard deviations"),
        ({"name": "normalize", "std": [1.0, 0.0, 1.0]}, "std"),
    ],
    ids=lambda value: value if isinstance(value, str) else named(value),
)
def test_wrong_options_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(config)


@pytest.mark.parametrize("size", [[1, 1], torch.Size([24, 32])], ids=str)
@pytest.mark.parametrize("make", [Resize, RandomScaleCrop, Pad])
def test_a_size_from_python_may_be_any_sequence_of_two(make: Callable[..., ClassyTransform], size: Any) -> None:
    for seed in SEEDS:
        found, expected = (make(IGNORED, size=s)(noise(), generator_for(seed)) for s in (size, tuple(size)))
        assert torch.equal(found.image, expected.image)
        assert torch.equal(found.target, expected.target)


@pytest.mark.parametrize("size", [32, [32], [8, 8, 8], [0, 8], [8.0, 8], "12"], ids=repr)
@pytest.mark.parametrize("make", [Resize, RandomScaleCrop, Pad])
def test_a_size_from_python_that_is_no_height_and_width_is_refused(
    make: Callable[..., ClassyTransform], size: Any
) -> None:
    with pytest.raises(ConfigError, match=r"size.*height"):
        make(size=size)
