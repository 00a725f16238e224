"""Every registered transform keeps image and mask aligned, for 200 seeds: a new one is covered by its name."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d
from transform_cases import (
    CROP,
    IGNORED,
    PARTNER,
    SEEDS,
    SIZES,
    STEP,
    build,
    build_for,
    cases,
    cells,
    coordinates,
    partner,
    run,
)

from classyseg.registry import TRANSFORMS
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms import PairTransform
from classyseg.transforms.classy_transform import apply_transforms

MOVES = {"center_crop", "horizontal_flip", "pad", "random_crop", "random_resize", "random_rotation"}
MOVES |= {"random_scale_crop", "resize", "resize_center_crop", "sync_resize_crop", "vertical_flip"}
"""The transforms that move pixels and leave their values, so that pixels tell where they come from."""


def inner(mask: Tensor, margin: int) -> Tensor:
    """The valid pixels around which all labels are the same, `margin` pixels far, and no border is."""
    side = 2 * margin + 1
    labels = mask[None, None].float()
    highest = max_pool2d(labels, side, 1, margin)
    lowest = -max_pool2d(-labels, side, 1, margin)
    kept = ((highest == lowest)[0, 0]) & (mask != IGNORED)
    kept[:margin] = kept[-margin:] = kept[:, :margin] = kept[:, -margin:] = False
    return kept


@pytest.mark.parametrize("config", cases())
def test_each_place_has_its_label(config: dict[str, Any]) -> None:
    """The colour inside a square stays one colour, whatever becomes of it, where the mask says that the square is."""
    transform = build(config)
    seen = 0
    for seed in SEEDS:
        before = cells(SIZES[seed % 2], seed)
        after = run(transform, before, seed)
        if after.target.is_floating_point():
            seen += colors_are_shares(before, partner(before, seed), after)
            continue
        kept = inner(after.target, 2)
        labels, colors = after.target[kept].expand(3, -1), after.image[:, kept].float()
        lowest, highest = (
            torch.zeros(3, 2 * PARTNER).scatter_reduce(1, labels, colors, how, include_self=False)
            for how in ("amin", "amax")
        )
        assert (highest - lowest).max() <= 2, seed
        seen += len(labels[0])
    assert seen > 10 * len(SEEDS)


def colors_are_shares(before: Sample, other: Sample, after: Sample) -> int:
    """Checks that each pixel's colour is mixed as its target says; how many were looked at."""
    colors = torch.zeros(3, len(after.target))
    for sample in (before, other):
        colors[:, sample.target.flatten()] = sample.image.flatten(1).float()
    valid = (after.target != IGNORED).all(0)
    expected = (colors @ after.target.float().flatten(1)).view(after.image.shape)
    assert (expected - after.image)[:, valid].abs().max() <= 1
    return int(valid.sum())


