"""Recognises images with a folder of masks for each class: a pixel may have several classes then."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from classyseg.config import listed
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.files.images import IMAGE_SUFFIXES, MASK_SUFFIXES
from classyseg.datasets.recognition.image_keys import image_keys
from classyseg.datasets.recognition.mask_values import SECONDS, Look, look_at_masks
from classyseg.datasets.recognition.plain_folders import Pair, lists_of, stems_of
from classyseg.datasets.recognition.roles import PARTS, meaning_of, not_taken
from classyseg.datasets.recognition.tree import Tree, listing

Place = tuple[str | None, tuple[str, ...]]
"""The part, and the other words of a path."""


class Flags(NamedTuple):
    """A folder of images, and by class the folder of its masks, all relative to the data set's."""

    images: str
    masks: dict[str, str]


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as images with a folder of masks for each class; None if nothing does."""
    tree = listing(folder)
    every = _flags(tree)
    if not every:
        return None
    by_part = {part or "all": flags for (part, _), flags in every.items()}
    whole = by_part.get("train") or next(iter(by_part.values()))
    looks = {
        name: look_at_masks(_masks(tree, by_part, name), seconds=SECONDS / len(whole.masks)) for name in whole.masks
    }
    problem = _of_folders(tree, every) or _of_values(looks)
    names = listed(sorted(whole.masks), limit=6)
    count = sum(len(stems_of(tree, flags.images, IMAGE_SUFFIXES)) for flags in by_part.values())
    why = f"{count} images have a mask of their name in each of {len(whole.masks)} folders ({names})"
    if problem:
        return Found("folder", 0.3, f"{why}, but {problem}", _keys(tree, whole), count)
    pairs = [pair for flags in by_part.values() for pair in _pairs(tree, flags)]
    is_255 = not any(1 in look.pixels for look in looks.values())
    config: dict[str, Any] = {**_keys(tree, whole), "multi_label": True} | ({"label_map": {255: 1}} if is_255 else {})
    config |= image_keys(pairs, {path: size for look in looks.values() for path, size in look.sizes.items()})
    parts = {part: _keys(tree, flags) for part, flags in by_part.items() if part in PARTS}
    if [*by_part] == ["all"]:
        parts = lists_of(tree, Pair(whole.images, "", "", "", tuple(pairs), len(pairs)))
    others = [place for place in _images(tree) if place not in {flags.images for flags in by_part.values()}]
    notes = [
        f"each folder of masks is taken for a class, {names}, and a pixel may have several: docs/several_classes.md"
    ]
    seen, of = (sum(getattr(look, key) for look in looks.values()) for key in ("seen", "of"))
    notes += [f"{seen} of {of} masks were looked at"] if seen < of else []
    return Found("folder", 0.75, why, config, len(_pairs(tree, whole)), parts, (*notes, *not_taken(others)))


def _keys(tree: Tree, flags: Flags) -> dict[str, Any]:
    masks = {name: str(tree.path(place)) for name, place in sorted(flags.masks.items())}
    return {"images": str(tree.path(flags.images)), "masks": masks}


def _images(tree: Tree) -> list[str]:
    """The folders of images that say so."""
    return [
        place for place in tree.files if meaning_of(place).role == "images" and stems_of(tree, place, IMAGE_SUFFIXES)
    ]


def _flags(tree: Tree) -> dict[Place, Flags]:
    """Folders of images with two folders or more in a folder of masks of the same part and words, names apart.

    A folder of a class is called as it likes: `masks/train` holds masks of trains.
    """
    masks: dict[Place, dict[str, str]] = defaultdict(dict)
    for place in tree.files:
        outer, _, name = place.rpartition("/")
        told = meaning_of(outer)
        if told.role == "masks" and stems_of(tree, place, MASK_SUFFIXES):
            masks[told.part, told.rest][name] = place
    found: dict[Place, Flags] = {}
    for place in _images(tree):
        told = meaning_of(place)
        key = told.part, told.rest
        stems = stems_of(tree, place, IMAGE_SUFFIXES).keys()
        folders = masks.get(key, {})
        if len(folders) > 1 and any(stems & stems_of(tree, each, MASK_SUFFIXES).keys() for each in folders.values()):
            found[key] = Flags(place, folders)
    return found


def _pairs(tree: Tree, flags: Flags) -> list[tuple[Path, Path]]:
    """The images, each with its mask of the first class."""
    first = min(flags.masks.values())
    files = stems_of(tree, first, MASK_SUFFIXES)
    images = stems_of(tree, flags.images, IMAGE_SUFFIXES)
    return [(tree.path(flags.images) / name, tree.path(first) / files[stem]) for stem, name in images.items()]


def _masks(tree: Tree, by_part: Mapping[str, Flags], name: str) -> list[Path]:
    places = [flags.masks[name] for flags in by_part.values() if name in flags.masks]
    return [tree.path(place) / file for place in places for file in stems_of(tree, place, MASK_SUFFIXES).values()]


def _of_folders(tree: Tree, every: Mapping[Place, Flags]) -> str:
    """Why the folders are no classes of one data set; empty if they may be."""
    parts = [part for part, _ in every]
    if len({*parts}) < len(parts) or (None in parts and len(parts) > 1):
        return (
            f"several folders of images have such masks: {listed([flags.images for flags in every.values()], limit=4)}"
        )
    classes = [sorted(flags.masks) for flags in every.values()]
    if any(each != classes[0] for each in classes):
        return "the parts have other folders of masks"
    if len({re.sub(r"\d+(st|nd|rd|th)?", "", name.lower()) for name in classes[0]}) == 1:
        return "their names differ in a number alone, as those of annotators or versions do"
    for flags in every.values():
        images = stems_of(tree, flags.images, IMAGE_SUFFIXES).keys()
        for place in flags.masks.values():
            masks = stems_of(tree, place, MASK_SUFFIXES).keys()
            if images != masks:
                missing, spare = len(images - masks), len(masks - images)
                return f"{listed([place], limit=4)} has no mask of {missing} images, and {spare} masks without an image"
    return ""


def _of_values(looks: Mapping[str, Look]) -> str:
    """Why the masks are no flags; empty if they may be."""
    for name, look in looks.items():
        if look.wrong or look.colors or not {*look.pixels} <= {0, 1, 255} or not look.pixels:
            return f"masks of {listed([name], limit=4)} hold other values than 0 and 1, or 0 and 255"
    ones = [name for name, look in looks.items() if 1 in look.pixels]
    full = [name for name, look in looks.items() if 255 in look.pixels and 1 not in look.pixels]
    if ones and full:
        some = f"masks of {listed(ones, limit=4)} hold 0 and 1"
        return f"{some}, those of {listed(full, limit=4)} 0 and 255: write them alike"
    return ""
