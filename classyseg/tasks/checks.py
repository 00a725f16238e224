"""What must hold between the parts of a task, found before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from classyseg.config import ConfigError
from classyseg.layers import NormalizeConfig
from classyseg.transforms import Normalize


def applied_normalize(transforms: Mapping[str, Sequence[Any]], normalize: NormalizeConfig | None) -> NormalizeConfig:
    """The mean and deviation that the images of every data set meet: a transform's, else the task's own `normalize`.

    `transforms` are the built ones of each data set, by `train` and `test`. Raises: `ConfigError` when images would be
    normalised twice, or those of one data set otherwise than those of the other.
    """
    applied: dict[str, NormalizeConfig] = {}
    for name, steps in transforms.items():
        found = [step.normalize for step in steps if isinstance(step, Normalize)]
        if found and normalize is not None:
            raise ConfigError(
                f"dataset.{name}.transforms: found 'normalize' beside the task's own `normalize`; keep one"
            )
        if len(found) > 1:
            raise ConfigError(f"dataset.{name}.transforms: found 'normalize' {len(found)} times; keep one")
        applied[name] = found[0] if found else normalize or NormalizeConfig()
    first, *others = applied.items()
    for name, other in others:
        if other != first[1]:
            raise ConfigError(
                f"dataset.{name}.transforms: its images get {_text(other)}, those of dataset.{first[0]} "
                f"{_text(first[1])}; leave out the transform 'normalize' and give the task one `normalize`"
            )
    return first[1]


def _text(normalize: NormalizeConfig) -> str:
    return f"mean {list(normalize.mean)} and std {list(normalize.std)}"
