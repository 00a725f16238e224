"""From a config to a data set, with the keys that all of them have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from classyseg import __version__
from classyseg.console import MAX_NAME, shown
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.facts import DataFacts, Described, Part, joined_facts
from classyseg.datasets.files.pairs import faults_within
from classyseg.datasets.loading.sample_cache import SampleCache
from classyseg.errors import ConfigError, within
from classyseg.io import data_path
from classyseg.placement import DATASET_KEYS
from classyseg.problems import Problems
from classyseg.registry import DATASETS, TRANSFORMS, ComponentConfig
from classyseg.transforms.classy_transform import ClassyTransform, check_flags, check_numbers

NOT_READ = ("transforms", "on_bad_sample", "max_bad_samples", "cache_samples", "cache_samples_gigabytes")
"""The keys of a data set's config that do not change what is read from its files."""

KEYS_OF_FILES = ("exif", "cache_samples", "cache_samples_gigabytes")
"""The keys of every data set that have a meaning only where files are read, not where data sets are put together."""


def build_dataset(config: Any) -> ClassyDataset:
    """The data set that `config` describes; a built one is returned as it is. Raises: `ConfigError`."""
    if isinstance(config, ClassyDataset):
        return config
    checked = config if isinstance(config, ComponentConfig) else DATASETS.validate(config, placed=True)
    dataset: ClassyDataset = DATASETS.build(checked)
    for key in ("exif", "on_bad_sample", "max_bad_samples"):
        if hasattr(checked, key):  # a config may have been checked without the keys that every data set has
            setattr(dataset, key, getattr(checked, key))
    if dataset.samples_are_parts:
        len(dataset)  # reads the sizes of all files, so that faults of these are told here
    for key in KEYS_OF_FILES if dataset.parts else ():
        found = getattr(checked, key, DATASET_KEYS[key][1])
        if found != DATASET_KEYS[key][1]:
            raise ConfigError(key, f"found {found!r}; '{checked.name}' reads no files: give it to the data sets within")
    folder = getattr(checked, "cache_samples", None)
    if folder is not None:
        if len(dataset) and not dataset.files(0):
            raise ConfigError(
                "cache_samples",
                f"found {shown(folder, MAX_NAME)}, but '{checked.name}' reads no files that belong to one sample each; "
                "leave it out",
            )
        read = {key: value for key, value in checked.resolved().items() if key not in NOT_READ}
        settings = f"{__version__} {checked.component.__qualname__} {sorted(read.items())}"
        gigabytes = checked.cache_samples_gigabytes  # type: ignore[attr-defined]
        dataset.cache = SampleCache(data_path(folder), settings, gigabytes)
    return dataset


def describe(data: Any, problems: Problems) -> Part:
    """What the config of a data set, and of all data sets within it, tells before any file is opened.

    A built data set is returned as it is. Problems go to `problems`.
    """
    if isinstance(data, ClassyDataset):
        return data
    component: type[ClassyDataset] = data.component
    with problems.collected():
        component.check_config(data)
    parts: dict[str, Part] = {}
    for place, inner in component.parts_in(data).items():
        with problems.within(place):
            parts[place] = describe(inner, problems)
    facts = component.facts_of(data)
    if parts:
        joined = joined_facts([part.facts for part in parts.values()])
        repeats = facts.repeats_samples or joined.repeats_samples
        facts = replace(joined, num_samples=None, keys=facts.keys, repeats_samples=repeats)
        with problems.collected():
            component.check_parts(parts)
    transforms: list[ClassyTransform] = []
    with problems.collected():
        ignored = () if facts.ignore_index is None else (facts.ignore_index,)
        transforms = TRANSFORMS.build_each("transforms", getattr(data, "transforms", ()), *ignored)
    with problems.collected():
        check_numbers(transforms, facts.bits)
    with problems.collected():
        check_flags(transforms, facts.has_flags)
    counted = {key: getattr(data, key, getattr(ClassyDataset, key)) for key in ("on_bad_sample", "max_bad_samples")}
    return Described(facts.after(transforms), transforms, tuple(parts.values()), **counted)


def facts_of(data: Any) -> DataFacts:
    """The facts of a data set, or what its config tells of them. Its problems are left to other calls."""
    return describe(data, Problems()).facts


def check_same_unit(data: Mapping[str, DataFacts]) -> None:
    """Raises: `ConfigError` if only some of the data sets, by their places, are of `bits: 32`."""
    numbers = [place for place, facts in data.items() if facts.in_own_unit]
    for place in data if numbers else ():
        if place not in numbers:
            raise ConfigError(
                place,
                f"its images are not of `bits: 32`, as those of {numbers[0]} are, numbers in a unit of their "
                "own; give both the same `bits`",
            )


def build_datasets(place: str, configs: Iterable[Any]) -> list[ClassyDataset]:
    """The data sets of a list that `place` names in messages. Raises: `ConfigError`."""
    built = []
    for i, config in enumerate(configs):
        with within(f"{place}[{i}]"), faults_within(f"{place}[{i}]"):
            built.append(build_dataset(config))
    return built
