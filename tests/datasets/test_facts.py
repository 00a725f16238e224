"""What a data set tells before any file is opened is what the built one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.datasets import ClassyDataset, build_dataset
from classyseg.datasets.build import describe, facts_of
from classyseg.datasets.facts import DataFacts
from classyseg.problems import Problems
from classyseg.registry import DATASETS
from classyseg.structures import Sample

SHAPES = {"name": "synthetic_shapes", "split": "train", "num_samples": 6, "size": [24, 32]}
CLIPS = {"frames": 2, "per_video": 2}
RESIZE = {"name": "resize", "size": [16, 20]}
CONFIGS: dict[str, dict[str, Any]] = {
    "shapes": SHAPES,
    "resized": {**SHAPES, "transforms": [RESIZE]},
    "whole images": {"name": "synthetic_image", "split": "test", "num_samples": 4, "size": [8, 9]},
    "stream": {"name": "synthetic_image_streaming", "split": "train", "num_samples": 4, "length": 8},
    "clips to train": {"name": "synthetic_video", "split": "train", "num_videos": 3, "clips": CLIPS},
    "clips to test": {"name": "synthetic_video", "split": "test", "num_videos": 3, "clips": CLIPS},
    "part": {"name": "subset", "dataset": {**SHAPES, "transforms": [RESIZE]}, "first": 3},
    "parts": {"name": "concat", "datasets": [SHAPES, {"name": "subset", "dataset": SHAPES, "first": 2}]},
    "parts of two sizes": {"name": "concat", "datasets": [SHAPES, {**SHAPES, "size": [64, 32]}]},
    "part of clips": {
        "name": "subset",
        "first": 2,
        "dataset": {"name": "synthetic_video", "split": "test", "num_videos": 3, "clips": CLIPS},
    },
}


class Bands(ClassyDataset):
    """A plugin's data set: it says by the names of its keys and of its attributes what others want to know."""

    classes = ("sea", "land")
    bits = 32
    image_size = (4, 6)

    def __init__(self, *, channels: int = 5, ignore_index: int = 9, transforms: tuple[Any, ...] = ()) -> None:
        self.channels, self.ignore_index = channels, ignore_index
        super().__init__(transforms)

    def __len__(self) -> int:
        return 3

    def load(self, index: int) -> Sample:
        return Sample(torch.zeros(self.channels, 4, 6), torch.zeros(4, 6, dtype=torch.int64), f"scene {index}")


class TwoBands(ClassyDataset):
    """A plugin's data set that is made of two others, without the base of the built-in ones."""

    def __init__(self, *, first: Any, second: Any) -> None:
        self.parts = [build_dataset(first), build_dataset(second)]
        self.classes, self.ignore_index, self.channels = ("sea", "land"), 9, 5
        super().__init__()

    @classmethod
    def parts_in(cls, config: Any) -> dict[str, Any]:
        return {key: DATASETS.validate(getattr(config, key), placed=True) for key in ("first", "second")}

    def part_places(self) -> Sequence[str]:
        return ["first", "second"]

    def locate(self, index: int) -> tuple[int, int]:
        return divmod(index, 3)

    def __len__(self) -> int:
        return 6

    def load(self, index: int) -> Sample:
        part, inner = self.locate(index)
        return self.parts[part].load(inner)


@pytest.fixture
def bands(own_registries: None) -> None:
    DATASETS.register("bands")(Bands)
    DATASETS.register("two_bands")(TwoBands)


def differing(known: DataFacts, real: DataFacts) -> list[str]:
    pairs = {field.name: (getattr(known, field.name), getattr(real, field.name)) for field in fields(DataFacts)}
    return [name for name, (a, b) in pairs.items() if a is not None and a != b]


@pytest.mark.parametrize("name", CONFIGS)
def test_facts_of_a_config_are_those_of_the_built_data_set(name: str) -> None:
    config = DATASETS.validate(CONFIGS[name], placed=True)
    known, real = facts_of(config), build_dataset(config).facts
    assert differing(known, real) == []
    assert known.classes == real.classes
    assert known.whole_images == real.whole_images
    sample = build_dataset(config)[0]
    assert real.size is None or tuple(sample.image.shape[-2:]) == real.size
    assert (sample.image.dim() == 4) == real.gives_clips
    assert len(sample.image) == real.channels


