"""From a config to a data set, with the keys that all of them have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from classyseg import __version__
from classyseg.config import ConfigError, within
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.sample_cache import SampleCache
from classyseg.io import data_root
from classyseg.registry import DATASETS, ComponentConfig

NOT_READ = ("transforms", "on_bad_sample", "max_bad_samples", "cache_samples", "cache_samples_gigabytes")
"""The keys of a data set's config that leave what is read from its files as it is."""


def build_dataset(config: Any) -> ClassyDataset:
    """The data set that `config` describes; a built one is returned as it is. Raises: `ConfigError`."""
    if isinstance(config, ClassyDataset):
        return config
    checked = config if isinstance(config, ComponentConfig) else DATASETS.validate(config, placed=True)
    dataset: ClassyDataset = DATASETS.build(checked)
    for key in ("exif", "on_bad_sample", "max_bad_samples"):
        if hasattr(checked, key):  # a config that was checked without the keys of whoever places it lacks them
            setattr(dataset, key, getattr(checked, key))
    folder = getattr(checked, "cache_samples", None)
    _check_use(dataset, folder)
    if folder is not None:
        read = {key: value for key, value in checked.resolved().items() if key not in NOT_READ}
        settings = f"{__version__} {checked.component.__qualname__} {sorted(read.items())}"
        gigabytes = checked.cache_samples_gigabytes  # type: ignore[attr-defined]
        dataset.cache = SampleCache((data_root() / folder).absolute(), settings, gigabytes)
    return dataset


def _check_use(dataset: ClassyDataset, cache_folder: str | None) -> None:
    """Raises: `ConfigError` for `exif` and `cache_samples` where they would do nothing."""
    kind = type(dataset).__name__
    if dataset.exif != "refuse" and not dataset.reads_files:
        raise ConfigError(f"exif: found '{dataset.exif}', but {kind} reads no files; give it to the data sets within")
    if cache_folder is None or (dataset.reads_files and (not len(dataset) or dataset.files(0))):
        return
    what = "leave it out" if dataset.reads_files else "give it to the data sets within"
    raise ConfigError(
        f"cache_samples: found '{cache_folder}', but {kind} reads no image files of which each is of one sample; {what}"
    )


def build_datasets(place: str, configs: Iterable[Any]) -> list[ClassyDataset]:
    """The data sets of a list that `place` names in messages. Raises: `ConfigError`."""
    built = []
    for i, config in enumerate(configs):
        with within(f"{place}[{i}]"):
            built.append(build_dataset(config))
    return built
