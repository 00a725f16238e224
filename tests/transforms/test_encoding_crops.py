"""PyTorch-Encoding's crops: the order of its draws after `random.seed`, masks to the pixel, images by Pillow."""

from __future__ import annotations

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