def test_sizes_are_those_behind_all_transforms() -> None:
    inner = {**SHAPES, "transforms": [RESIZE]}
    outer = {"name": "subset", "dataset": inner, "first": 2, "transforms": [{"name": "resize", "size": [10, 12]}]}
    assert facts_of(DATASETS.validate(outer, placed=True)).size == (10, 12)
    assert facts_of(DATASETS.validate(inner, placed=True)).size == (16, 20)


def test_parts_of_two_sizes_have_none_until_a_transform_makes_one() -> None:
    two = CONFIGS["parts of two sizes"]
    assert build_dataset(two).facts.size is None
    assert build_dataset({**two, "transforms": [RESIZE]}).facts.size == (16, 20)


def test_every_registered_data_set_tells_its_facts_without_a_file() -> None:
    for name in DATASETS.names():
        facts = DATASETS.entry(name).component.facts_of(None)  # type: ignore[attr-defined]
        assert facts.keys >= {"transforms"} or not facts.keys, name
        assert facts.whole_images or facts.channels is None or facts.channels == 3, name


@pytest.mark.usefixtures("bands")
def test_a_plugins_data_set_tells_what_it_declares() -> None:
    config = DATASETS.validate({"name": "bands", "channels": 7}, placed=True)
    wanted = DataFacts(
        ("sea", "land"), 9, 7, 32, (4, 6), None, None, keys=frozenset({"channels", "ignore_index", "transforms"})
    )
    assert facts_of(config) == wanted
    assert build_dataset(config).facts == replace(wanted, group_size=1, num_samples=3, has_masks=True)
    assert facts_of(Bands()).in_own_unit


@pytest.mark.usefixtures("bands")
def test_what_is_wrong_within_data_sets_is_told_with_its_place_before_any_file() -> None:
    problems = Problems()
    config = {
        "name": "concat",
        "datasets": [
            {**SHAPES, "transforms": [{"name": "normalize", "mean": [0.5], "std": [0.2, 0.2]}]},
            {"name": "folder", "images": "a", "masks": "b", "classes": ["x", "y"], "ignore_index": 1},
            {
                "name": "two_bands",
                "first": {"name": "bands"},
                "second": {"name": "bands", "transforms": ["color_jitter"]},
            },
        ],
    }
    with problems.within("dataset.train"):
        describe(DATASETS.validate(config, placed=True), problems)
    with pytest.raises(ConfigError) as caught:
        problems.tell()
    places = [line.partition(": ")[0] for line in str(caught.value).splitlines()]
    assert places == [
        "dataset.train.datasets[0].transforms[0].mean",
        "dataset.train.datasets[1].ignore_index",
        "dataset.train.datasets[2].second.transforms[0]",
        "dataset.train.datasets[0]",  # not of 32 bits, as the third is
    ]


class AnyKeys(Bands):
    """What Python code may build, and no config describes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


def test_a_data_set_that_no_config_describes_has_facts() -> None:
    assert AnyKeys(channels=4).facts == replace(Bands(channels=4).facts, keys=frozenset())


@pytest.mark.usefixtures("bands")
def test_a_plugins_parts_agree_or_are_refused(bands: None) -> None:
    part = {"name": "bands"}
    with pytest.raises(ConfigError, match=r"datasets\[1\].*channels 6.*datasets\[0\].*5"):
        build_dataset({"name": "concat", "datasets": [part, {**part, "channels": 6}]})


def labels(dataset: ClassyDataset) -> list[Tensor]:
    return [dataset.load_target(index) for index in range(len(dataset))]


def test_image_and_target_alone_are_those_of_the_sample() -> None:
    for config in CONFIGS.values():
        dataset = build_dataset(config)
        sample = dataset.load(1)
        assert torch.equal(dataset.load_image(1), sample.image)
        assert torch.equal(dataset.load_target(1), sample.target)


def test_units_are_images_or_videos() -> None:
    assert [build_dataset(CONFIGS["clips to test"]).unit_of(i) for i in range(6)] == [
        (video, clip) for video in range(3) for clip in range(2)
    ]
    assert [build_dataset(SHAPES).unit_of(i) for i in range(3)] == [(0, 0), (1, 0), (2, 0)]
