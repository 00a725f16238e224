"""Views of images without labels: one geometry, other colours, and what a step reads of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from classyseg.datasets import TrainOrder, build_dataset
from classyseg.datasets.loading.loader import StepOrder
from classyseg.datasets.views import ADDED, Views, check_strong
from classyseg.errors import ConfigError
from classyseg.registry import TRANSFORMS

SHAPES: dict[str, Any] = {"name": "synthetic_shapes", "split": "train", "num_samples": 5, "size": [32, 32]}
CROP = {"name": "random_scale_crop", "size": [32, 32], "scale": [0.5, 0.9]}


def views(strong: list[Any], num_strong: int = 2, **changes: Any) -> Views:
    own = {} if "name" in changes else SHAPES
    base = build_dataset({**own, "transforms": [CROP, "horizontal_flip"], **changes})
    return Views(base, TRANSFORMS.build_each("strong", strong), num_strong, seed=3)


def test_strong_views_have_the_geometry_of_the_weak_one_and_colours_of_their_own() -> None:
    same = views([{"name": "gaussian_blur", "probability": 0.0}]).sample(1, epoch=2)
    assert same.image.shape == (3, 3, 32, 32)
    assert torch.equal(same.image[0], same.image[1])
    sample = views(["color_jitter"]).sample(1, epoch=2)
    assert torch.equal(sample.image[0], same.image[0])  # the weak view does not depend on what comes after it
    assert not torch.equal(sample.image[1], sample.image[0])
    assert not torch.equal(sample.image[1], sample.image[2])


def test_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    first, again = views(["color_jitter"]), views(["color_jitter"])
    again.sample(0, 0)
    assert torch.equal(first.sample(2, 1).image, again.sample(2, 1).image)
    assert not torch.equal(first.sample(2, 1).image, again.sample(2, 2).image)


def test_only_pixels_that_transforms_added_are_marked_whatever_label_is_ignored(tmp_path: Path) -> None:
    for folder, values in (("images", 200), ("masks", 0)):
        (tmp_path / folder).mkdir()
        shape = (16, 16, 3) if folder == "images" else (16, 16)
        Image.fromarray(np.full(shape, values, np.uint8)).save(tmp_path / folder / "a.png")
    pad = {"name": "pad", "size": [24, 16]}
    for ignored in (9, 255):
        config = {"name": "folder", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")}
        config |= {"classes": ["a", "b"], "ignore_index": ignored, "transforms": [pad]}
        config |= {"label_map": {0: ignored}}  # every label of the file is ignored, and nobody reads it
        sample = Views(build_dataset(config), [], 1, seed=0).sample(0, 0)
        assert torch.equal(sample.target == ADDED, sample.image[0, 0] == 0)
        assert int((sample.target == 0).sum()) == 16 * 16


def test_borders_that_a_data_set_within_another_adds_are_marked() -> None:
    inner = {**SHAPES, "transforms": [{"name": "pad", "size": [48, 32]}]}
    sample = views([], transforms=[], name="subset", dataset=inner, every=1).sample(0, 0)
    assert int((sample.target == ADDED).sum()) == 16 * 32


@pytest.mark.parametrize("ignored", [-1, 255, 300])
def test_borders_are_marked_whatever_number_is_ignored(ignored: int, tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(tmp_path / "a.png")
    pad = {"name": "pad", "size": [24, 16]}
    config = {"name": "folder", "images": str(tmp_path), "masks": None, "ignore_index": ignored, "transforms": [pad]}
    sample = Views(build_dataset(config), [], 1, seed=0).sample(0, 0)
    assert torch.equal(sample.target == ADDED, sample.image[0, 0] == 0)


def test_an_image_that_was_cached_without_its_mask_is_not_taken_for_one_with_it(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        shape = (8, 8, 3) if folder == "images" else (8, 8)
        Image.fromarray(np.ones(shape, np.uint8)).save(tmp_path / folder / "a.png")
    config = {"name": "folder", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")}
    config |= {"classes": ["a", "b"], "cache_samples": str(tmp_path / "cache")}
    for _ in range(2):
        assert not build_dataset(config).without_label(0, 0).target.any()
        assert build_dataset(config).sample(0, 0).target.all()


@pytest.mark.parametrize(
    ("strong", "message"),
    [
        (["horizontal_flip"], r"unlabelled\.strong\[0\]: HorizontalFlip changes which pixel lies where"),
        (["color_jitter", {"name": "random_rotation", "degrees": [-10, 10]}], r"strong\[1\]: RandomRotation changes"),
        ([CROP], r"strong\[0\]: RandomScaleCrop changes"),
        (["cut_mix"], r"strong\[0\]: CutMix takes something of another sample; unlabelled\.cut_mix"),
        (["normalize"], r"strong\[0\]: Normalize gives torch\.float32"),
    ],
)
def test_a_strong_transform_that_moves_pixels_is_refused(strong: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_strong(TRANSFORMS.build_each("strong", strong), 3)


def test_every_registered_transform_of_colours_may_be_strong() -> None:
    names = ["color_jitter", "photometric_distortion", "lighting", "gaussian_blur", "random_erasing", "cutout"]
    check_strong(TRANSFORMS.build_each("strong", names), 3)


def test_the_batch_of_a_step_is_that_of_its_epoch_wherever_reading_begins() -> None:
    order = StepOrder(TrainOrder(10, 4, seed=5, name="unlabelled"))
    order.start, order.stop = 0, 7
    whole = list(order)
    assert len(order) == len(whole) == 7
    epochs = TrainOrder(10, 4, seed=5)
    expected = []
    for epoch in range(4):
        epochs.epoch = epoch
        expected += list(epochs)
    assert whole == expected[:7]
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        order.start, order.stop = start, stop
        assert list(order) == whole[start:stop]
    with pytest.raises(ConfigError, match=r"batch_size: found 12, but dataset\.unlabelled has only 10"):
        TrainOrder(10, 12, seed=0, name="unlabelled")