@pytest.mark.parametrize("size", [*SIZES, (20, 60), (13, 17)], ids=str)
@pytest.mark.parametrize(
    "config",
    [case for case in cases() if case.values[0]["name"] in MOVES]
    + [pytest.param({"name": "random_scale_crop", "size": CROP, "scale": (0.3, 0.6)}, id="random_scale_crop-small")],
)
def test_a_moved_pixel_tells_the_place_that_its_label_tells(config: dict[str, Any], size: tuple[int, int]) -> None:
    before = coordinates(size)
    transform = build(config)
    for seed in SEEDS:
        after = run(transform, before, seed)
        valid = after.target != IGNORED
        labels = after.target[valid]
        wanted = torch.stack([labels // size[1], labels % size[1]]).double()
        off = after.image[:2, valid].double() / STEP - wanted
        # Half a pixel for the mask's nearest label, half for the image's border, and rounding. The mean is half a pixel
        # where an image shrinks to exactly a half: all centres then lie between two labels.
        assert off.abs().max() <= 1.3, seed
        assert off.mean(1).abs().max() <= 0.55, seed


@pytest.mark.parametrize("config", cases())
def test_masks_hold_only_labels_that_were_there_and_ignored(config: dict[str, Any]) -> None:
    labels = torch.tensor([0, 7, 40, 200])[torch.randint(0, 4, SIZES[0], generator=generator_for(3))]
    before = Sample(coordinates(SIZES[0]).image, labels, "labels.png")
    other = Sample(before.image, labels.flip(0), "other.png")
    transform = build(config)
    for seed in range(50):
        target = run(transform, before, seed, other).target
        found = target
        if target.is_floating_point():
            found = torch.where(target[0] == IGNORED, IGNORED, target.argmax(0))
        assert set(found.unique().tolist()) <= {0, 7, 40, 200, IGNORED}, seed
        assert target.dtype in (torch.int64, torch.float16)


@pytest.mark.parametrize("config", cases())
def test_a_transform_is_a_function_of_its_generator_and_leaves_its_input(config: dict[str, Any]) -> None:
    before = cells((64, 50))
    image, mask = before.image.clone(), before.target.clone()
    results = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        random.seed(global_seed)
        state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
        transform = build(config)
        results.append([run(transform, before, seed) for seed in range(10)])
        assert torch.equal(torch.get_rng_state(), state[0])
        assert np.random.get_state()[1].tolist() == state[1]  # type: ignore[index]
        assert random.getstate() == state[2]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.target, other.target)
        assert one.image.dtype == (torch.float32 if config["name"] == "normalize" else torch.uint8)
    assert torch.equal(before.image, image)
    assert torch.equal(before.target, mask)


@pytest.mark.parametrize("config", cases())
def test_the_order_of_an_image_in_memory_changes_nothing(config: dict[str, Any]) -> None:
    """Files are read with the channels of a pixel side by side; tensors mostly have them apart."""
    transform = build(config)
    apart = cells(SIZES[0])
    together = apart.replace(image=apart.image.permute(1, 2, 0).contiguous().permute(2, 0, 1))
    for seed in range(10):
        one, other = run(transform, apart, seed), run(transform, together, seed)
        assert torch.equal(one.target, other.target), seed
        assert (one.image.float() - other.image.float()).abs().max() <= 1, seed


@pytest.mark.parametrize("config", cases())
def test_a_mask_of_bytes_is_transformed_as_one_of_wide_integers(config: dict[str, Any]) -> None:
    transform, wide, other = build_for(config, 255), cells((64, 50)), partner(cells((64, 50)), 0)
    narrow, narrow_other = (each.replace(target=each.target.to(torch.uint8)) for each in (wide, other))
    for seed in range(20):
        found = run(transform, narrow, seed, narrow_other).target
        wanted = run(transform, wide, seed, other).target
        assert found.dtype == (torch.uint8 if wanted.dtype == torch.int64 else wanted.dtype), seed
        assert found.tolist() == wanted.tolist(), seed


PLAIN = [case for case in cases() if not issubclass(TRANSFORMS.entry(case.values[0]["name"]).component, PairTransform)]


@pytest.mark.parametrize("config", PLAIN)
def test_all_frames_of_a_clip_are_transformed_as_one_image_and_its_class_is_kept(config: dict[str, Any]) -> None:
    transform, image, label = build(config), cells(SIZES[0]).image, torch.tensor(7)
    clip = torch.stack([image] * 3, 1)

    def applied(before: Tensor, seed: int) -> Sample:
        sample = Sample(before, label, "clip.avi")
        return apply_transforms([transform], lambda _: sample, 0, generator_for(seed), num_samples=1, num_classes=8)

    for seed in range(10):
        one, frames = applied(image, seed), applied(clip, seed)
        assert torch.equal(frames.image, one.image[:, None].expand_as(frames.image))
        assert frames.image.shape[1] == 3
        assert torch.equal(one.target, label)
        assert torch.equal(frames.target, label)


@pytest.mark.parametrize(
    "config", [case for case in cases() if case not in PLAIN and not str(case.id).startswith("copy_paste")]
)
def test_clips_are_mixed_as_one_image(config: dict[str, Any]) -> None:
    transform = build(config)
    assert isinstance(transform, PairTransform)
    one, other = cells(SIZES[0], 0).image, cells(SIZES[0], 1).image
    for seed in range(10):
        found = [
            transform.mix(
                Sample(make(one), torch.tensor(2)),
                generator_for(seed),
                lambda make=make: Sample(make(other), torch.tensor(5)),  # type: ignore[misc]
                8,
            )
            for make in (lambda image: image, lambda image: torch.stack([image] * 3, 1))
        ]
        assert torch.equal(found[1].image, found[0].image[:, None].expand_as(found[1].image))
        assert torch.equal(found[0].target, found[1].target)
        assert found[0].target.shape == (8,)
