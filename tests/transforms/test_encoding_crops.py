"""PyTorch-Encoding's crops: the order of its draws after `random.seed`, masks to the pixel, images by Pillow."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms import ResizeCenterCrop, SyncResizeCrop, build_transform
from classyseg.transforms.pixels import nearest_indices, resize_mask

SIZES = [(37, 50), (50, 37), (40, 40), (90, 31), (64, 128)]
OPTIONS = [(52, 48, (0.5, 2.0)), (64, 57, (0.5, 2.5)), (52, 20, (0.5, 2.0))]


def drawn(size: tuple[int, int]) -> Sample:
    generator = generator_for(5)
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return Sample(image, torch.randint(1, 20, size, generator=generator), "drawn.png")


def pillow(sample: Sample) -> tuple[Any, Any]:
    image = Image.fromarray(sample.image.permute(1, 2, 0).contiguous().numpy())
    return image, Image.fromarray(sample.target.numpy().astype(np.uint8))


def equal_to(after: Sample, image: Any, mask: Any) -> None:
    assert np.array_equal(after.target.numpy(), np.array(mask))
    assert np.array_equal(after.image.permute(1, 2, 0).numpy(), np.array(image))


def training_crop(sample: Sample, base: int, crop: int, scale: tuple[float, float]) -> tuple[Any, Any]:
    """The reference's way: everything is resized and padded (with 0), then cropped; draws from Python's `random`."""
    image, mask = pillow(sample)
    if random.random() < 0.5:
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    width, height = image.size
    longer = random.randint(int(base * scale[0]), int(base * scale[1]))
    shorter = int(min(width, height) * longer / max(width, height) + 0.5)
    size = (shorter, longer) if height > width else (longer, shorter)
    image, mask = image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)
    border = (0, 0, max(0, crop - size[0]), max(0, crop - size[1]))
    image, mask = (ImageOps.expand(each, border, fill=0) for each in (image, mask))
    left = random.randint(0, image.size[0] - crop)
    top = random.randint(0, image.size[1] - crop)
    box = (left, top, left + crop, top + crop)
    return image.crop(box), mask.crop(box)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("base", "crop", "scale"), OPTIONS)
def test_a_seeded_training_crop_is_the_reference_s(
    size: tuple[int, int], base: int, crop: int, scale: tuple[float, float]
) -> None:
    before = drawn(size)
    transform = SyncResizeCrop(0, base_size=base, crop_size=crop, scale=scale)
    for seed in range(40):
        random.seed(seed)
        equal_to(transform.crop(before, random.Random(seed)), *training_crop(before, base, crop, scale))


RECORDED = [
    ((375, 500), 520, 480, 0, "6d7e7ad506d7e1514ce0d6d33c5a90b16c4ba056", "ae9b52a6e84af81e6042691ae53d58de6aab6407"),
    ((500, 375), 520, 480, 1, "51a715926cd2278a6ec28541a5226116a06f7d6a", "cc804e2370d8ba7f0c29b873f41cbeb7c3953142"),
    ((512, 683), 520, 480, 2, "eb6392a21b2cbb96d7a8bd490c4af3685c384696", "5ad225f7296c5e85f89e4184e9da5dbb02e5c3bf"),
    ((683, 512), 640, 576, 3, "cb39e2aecfac54d55e457536114c238360ffb4fc", "ba3a6742b651493a3d01ce72704f3d561550f6af"),
    ((96, 128), 100, 90, 4, "73aa9790cdc1942d9063a2a1965906c259dff361", "59b993620a68a7d64cc13a30ab8c984fe731028d"),
    ((128, 97), 100, 90, 5, "63706cffe78b0ab1f931a1cafe6f2e3a1a257545", "2fb8bf15b05ee7e42d620006d0a923ccc92fcba3"),
]
"""Size, `base_size`, `crop_size`, seed, and the SHA-1 of the masks that PyTorch-Encoding's own code gave, as bytes:
after its training crop and after its validation crop."""


@pytest.mark.parametrize(("size", "base", "crop", "seed", "trained", "validated"), RECORDED)
def test_masks_are_those_that_the_reference_gave(
    size: tuple[int, int], base: int, crop: int, seed: int, trained: str, validated: str
) -> None:
    row, column = torch.arange(size[0])[:, None], torch.arange(size[1])[None]
    mask = (row // 7 * 5 + column // 5 * 3 + row * column % 11) % 21
    before = Sample(torch.zeros(3, *size, dtype=torch.uint8), mask)
    found = [
        SyncResizeCrop(0, base_size=base, crop_size=crop).crop(before, random.Random(seed)),
        ResizeCenterCrop(0, crop_size=crop)(before, generator_for(0)),
    ]
    digests = [hashlib.sha1(after.target.to(torch.uint8).numpy().tobytes()).hexdigest() for after in found]
    assert digests == [trained, validated]


def test_the_border_of_a_mask_is_ignored() -> None:
    transform = SyncResizeCrop(255, base_size=20, crop_size=48)
    after = transform(drawn((40, 30)), generator_for(0))
    assert after.image.shape == (3, 48, 48)
    outside = after.target == 255
    assert outside.any()
    assert (after.image[:, outside] == 0).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("crop", [24, 33, 48])
def test_a_validation_crop_is_the_reference_s(size: tuple[int, int], crop: int) -> None:
    image, mask = pillow(drawn(size))
    width, height = image.size
    wanted = (int(width * crop / height), crop) if width > height else (crop, int(height * crop / width))
    left, top = (round((side - crop) / 2) for side in wanted)
    box = (left, top, left + crop, top + crop)
    after = ResizeCenterCrop(0, crop_size=crop)(drawn(size), generator_for(0))
    expected_image = image.resize(wanted, Image.Resampling.BILINEAR).crop(box)
    equal_to(after, expected_image, mask.resize(wanted, Image.Resampling.NEAREST).crop(box))


def test_nearest_labels_are_pillow_s_for_every_pair_of_lengths() -> None:
    for length in range(1, 60):
        line = Image.fromarray(np.arange(length, dtype=np.int32)[None])
        for out_length in range(1, 60):
            expected = np.array(line.resize((out_length, 1), Image.Resampling.NEAREST))[0]
            assert np.array_equal(nearest_indices(length, out_length), expected), (length, out_length)


def test_labels_of_any_value_survive_resizing() -> None:
    mask = torch.tensor([[2**40 + 1, -(2**40)]])
    assert torch.equal(resize_mask(mask, (2, 4)), mask.repeat_interleave(2, 1).repeat(2, 1))


def test_images_of_more_channels_and_more_bits_are_cropped_too() -> None:
    image = torch.linspace(0, 60000, 5 * 30 * 40).view(5, 30, 40).int()
    transform = build_transform({"name": "sync_resize_crop", "base_size": 40, "crop_size": 40}, 255)
    after = transform(Sample(image, torch.zeros(30, 40, dtype=torch.int64)), generator_for(0))
    assert after.image.dtype == torch.int32
    assert after.image.shape == (5, 40, 40)
    assert after.image.max() > 50000
