"""Recognises images with a folder of masks for each class: a pixel may have several classes then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from classyseg.config import listed
from classyseg.console import MAX_NAME, printable
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.files.images import IMAGE_SUFFIXES, MASK_SUFFIXES
from classyseg.datasets.recognition.image_keys import image_keys
from classyseg.datasets.recognition.mask_values import look_at_masks
from classyseg.datasets.recognition.roles import PARTS, meaning_of
from classyseg.datasets.recognition.tree import Tree, listing

Place = tuple[str | None, tuple[str, ...]]
"""The part, and the other words of a path."""


class Flags(NamedTuple):
    """A folder of images, and by class the folder of its masks, in which every image has one of its own name."""

    images: str
    masks: dict[str, str]
    names: Mapping[str, str]


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as images with a folder of masks for each class; None if nothing does."""
    tree = listing(folder)
    by_part = _flags(tree)
    if not by_part or ("all" in by_part and len(by_part) > 1):
        return None
    if len({tuple(sorted(flags.masks)) for flags in by_part.values()}) > 1:
        return None
    whole = by_part.get("train") or next(iter(by_part.values()))
    pairs = [pair for flags in by_part.values() for pair in _pairs(tree, flags)]
    look = look_at_masks([mask for _, mask in pairs])
    values = {*look.pixels}
    if look.colors or not values or not (values <= {0, 255} or values <= {0, 1, 255}):
        return None
    is_255 = 1 not in values
    config: dict[str, Any] = {**_keys(tree, whole), "multi_label": True} | ({"label_map": {255: 1}} if is_255 else {})
    config |= image_keys(pairs, look.sizes)
    parts = {part: _keys(tree, flags) for part, flags in by_part.items() if part in PARTS}
    names = listed([printable(name, MAX_NAME) for name in sorted(whole.masks)], limit=6)
    count = sum(len(flags.names) for flags in by_part.values())
    why = f"{count} images have a mask of their name in each of {len(whole.masks)} folders, of 0 and "
    why += "255" if is_255 else "1"
    note = f"each folder of masks is taken for a class, {names}, and a pixel may have several: docs/several_classes.md"
    return Found("folder", 0.75, why, config, len(whole.names), parts, (note,))


def _keys(tree: Tree, flags: Flags) -> dict[str, Any]:
    masks = {name: str(tree.path(place)) for name, place in sorted(flags.masks.items())}
    return {"images": str(tree.path(flags.images)), "masks": masks}


def _pairs(tree: Tree, flags: Flags) -> Iterator[tuple[Path, Path]]:
    for place in flags.masks.values():
        files = _stems(tree, place)
        for stem, name in flags.names.items():
            yield tree.path(flags.images) / name, tree.path(place) / files[stem]


def _flags(tree: Tree) -> dict[str, Flags]:
    """By part, `all` for images without one."""
    images: dict[Place, list[str]] = defaultdict(list)
    masks: dict[Place, dict[str, str]] = defaultdict(dict)
    for place in tree.files:
        told = meaning_of(place)
        if told.role == "masks" and told.rest and tree.files[place]:
            masks[told.part, told.rest[:-1]][told.rest[-1]] = place
        elif told.role == "images" and _stems(tree, place, IMAGE_SUFFIXES):
            images[told.part, told.rest].append(place)
    found: dict[str, Flags] = {}
    for key, folders in masks.items():
        for place in images.get(key, [])[:1]:
            names = _stems(tree, place, IMAGE_SUFFIXES)
            whole = {name: each for name, each in folders.items() if names.keys() <= _stems(tree, each).keys()}
            if len(whole) > 1 and len(whole) == len(folders):
                found[key[0] or "all"] = Flags(place, whole, names)
    return found


def _stems(tree: Tree, place: str, suffixes: tuple[str, ...] = MASK_SUFFIXES) -> Mapping[str, str]:
    return {name.rpartition(".")[0]: name for name in tree.files[place] if name.lower().endswith(suffixes)}
