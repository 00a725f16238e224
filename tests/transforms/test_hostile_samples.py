"""Every registered transform meets odd samples: it does what it promises, or says in one sentence why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transform_cases import build_for, cases, run

from classyseg.config import ConfigError
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms import ClassyTransform, build_transform

IGNORE_INDICES = (-1, 0, 255, 65535)
LABELS = (1, 2, 3)
SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (33, 21), (90, 100)]
KINDS: dict[str, tuple[int, torch.dtype]] = {
    "bytes": (3, torch.uint8),
    "grey": (1, torch.uint8),
    "five channels": (5, torch.uint8),
    "16 bits": (3, torch.uint16),
    "normalised": (3, torch.float32),
}
COLORS = {"auto_augment", "color_jitter", "lighting", "photometric_distortion", "rand_augment"}
REFUSED = {name: {*KINDS} - {"bytes"} for name in COLORS} | {
    "normalize": {"grey", "five channels", "normalised"},
    "random_erasing": {"normalised"},
    "cutout": {"normalised"},
}
"""What a transform does not take; the wrapper refuses what torchvision refuses, shares an ignored label beyond 2048."""


def odd(kind: str, size: tuple[int, int], seed: int = 0) -> Sample:
    channels, dtype = KINDS[kind]
    generator = generator_for(seed)
    image = torch.randint(0, 256, (channels, *size), generator=generator)
    mask = torch.randint(1, 4, size, generator=generator)
    return Sample((image / 255 if dtype.is_floating_point else image).to(dtype), mask, "odd.png")


def side_by_side(tensor: Tensor) -> Tensor:
    """The same values, of which neighbours in memory are no neighbours in the image."""
    return tensor.movedim(0, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 0)


def attempt(transform: ClassyTransform, sample: Sample, seed: int, other: Sample) -> Sample | str:
    """What `transform` gives, or the sentence in which it refuses."""
    try:
        return run(transform, sample, seed, other)
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", cases())
def test_an_odd_sample_is_transformed_or_refused_by_its_name(config: dict[str, Any], kind: str) -> None:
    name = config["name"]
    for n, size in enumerate(SIZES):
        ignored = IGNORE_INDICES[n % len(IGNORE_INDICES)]
        refused = kind in REFUSED.get(name, ()) or (name == "mix_up" and ignored == 65535)
        transform, before = build_for(config, ignored), odd(kind, size)
        image, mask = before.image.clone(), before.target.clone()
        unusual = before.replace(image=side_by_side(before.image), target=side_by_side(before.target))
        empty = before.replace(target=torch.full(size, ignored))
        for sample in (before, unusual, empty):
            after = attempt(transform, sample, n, odd(kind, size, 1))
            assert torch.equal(sample.image, image)
            assert torch.equal(sample.target, mask if sample is not empty else torch.full(size, ignored))
            if isinstance(after, str):
                assert refused or name == "torchvision"
                assert "odd.png: " in after or "ignore_index: found 65535" in after
                continue
            assert not refused
            assert len(after.image) == len(sample.image)
            assert after.image.dtype == (torch.float32 if name == "normalize" else sample.image.dtype)
            assert after.image.shape[-2:] == after.target.shape[-2:]
            if not after.target.is_floating_point():
                assert after.target.dtype == torch.int64
                assert {*after.target.unique().tolist()} <= {*LABELS, ignored}


EIGHT_BITS = [*COLORS, "copy_paste", "normalize", "random_erasing", "torchvision"]
"""Transforms of bytes only; of values that have no equal in 16 bits; or that are not ours."""


@pytest.mark.parametrize(
    "config",
    [case for case in cases() if case.values[0]["name"] not in EIGHT_BITS]
    + [
        pytest.param(
            {"name": "sync_resize_crop", "interpolation": "bicubic", "base_size": 60, "crop_size": 40},
            id="sync-bicubic",
        )
    ],
)
def test_an_image_of_16_bits_is_transformed_as_its_bytes_are(config: dict[str, Any]) -> None:
    """Also of black and white, where what overshoots must not wrap around; bytes are clipped between two passes."""
    generator = generator_for(3)
    chosen = torch.randint(0, 2, (3, 60, 50), generator=generator)
    mask = torch.randint(1, 4, (60, 50), generator=generator)
    filled = {"fill": 9} if config["name"] in {"center_crop", "pad", "random_crop", "random_rotation"} else {}
    transform = build_transform({**config, **filled}, 255)
    for dark, light, tolerance in ((0, 255, 40), (100, 155, 1.6)):
        image, other = torch.tensor([dark, light])[chosen], torch.tensor([light, dark])[chosen]
        for seed in range(10):
            low, high = (
                run(transform, Sample((factor * image).to(dtype), mask), seed, Sample((factor * other).to(dtype), mask))
                for factor, dtype in ((1, torch.uint8), (257, torch.uint16))
            )
            assert torch.equal(low.target, high.target)
            assert (high.image.double() / 257 - low.image.double()).abs().max() <= tolerance


def test_normalize_takes_16_bits_for_what_they_are() -> None:
    image = torch.randint(0, 256, (3, 5, 6), generator=generator_for(0))
    low, high = (
        run(build_transform("normalize"), Sample(values, torch.zeros(5, 6, dtype=torch.int64)), 0).image
        for values in (image.to(torch.uint8), (257 * image).to(torch.uint16))
    )
    torch.testing.assert_close(low, high)


def test_noise_of_16_bits_has_all_of_them() -> None:
    black = Sample(torch.zeros(1, 40, 40, dtype=torch.uint16), torch.ones(40, 40, dtype=torch.int64))
    noise = run(build_transform({"name": "random_erasing", "probability": 1}), black, 0).image
    assert noise.int().max() > 60000


@pytest.mark.parametrize(
    "config",
    [
        {"name": "pad", "size": (9, 9), "fill": 128},
        {"name": "center_crop", "size": (9, 9), "fill": 128},
        {"name": "random_crop", "size": (9, 9), "fill": 128},
        {"name": "random_rotation", "probability": 1, "fill": 128},
        {"name": "cutout", "probability": 1},
    ],
    ids=lambda config: config["name"],
)
def test_a_grey_border_of_a_normalised_image_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"odd\.png: .*found a normalised image"):
        run(build_transform(config), odd("normalised", (5, 6)), 0)


@pytest.mark.parametrize(("dtype", "filled"), [(torch.uint8, 200), (torch.uint16, 257 * 200)])
def test_a_grey_level_of_8_bits_fills_images_of_16_in_the_same_grey(dtype: torch.dtype, filled: int) -> None:
    black = Sample(torch.zeros(1, 4, 4, dtype=dtype), torch.zeros(4, 4, dtype=torch.uint8))
    padded = build_transform({"name": "pad", "size": [6, 4], "fill": 200}, 255)(black, generator_for(0))
    assert padded.image.int().unique().tolist() == [0, filled]
