"""Data sets of data sets: what is taken, in which order, and how it is transformed."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from classyseg.config import ConfigError, DataError
from classyseg.datasets import EvalOrder, Folder, TrainOrder, build_dataset, make_loader
from classyseg.registry import DATASETS
from classyseg.trainer import Trainer
from data_trees import data_sets, drawn_tree, pairs
from runs import tiny_task


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
    (batch,) = make_loader(dataset, EvalOrder(5, 8), workers=0)
    assert batch.image.shape == (5, 3, 64, 64)


def test_concat_refuses_other_classes() -> None:
    with pytest.raises(ConfigError, match=r"datasets\[1\].*classes \('background', .*datasets\[0\].*\('red'"):
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
    assert len(share(0.001)) == 1


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
    with pytest.raises(ConfigError, match=r"datasets\[0\]\.dataset\.splitt.*'split'"):
        DATASETS.validate({"name": "concat", "datasets": [{"name": "subset", "dataset": drawn(3, splitt="x")}]})
    inner = {"name": "subset", "first": 1, "dataset": {"name": "image_folder", "root": "nowhere"}}
    with pytest.raises(ConfigError, match=r"datasets\[0\]\.dataset\.root.*no such"):
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


@pytest.mark.parametrize(("step", "name"), [("normalize", "Normalize"), ("mix_up", "MixUp"), ("cut_mix", "CutMix")])
def test_what_a_task_must_know_of_stands_outside(step: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"transforms.*{name}.*put it here"):
        build_dataset({"name": "subset", "dataset": drawn(4, transforms=[step]), "first": 2})
    dataset = build_dataset({"name": "subset", "dataset": drawn(4), "first": 2, "transforms": [step]})
    assert dataset[0].image.shape == (3, 64, 64)


@pytest.mark.parametrize("config", [drawn(3), {"name": "concat", "datasets": [drawn(1), drawn(2)]}])
def test_a_loop_over_the_samples_ends_and_negative_numbers_count_from_the_end(config: dict[str, Any]) -> None:
    dataset = build_dataset(config)
    found = [str(dataset[i].name) for i in range(3)]
    assert [str(sample.name) for sample in itertools.islice(dataset, 9)] == found
    assert [str(dataset[i - 3].name) for i in range(3)] == found
    with pytest.raises(IndexError, match=r"index 3.*3 samples"):
        dataset[3]


def test_mixed_samples_come_from_all_parts() -> None:
    parts = [drawn(1, name="synthetic_shapes", split=split) for split in ("train", "test")]
    mixed = {"name": "copy_paste", "probability": 1.0, "classes": [0, 1, 2, 3]}
    dataset = build_dataset({"name": "concat", "datasets": parts, "transforms": [mixed]})
    plain = build_dataset({"name": "concat", "datasets": parts})
    images = [dataset.sample(0, epoch).image for epoch in range(8)]
    assert any(torch.equal(image, plain[0].image) for image in images)
    assert any(not torch.equal(image, plain[0].image) for image in images)


# -- keys that every data set has --------------------------------------------------------------------------------------


def around(kind: str, inner: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A data set of all samples of `inner`."""
    if kind == "concat":
        return {"name": "concat", "datasets": [inner], **options}
    return {"name": "subset", "dataset": inner, "every": 1, **options}


PLACES = {"concat": r"datasets\[0\]", "subset": "dataset"}


