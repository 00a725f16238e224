"""Holds a part of the samples out for `val`, where the folder makes no parts itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from classyseg.datasets.build import build_dataset
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.recognition.mask_values import evenly
from classyseg.datasets.splits import SplitConfig, indices_of_part, recording_names
from classyseg.errors import ConfigError, DataError
from classyseg.registry import DATASETS

WANTED = 0.2
"""The share of `val`."""
ACCEPTED = (0.1, 0.35)
SEEDS = 50
MANY = 20_000
"""With more samples, chance comes near the share, and few seeds are tried."""
SECONDS = 20.0


class HeldOut(NamedTuple):
    """The keys that make both parts, and what was decided. `split` is None where the data set has no such key."""

    split: dict[str, Any] | None
    note: str


def held_out(dataset: ClassyDataset, config: Mapping[str, Any]) -> HeldOut | None:
    """How `val` is taken from a data set; None if it has too few samples."""
    if len(dataset) < 2:
        return None
    every = HeldOut(
        None,
        f"every {round(1 / WANTED)}th sample is held out for val, whether its neighbours are of the same scene or not",
    )
    names = _names(config)
    if len(names) != len(dataset):
        return every
    present = _classes_of(dataset)
    scenes, files = (_best(names, present, by) for by in ("stem", "file"))
    if scenes is not None and (files is None or scenes.missing <= files.missing):
        return HeldOut(
            scenes.split,
            f"{scenes.size} of {len(names)} images are held out for val, those of one scene together",
        )
    if files is None:
        return every
    return HeldOut(
        files.split,
        f"{files.size} of {len(names)} images are held out for val, each by itself. "
        "If several are of one scene, write split.by so that they stay together",
    )


def part_config(config: Mapping[str, Any], part: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with a part of its files, as `keys` divide them. A split that it names is the one that is divided."""
    named = {"of": config["split"]} if isinstance(config.get("split"), str) else {}
    return {**config, "split": {"part": part, **keys, **named}}


def _names(config: Mapping[str, Any]) -> list[str]:
    """The names of the samples by which the data set of `config` divides them; none if it has no such key."""
    divided = part_config(config, "train", {"val": WANTED, "by": "file"})
    with recording_names() as found, suppress(ConfigError, DataError):  # chance may leave nothing for a part
        DATASETS.validate(divided, placed=True)
        build_dataset(divided)
    return found[0] if len(found) == 1 else []


class _Choice(NamedTuple):
    missing: int
    off: float
    seed: int
    size: int
    split: dict[str, Any]


def _best(names: Sequence[str], present: Sequence[frozenset[int]] | None, by: str) -> _Choice | None:
    """The seed with which `val` has nearly the wanted share, and both parts have all classes, if there is one."""
    choices = []
    for seed in range(SEEDS if len(names) < MANY else 2):
        values: dict[str, Any] = {"val": WANTED, "seed": seed, "by": by}
        try:
            chosen = indices_of_part(names, SplitConfig(part="val", **values), "the folder")
        except ConfigError:
            continue
        share = len(chosen) / len(names)
        is_small = len(names) < 10 and 0 < share < 1
        if not (ACCEPTED[0] <= share <= ACCEPTED[1] or is_small):
            continue
        split = {key: value for key, value in values.items() if (key, value) not in (("seed", 0), ("by", "stem"))}
        choices.append(_Choice(_missing(chosen, present), abs(share - WANTED), seed, len(chosen), split))
        if not choices[-1].missing and choices[-1].off < 0.02:
            break
    return min(choices, key=lambda choice: choice[:3], default=None)


def _missing(chosen: Sequence[int], present: Sequence[frozenset[int]] | None) -> int:
    """How many classes are only in one of the two parts."""
    if present is None:
        return 0
    taken = {*chosen}
    parts: tuple[set[int], set[int]] = (set(), set())
    for index, classes in enumerate(present):
        parts[index in taken].update(classes)
    return len(parts[0] ^ parts[1])


def _classes_of(dataset: ClassyDataset) -> list[frozenset[int]] | None:
    """The classes of each sample; None if the time does not suffice to look at all."""
    ends = time.monotonic() + SECONDS
    present: list[frozenset[int]] = [frozenset()] * len(dataset)
    for index in evenly(len(dataset), len(dataset)):
        try:
            target = dataset.load_target(index)
        except DataError:
            continue
        found = torch.unique(target).tolist() if not target.is_floating_point() else []
        present[index] = frozenset(value for value in found if 0 <= value < dataset.num_classes)
        if time.monotonic() > ends:
            return None
    return present
