"""From a config to a data set, with the keys that all of them have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from classyseg import __version__
from classyseg.config import ConfigError, within
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.files.pairs import faults_within
from classyseg.datasets.loading.sample_cache import SampleCache
from classyseg.io import data_path
from classyseg.placement import DATASET_KEYS
from classyseg.registry import DATASETS, TRANSFORMS, ComponentConfig
from classyseg.transforms.classy_transform import check_numbers

NOT_READ = ("transforms", "on_bad_sample", "max_bad_samples", "cache_samples", "cache_samples_gigabytes")
"""The keys of a data set's config that leave what is read from its files as it is."""

KEYS_OF_FILES = ("exif", "cache_samples", "cache_samples_gigabytes")
"""The keys of every data set that mean something only where files are read, not where others are put together."""


def build_dataset(config: Any) -> ClassyDataset:
    """The data set that `config` describes; a built one is returned as it is. Raises: `ConfigError`."""
    if isinstance(config, ClassyDataset):
        return config
    checked = config if isinstance(config, ComponentConfig) else DATASETS.validate(config, placed=True)
    dataset: ClassyDataset = DATASETS.build(checked)
    for key in ("exif", "on_bad_sample", "max_bad_samples"):
        if hasattr(checked, key):  # a config that was checked without the keys of whoever places it lacks them
            setattr(dataset, key, getattr(checked, key))
    for key in KEYS_OF_FILES if innermost(checked) is not checked else ():
        found = getattr(checked, key, DATASET_KEYS[key][1])
        if found != DATASET_KEYS[key][1]:
            raise ConfigError(
                f"{key}: found {found!r}; '{checked.name}' reads no files: give it to the data sets within"
            )
    folder = getattr(checked, "cache_samples", None)
    if folder is not None:
        if len(dataset) and not dataset.files(0):
            raise ConfigError(
                f"cache_samples: found '{folder}', but '{checked.name}' reads no files of which each is of one sample; "
                "leave it out"
            )
        read = {key: value for key, value in checked.resolved().items() if key not in NOT_READ}
        settings = f"{__version__} {checked.component.__qualname__} {sorted(read.items())}"
        gigabytes = checked.cache_samples_gigabytes  # type: ignore[attr-defined]
        dataset.cache = SampleCache(data_path(folder), settings, gigabytes)
    return dataset


def check_dataset_config(place: str, config: Any) -> None:
    """Raises: `ConfigError`, with `place` before it, for what the config of a data set alone tells to be wrong."""
    if isinstance(config, ComponentConfig):
        with within(place):
            _component(config).check_config(config)
            if known_bits(config) == 32:
                try:
                    transforms = TRANSFORMS.build_each("transforms", getattr(config, "transforms", ()))
                except ConfigError:  # which is told where the transforms are checked
                    return
                check_numbers(transforms, 32)


def innermost(config: Any) -> Any:
    """`config` (or a built data set), or the first one within it, whose samples are like those of the whole."""
    inner = _component(config).first_within(config) if isinstance(config, ComponentConfig) else None
    return config if inner is None else innermost(inner)


def known_group_size(config: Any) -> int | None:
    """The `group_size` of a data set, or what its config tells of it without the data."""
    inner = innermost(config)
    return _component(inner).group_size_of(inner) if isinstance(inner, ComponentConfig) else inner.group_size


def has_whole_images(config: Any) -> bool:
    """Whether the targets of a data set, or of the one that a config describes, are classes of whole images."""
    inner = innermost(config)
    return (_component(inner) if isinstance(inner, ComponentConfig) else inner).whole_images


def known_channels(data: Any) -> int | None:
    """The channels of the images of a data set, or what its config tells of them; None where only files know."""
    inner = innermost(data)
    return _component(inner).channels_of(inner) if isinstance(inner, ComponentConfig) else inner.channels


def known_bits(data: Any) -> int | None:
    """The bits of a channel of a data set, or what its config tells of them; None where only files know."""
    inner = innermost(data)
    return _component(inner).bits_of(inner) if isinstance(inner, ComponentConfig) else inner.bits


def check_same_unit(data: Mapping[str, Any]) -> None:
    """Raises: `ConfigError` where some data sets (or configs), by their places, are of `bits: 32` and others not."""
    numbers = [place for place, part in data.items() if known_bits(part) == 32]
    for place in data if numbers else ():
        if place not in numbers:
            raise ConfigError(
                f"{place}: its images are not of `bits: 32`, as those of {numbers[0]} are, numbers in a unit of their "
                "own; give both the same `bits`"
            )


def known_size(config: Any) -> tuple[int, int] | None:
    """Height and width that the images of a data set's config have after its transforms; None where unknown."""
    if not isinstance(config, ComponentConfig):
        return None
    inner = _component(config).first_within(config)
    size = _component(config).size_of(config) if inner is None else known_size(inner)
    for transform in getattr(config, "transforms", ()):
        try:
            size = TRANSFORMS.build(transform).size_after(size)
        except ConfigError:  # which is told where the transforms are checked
            return None
    return size


def _component(config: ComponentConfig) -> type[ClassyDataset]:
    return config.component


def build_datasets(place: str, configs: Iterable[Any]) -> list[ClassyDataset]:
    """The data sets of a list that `place` names in messages. Raises: `ConfigError`."""
    built = []
    for i, config in enumerate(configs):
        with within(f"{place}[{i}]"), faults_within(f"{place}[{i}]"):
            built.append(build_dataset(config))
    return built