@pytest.fixture
def train(tmp_path: Path) -> dict[str, Any]:
    """The config of 12 training images on the disk."""
    return data_sets(drawn_tree(tmp_path / "tree"))["dataset.train"]


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize(
    ("key", "value"), [("exif", "rotate"), ("cache_samples", "cache"), ("cache_samples_gigabytes", 2.0)]
)
def test_keys_of_files_are_refused_outside_and_taken_within(
    key: str, value: Any, kind: str, train: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLASSYSEG_DATA", str(tmp_path))
    message = f"^{key}: found {value!r}; '{kind}' reads no files: give it to the data sets within"
    for outer in (around(kind, train, **{key: value}), around(kind, {**train, key: value}, **{key: value})):
        with pytest.raises(ConfigError, match=message):
            build_dataset(outer)
    part = build_dataset(around(kind, {**train, key: value})).parts[0]
    assert part.exif == ("rotate" if key == "exif" else "refuse")
    assert (part.cache is not None) == (key == "cache_samples")


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize(("key", "value"), [("on_bad_sample", "skip"), ("max_bad_samples", 0.5)])
def test_keys_of_all_samples_are_refused_within_and_taken_outside(
    key: str, value: Any, kind: str, train: dict[str, Any]
) -> None:
    message = rf"^{PLACES[kind]}\.{key}: found {value!r}; samples are counted where all of them are"
    for outer in (around(kind, {**train, key: value}), around(kind, {**train, key: value}, **{key: value})):
        with pytest.raises(ConfigError, match=message):
            build_dataset(outer)
    assert getattr(build_dataset(around(kind, train, **{key: value})), key) == value


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_a_bad_sample_within_is_dealt_with_as_the_whole_says(
    policy: str, kind: str, train: dict[str, Any], tmp_path: Path
) -> None:
    image, _ = pairs(tmp_path / "tree")[2]
    image.write_bytes(b"")
    sized = {**train, "transforms": [{"name": "resize", "size": [32, 32]}]}
    dataset = build_dataset(around(kind, sized, on_bad_sample=policy))
    loader = make_loader(dataset, EvalOrder(12, 12), workers=0)
    (batch,) = loader
    assert [bad.index for bad in loader.bad] == [2]
    assert str(image) in loader.bad[0].problem
    assert (batch.target[2] == 255).all() == (policy == "skip")
    assert dataset.described(2).startswith(f"sample 2: sample 2 ({image}, ")
    with pytest.raises(DataError, match=str(image)):
        list(make_loader(build_dataset(around(kind, sized)), EvalOrder(12, 12), workers=0))


@pytest.mark.parametrize("kind", PLACES)
def test_a_cache_within_keeps_samples_and_not_what_transforms_make_of_them(
    kind: str, train: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = build_dataset(around(kind, {**train, "transforms": ["color_jitter"]}))
    config = around(kind, {**train, "transforms": ["color_jitter"], "cache_samples": str(tmp_path / "cache")})
    first = build_dataset(config)
    for i in range(12):
        first.sample(i, epoch=0)
    assert len(list(tmp_path.glob("cache/*/*.safetensors"))) == 12
    expected = [plain.sample(i, epoch=1) for i in range(12)]
    monkeypatch.setattr(Folder, "load", lambda self, index: pytest.fail("read anew"))
    again = build_dataset(config)
    for i, sample in enumerate(expected):
        assert torch.equal(again.sample(i, epoch=1).image, sample.image)


def test_a_run_on_parts_may_be_continued_with_a_cache_and_without(train: dict[str, Any], tmp_path: Path) -> None:
    def changes(**options: Any) -> dict[str, Any]:
        part = {**train, "transforms": [{"name": "resize", "size": [32, 32]}], **options}
        sets = {"train": around("concat", around("subset", part)), "test": None}
        return {"dataset": sets, "num_epochs": 1, "batch_size": 4, "hooks": ["checkpoint"]}

    Trainer(tmp_path / "run").train(tiny_task(changes()))
    cached = changes(cache_samples=str(tmp_path / "cache"), cache_samples_gigabytes=1.0)
    Trainer(tmp_path / "run", resume=True).train(tiny_task(cached))
    with pytest.raises(ConfigError, match=r"dataset\.train\.datasets\[0\]\.dataset\.exif.*'refuse'.*'ignore'"):
        Trainer(tmp_path / "run", resume=True).train(tiny_task(changes(exif="ignore")))


@pytest.mark.parametrize("step", ["copy_paste", "cut_mix", "mix_up"])
def test_a_part_takes_nothing_from_what_it_leaves_out(step: str) -> None:
    shapes = drawn(10, name="synthetic_shapes", transforms=[step])
    nested = {"name": "concat", "datasets": [shapes]} if step != "mix_up" else shapes
    with pytest.raises(ConfigError, match=r"transforms.*(CopyPaste|CutMix|MixUp)"):
        build_dataset({"name": "subset", "dataset": nested, "every": 2})
    outside = {"name": "subset", "dataset": drawn(10, name="synthetic_shapes"), "first": 1, "transforms": [step]}
    plain = build_dataset({**outside, "transforms": []})
    assert torch.equal(build_dataset(outside)[0].image, plain[0].image)  # of one sample, with itself
    if step != "mix_up":
        assert len(build_dataset({"name": "concat", "datasets": [shapes]})) == 10


# -- the order of samples ----------------------------------------------------------------------------------------------


def test_the_samples_of_parts_do_not_depend_on_workers_processes_and_restarts(train: dict[str, Any]) -> None:
    steps = [{"name": "random_scale_crop", "size": [24, 24]}, "color_jitter"]
    parts = [
        {"name": "subset", "every": 3, "rest": True, "dataset": {**train, "transforms": steps}},
        {**train, "transforms": [*steps, "copy_paste"]},
    ]
    dataset = build_dataset({"name": "concat", "datasets": parts, "transforms": ["horizontal_flip", "cut_mix"]})
    dataset.seed = 5

    def hashes(workers: int, world_size: int, start: int = 0) -> list[list[str]]:
        """Of each batch from number `start` on, of all processes together, in the second epoch."""
        found: list[list[str]] = []
        for rank in range(world_size):
            batches = TrainOrder(len(dataset), 4, seed=5, rank=rank, world_size=world_size)
            batches.epoch, batches.start = 1, start
            loader = make_loader(dataset, batches, workers=workers)
            for i, batch in enumerate(loader):
                found += [[]] if len(found) <= i else []
                for image, mask, name in zip(batch.image, batch.target, batch.name, strict=True):
                    content = image.numpy().tobytes() + mask.long().numpy().tobytes() + name.encode()
                    found[i].append(hashlib.sha256(content).hexdigest())
            loader.close()
        return [sorted(batch) for batch in found]

    whole = hashes(0, 1)
    assert len(whole) == 5  # 20 samples
    assert len({each for batch in whole for each in batch}) == 20
    for workers, world_size in ((2, 1), (0, 2), (1, 2)):
        assert hashes(workers, world_size) == whole
    for start in range(1, 5):
        assert hashes(start % 2, 1, start) == whole[start:]
