"""Every registered transform with the options that it is tested with, and samples that tell where pixels come from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from classyseg.registry import TRANSFORMS
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms import ClassyTransform, PairTransform, build_transform

IGNORED = -1
STEP, CELL = 4, 8
SEEDS = range(200)
CROP = (40, 48)
PARTNER = 100
SIZES = [(60, 50), (48, 62)]

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "center_crop": [{"size": CROP}, {"size": (70, 40)}],
    "color_jitter": [{"hue": 0.2}],
    "copy_paste": [
        {"probability": 1.0},
        {"probability": 1.0, "scale": (1.0, 1.0), "region_share": 0.5, "min_pixels": 2},
    ],
    "cut_mix": [{"probability": 1.0}],
    "cutout": [{"probability": 1.0, "ignore": True}],
    "gaussian_blur": [{"sigma": (0.1, 0.6)}],
    "horizontal_flip": [{}],
    "ignore_small_regions": [{"min_pixels": 20}],
    "pad": [{"multiple": 16}],
    "rand_augment": [{"magnitude": 30}],
    "random_erasing": [{"ignore": True, "count": 3, "probability": 1.0}],
    "random_crop": [{"size": CROP}, {"size": CROP, "fit": (70, 70), "max_class_fraction": 0.05}],
    "random_resize": [
        {"scale": (0.6, 2.0)},
        {"scale": (0.8, 1.2), "fit": (70, 70), "interpolation": "bicubic"},
        {"shorter_side": (40, 50, 70), "longer_side": 80},
    ],
    "random_rotation": [{"degrees": (-180.0, 180.0), "probability": 1.0}],
    "random_scale_crop": [
        {"size": CROP, "scale": (0.6, 2.0)},
        {"size": CROP, "max_class_fraction": 0.02},
        {"size": CROP, "class_share": 0.5, "min_pixels": 50},
        {"size": CROP, "scale": (0.8, 1.5), "shorter_side": 50, "longer_side": 70},
    ],
    "resize": [{"size": CROP}, {"shorter_side": 40}, {"fit": (70, 40), "interpolation": "bicubic"}],
    "resize_center_crop": [{"crop_size": 40}],
    "sync_resize_crop": [{"base_size": 60, "crop_size": 40}],
    "torchvision": [
        {"transform": "ElasticTransform", "arguments": {"alpha": 20.0}},
        {"transform": "RandomAffine", "arguments": {"degrees": 30, "scale": [0.7, 1.5], "interpolation": "bilinear"}},
        {"transform": "RandomPerspective", "arguments": {"p": 1.0, "fill": [1, 2, 3]}},
        {"transform": "RandomPhotometricDistort"},
        {"transform": "RandomResizedCrop", "arguments": {"size": [40, 40], "scale": [0.3, 1.0]}},
        {"transform": "RandomZoomOut", "arguments": {"side_range": [1.0, 1.5]}},
    ],
}
"""For names whose defaults do not serve: the options that they are tested with."""


def cases() -> list[Any]:
    return [
        pytest.param({"name": name, **options}, id="-".join(map(str, [name, *options.values()])))
        for name in TRANSFORMS.names()
        if TRANSFORMS.entry(name).distribution == "classyseg"
        for options in OPTIONS.get(name, [{}])
    ]


def coordinates(size: tuple[int, int]) -> Sample:
    """An image whose first two channels, and a mask whose labels, tell the row and column of each pixel."""
    row = torch.arange(size[0])[:, None].expand(size)
    column = torch.arange(size[1])[None].expand(size)
    image = torch.stack([row * STEP, column * STEP, torch.full(size, 200)]).to(torch.uint8)
    return Sample(image, row * size[1] + column, "coordinates.png")


def cells(size: tuple[int, int], seed: int = 0) -> Sample:
    """Squares of one label and one colour each."""
    row = torch.arange(size[0])[:, None] // CELL
    labels = row * -(-size[1] // CELL) + torch.arange(size[1])[None] // CELL
    generator = generator_for(seed)
    colors = torch.randint(0, 256, (3, int(labels.max()) + 1), generator=generator, dtype=torch.uint8)
    return Sample(colors[:, labels], labels, "cells.png")


def build_for(config: dict[str, Any], ignore_index: int) -> ClassyTransform:
    transform: ClassyTransform = build_transform(config, ignore_index)
    return transform


def build(config: dict[str, Any]) -> ClassyTransform:
    return build_for(config, IGNORED)


def partner(before: Sample, seed: int) -> Sample:
    """Squares of other labels and colours, for what mixes two samples."""
    other = cells(tuple(before.target.shape), seed + 1000)  # type: ignore[arg-type]
    return other.replace(target=other.target + PARTNER)


def run(transform: ClassyTransform, before: Sample, seed: int, other: Sample | None = None) -> Sample:
    if not isinstance(transform, PairTransform):
        return transform(before, generator_for(seed))
    return transform.mix(before, generator_for(seed), lambda: other or partner(before, seed), 2 * PARTNER + 1)
