"""Recognises images in one folder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from classyseg.config import listed
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.files.images import IMAGE_SUFFIXES
from classyseg.datasets.recognition.roles import is_plain, meaning_of, not_taken, one_of_each, part_of
from classyseg.datasets.recognition.tree import Tree, listing


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as folders of classes, with or without folders of parts above them; None if nothing."""
    tree = listing(folder)
    if any(meaning_of(place).role == "masks" for place in tree.files):  # images of pixels' classes
        return None
    told = {name: part for name in tree.below("") if (part := part_of(name))}
    by_part, _ = one_of_each({name: part for name, part in told.items() if _classes(tree, name)})
    if "train" in by_part:
        train = _classes(tree, by_part["train"])
        classes = [*dict.fromkeys(name for place in by_part.values() for name in _classes(tree, place))]
        rest = [name for name in tree.below("") if name not in by_part.values() and _classes(tree, name)]
        parts: dict[str, dict[str, Any]] = {part: {"root": str(tree.path(name))} for part, name in by_part.items()}
        config: dict[str, Any] = {"root": str(tree.path(by_part["train"])), "classes": sorted(classes)}
        return Found("image_folder", 0.7, _why(train), config, sum(train.values()), parts, not_taken(rest))
    found = _classes(tree, "")
    if not found:
        return None
    return Found("image_folder", 0.6, _why(found), {"root": str(folder), "classes": sorted(found)}, sum(found.values()))


def _classes(tree: Tree, place: str) -> dict[str, int]:
    """The number of images in each folder of `place`; none if these are no classes."""
    counts = dict.fromkeys((name.rpartition("/")[2] for name in tree.below(place)), 0)
    start = f"{place}/" if place else ""
    for folder, names in tree.files.items():
        own = folder.removeprefix(start).partition("/")[0]
        if folder.startswith(start) and own in counts:
            counts[own] += _images(names)
    is_one = len(counts) > 1 and all(counts.values()) and all(map(is_plain, counts))
    return counts if is_one and not _images(tree.files[place]) else {}


def _images(names: tuple[str, ...]) -> int:
    return sum(name.lower().endswith(IMAGE_SUFFIXES) for name in names)


def _why(counts: dict[str, int]) -> str:
    names = listed([*counts], limit=4)
    return f"{sum(counts.values())} images lie in {len(counts)} folders, which look as classes: {names}"
