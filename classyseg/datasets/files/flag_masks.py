"""Masks of pixels that may have several classes: one file with a channel for each class, or a file for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from classyseg.config import unknown
from classyseg.console import shown
from classyseg.datasets.files.images import read_mask_channels
from classyseg.datasets.label_map import LabelMap
from classyseg.errors import ConfigError, DataError

CLASS = "{class}"
"""What stands for the name of a class in the folders, or in the ends of the names, of masks."""


class MaskPlace(NamedTuple):
    """Where the masks of a class lie, or those of all classes: a folder, how names end, and the key that says so."""

    folder: str
    suffix: str
    key: str


def mask_places(
    masks: str | Mapping[str, str], mask_suffix: str, classes: Sequence[str]
) -> tuple[tuple[MaskPlace, ...], bool]:
    """The places of masks, and whether each class has its own, in the order of `classes`.

    Raises: `ConfigError` for a mapping that does not name the classes, and for a name that cannot be part of a path.
    """
    if isinstance(masks, str):
        if CLASS not in masks and CLASS not in mask_suffix:
            return (MaskPlace(masks, mask_suffix, "masks"),), False
        for name in classes:
            if "/" in name or "\\" in name or name in (".", ".."):
                raise ConfigError(
                    "masks", f"found {CLASS} for the class {shown(name)}, which is no name of a folder; map it to one"
                )
        return tuple(
            MaskPlace(masks.replace(CLASS, name), mask_suffix.replace(CLASS, name), "masks") for name in classes
        ), True
    for name in masks:
        if name not in classes:
            raise ConfigError(f"masks.{name}", unknown("class", name, classes))
    for name in classes:
        if name not in masks:
            raise ConfigError("masks", f"found no folder for the class {shown(name)}; map each class to its masks")
    return tuple(
        MaskPlace(masks[name].replace(CLASS, name), mask_suffix.replace(CLASS, name), f"masks.{name}")
        for name in classes
    ), True


def read_flags(
    masks: Sequence[Path],
    classes: Sequence[str],
    label_map: LabelMap,
    ignore_index: int,
    *,
    ignored: Path | None = None,
) -> Tensor:
    """The flags (num_classes, H, W) of one file with a channel for each class, or of a file for each class.

    `ignored` is a mask that is not 0 where all classes are ignored. Raises: `DataError`, naming the file, for another
    number of channels, and for masks of different sizes.
    """
    wanted = len(classes) if len(masks) == 1 else 1
    parts = []
    for path in masks:
        values = read_mask_channels(path)
        if len(values) != wanted:
            what = f"one for each of the {wanted} classes, in their order" if wanted > 1 else "one"
            raise DataError(f"a mask of {len(values)} channels; expected {what}", file=path)
        parts.append(label_map(values, path))
        _check_size(parts[0], parts[-1], path, masks[0])
    flags = parts[0] if len(parts) == 1 else torch.cat([part.long() if _mixed(parts) else part for part in parts])
    if ignored is None:
        return flags
    hidden = torch.from_numpy(read_mask_channels(ignored) != 0)
    if len(hidden) != 1:
        raise DataError(f"a mask of {len(hidden)} channels; expected one, which is not 0 where to ignore", file=ignored)
    _check_size(flags, hidden, ignored, masks[0])
    flags = flags if flags.dtype != torch.uint8 or 0 <= ignore_index <= 255 else flags.long()
    return flags.masked_fill(hidden, ignore_index)


def _mixed(parts: Sequence[Tensor]) -> bool:
    return len({part.dtype for part in parts}) > 1


def _check_size(first: Tensor, other: Tensor, path: Path, first_path: Path) -> None:
    if first.shape[1:] != other.shape[1:]:
        (height, width), (other_height, other_width) = first.shape[1:], other.shape[1:]
        raise DataError(
            f"a mask of {other_width} x {other_height} pixels; {first_path} has {width} x {height}: the masks of an "
            "image must be of one size",
            file=path,
        )
