"""Data sets of data sets: what is taken, in which order, and how it is transformed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from classyseg.config import ConfigError
from classyseg.datasets import EvalBatches, build_dataset, make_loader
from classyseg.registry import DATASETS


def drawn(num_samples: int, split: str = "train", name: str = "synthetic_image", **options: Any) -> dict[str, Any]:
    return {"name": name, "split": split, "num_samples": num_samples, **options}


def names(dataset: Any) -> list[str]:
    return [str(dataset[i].name) for i in range(len(dataset))]


def numbers(dataset: Any) -> list[int]:
    return [int(name.split()[-1]) for name in names(dataset)]


def test_concat_gives_one_data_set_after_the_other() -> None:
    dataset = build_dataset({"name": "concat", "datasets": [drawn(2), drawn(1, "test"), drawn(2, "test")]})
    assert names(dataset) == ["train 0", "train 1", "test 0", "test 0", "test 1"]
    assert (dataset.classes, dataset.ignore_index) == (("red", "green"), -1)
    assert str(dataset.load(3).name) == "test 0"
    (batch,) = make_loader(dataset, EvalBatches(5, 8), workers=0)
    assert batch.image.shape == (5, 3, 64, 64)


def test_concat_refuses_other_classes() -> None:
    with pytest.raises(
        ConfigError, match=r"datasets\[1\]: its classes \('background', .* those of datasets\[0\], \('red'"
    ):
        build_dataset({"name": "concat", "datasets": [drawn(2), drawn(2, name="synthetic_shapes")]})


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({"first": 3}, [0, 1, 2]),
        ({"first": 3, "rest": True}, [3, 4, 5, 6, 7, 8, 9]),
        ({"every": 4}, [0, 4, 8]),
        ({"every": 4, "rest": True}, [1, 2, 3, 5, 6, 7, 9]),
        ({"share": 1.0}, list(range(10))),
    ],
)
def test_a_subset_takes_what_it_says(options: dict[str, Any], taken: list[int]) -> None:
    assert numbers(build_dataset({"name": "subset", "dataset": drawn(10), **options})) == taken


def test_a_share_is_drawn_once_and_grows_with_its_size() -> None:
    def share(size: float, seed: int = 0, rest: bool = False) -> list[int]:
        options = {"share": size, "share_seed": seed, "rest": rest}
        return numbers(build_dataset({"name": "subset", "dataset": drawn(100), **options}))

    small, large = share(0.1), share(0.3)
    assert (len(small), len(large)) == (10, 30)
    assert small == sorted(small) == share(0.1)
    assert set(small) < set(large)
    assert share(0.1, seed=1) != small
    assert sorted(small + share(0.1, rest=True)) == list(range(100))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of 'first', 'every' and 'share'"),
        ({"first": 1, "share": 0.5}, "give one of"),
        ({"first": 11}, "first: found 11, but the data set has only 10"),
        ({"every": 1, "rest": True}, "rest: nothing is left"),
        ({"share": 1.5}, "share"),
    ],
)
def test_wrong_parts_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_dataset({"name": "subset", "dataset": drawn(10), **options})


def test_problems_within_are_named_by_their_place() -> None:
    with pytest.raises(ConfigError, match=r"datasets\[0\]\.dataset\.splitt: unknown key; did you mean 'split'"):
        DATASETS.validate({"name": "concat", "datasets": [{"name": "subset", "dataset": drawn(3, splitt="x")}]})
    inner = {"name": "subset", "first": 1, "dataset": {"name": "image_folder", "root": "nowhere"}}
    with pytest.raises(ConfigError, match=r"datasets\[0\]\.dataset\.root: .*no such folder"):
        build_dataset({"name": "concat", "datasets": [inner]})


def test_transforms_come_after_those_within_and_masks_follow() -> None:
    crop = {"name": "random_scale_crop", "size": [24, 32]}
    inner = drawn(4, name="synthetic_shapes", transforms=[crop])
    dataset = build_dataset(
        {"name": "subset", "dataset": inner, "first": 2, "transforms": [{"name": "pad", "multiple": 20}]}
    )
    assert dataset[0].image.shape == (3, 40, 40)
    assert (dataset[0].target[24:] == 255).all()
    assert dataset.palette == build_dataset(inner).palette


def test_a_data_set_that_comes_twice_is_augmented_in_two_ways_and_follows_the_seed() -> None:
    noisy = drawn(1, transforms=["color_jitter"])
    dataset = build_dataset({"name": "concat", "datasets": [noisy, noisy]})
    dataset.seed = 3
    first = dataset.sample(0, 5).image
    assert not torch.equal(first, dataset.sample(1, 5).image)
    assert torch.equal(first, dataset.sample(0, 5).image)
    dataset.seed = 4
    assert not torch.equal(first, dataset.sample(0, 5).image)


@pytest.mark.parametrize(("step", "name"), [("normalize", "Normalize"), ("mix_up", "MixUp")])
def test_what_a_task_must_know_of_stands_outside(step: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"transforms: found {name} in a data set within this one; put it here"):
        build_dataset({"name": "subset", "dataset": drawn(4, transforms=[step]), "first": 2})
    dataset = build_dataset({"name": "subset", "dataset": drawn(4), "first": 2, "transforms": [step]})
    assert dataset[0].image.shape == (3, 64, 64)


def test_keys_that_would_do_nothing_are_refused_where_they_stand(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"on_bad_sample: found 'skip' in a data set within this one; put it here"):
        build_dataset({"name": "concat", "datasets": [drawn(2), drawn(2, on_bad_sample="skip")]})
    with pytest.raises(
        ConfigError, match=r"^exif: found 'rotate', but Subset reads no files; give it to the data sets"
    ):
        build_dataset({"name": "subset", "dataset": drawn(2), "first": 1, "exif": "rotate"})


def test_messages_name_the_files_of_a_sample_within(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    paths = {"name": "image_paths", "images": str(tmp_path), "classes": ["x"], "labels": [0, 0]}
    dataset = build_dataset({"name": "concat", "datasets": [{**paths, "paths": ["a.png", "b.png"]}] * 2})
    assert dataset.described(3) == f"sample 3, which is sample 1 ({tmp_path}/b.png) of a data set within"


@pytest.mark.parametrize("config", [drawn(3), {"name": "concat", "datasets": [drawn(1), drawn(2)]}])
def test_a_loop_over_the_samples_ends_and_negative_numbers_count_from_the_end(config: dict[str, Any]) -> None:
    dataset = build_dataset(config)
    found = [str(dataset[i].name) for i in range(3)]
    assert [str(sample.name) for sample in itertools.islice(dataset, 9)] == found
    assert [str(dataset[i - 3].name) for i in range(3)] == found
    with pytest.raises(IndexError, match="found the index 3; the data set has 3 samples"):
        dataset[3]


def test_mixed_samples_come_from_all_parts() -> None:
    parts = [drawn(1, name="synthetic_shapes", split=split) for split in ("train", "test")]
    mixed = {"name": "copy_paste", "probability": 1.0, "classes": [0, 1, 2, 3]}
    dataset = build_dataset({"name": "concat", "datasets": parts, "transforms": [mixed]})
    plain = build_dataset({"name": "concat", "datasets": parts})
    images = [dataset.sample(0, epoch).image for epoch in range(8)]
    assert any(torch.equal(image, plain[0].image) for image in images)
    assert any(not torch.equal(image, plain[0].image) for image in images)
