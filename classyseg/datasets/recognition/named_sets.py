"""Recognises the public data sets that have readers of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from classyseg.datasets.annotations.found import Found
from classyseg.datasets.recognition.mask_values import look_at_masks

LOOKED_AT = 40
"""So many masks are looked at, to tell a data set from another one in the same folders."""


class Layout(NamedTuple):
    """How a public data set lies on the disk.

    `parts` has the folders of images and of masks of each part. `mask_ending` is that of the masks' names. `values` are
    those that masks may hold; `name` is what the names of its images look like. `told` is one sentence.
    """

    parts: dict[str, tuple[str, str]]
    values: frozenset[int]
    told: str
    mask_ending: str = ".png"
    name: str = ".*"
    nested: bool = False


LAYOUTS = {
    "camvid": Layout(
        {part: (part, f"{part}annot") for part in ("train", "val", "test")},
        frozenset(range(12)),
        "it has the folders and names of CamVid as in the SegNet tutorial",
        name=r"(Seq05VD|0001TP|0006R0|0016E5)_.*",
    ),
    "cityscapes": Layout(
        {part: (f"leftImg8bit/{part}", f"gtFine/{part}") for part in ("train", "val")},
        frozenset(range(34)),
        "it has the folders and names of Cityscapes with fine annotations",
        mask_ending="_gtFine_labelIds.png",
        name=r".*_leftImg8bit",
        nested=True,
    ),
    "ade20k": Layout(
        {part: (f"images/{part}ing", f"annotations/{part}ing") for part in ("train",)}
        | {"val": ("images/validation", "annotations/validation")},
        frozenset(range(151)),
        "it has the folders and names of ADE20K's benchmark of 150 classes",
        name=r"ADE_(train|val)_\d{8}",
    ),
    "coco_stuff": Layout(
        {part: (f"{part}2017", f"stuffthingmaps/{part}2017") for part in ("train", "val")},
        frozenset((*range(182), 255)),
        "it has the folders and names of COCO-Stuff",
        name=r"\d{12}",
    ),
}


def found_in(folder: Path) -> Found | None:
    """The public data set that `folder` is; None if it is none."""
    recognisers: list[Callable[[], Found | None]] = [
        *((lambda name=name, layout=layout: _laid_out(folder, name, layout)) for name, layout in LAYOUTS.items()),
        lambda: _pascal_voc(folder),
        lambda: _coco_panoptic(folder),
        lambda: _imagenet(folder),
    ]
    return next(filter(None, (recognise() for recognise in recognisers)), None)


def _laid_out(folder: Path, name: str, layout: Layout) -> Found | None:
    parts: dict[str, dict[str, Any]] = {}
    masks: list[Path] = []
    counts = {}
    for part, (images_name, masks_name) in layout.parts.items():
        images = list(_files(folder / images_name, nested=layout.nested))
        found = list(_files(folder / masks_name, nested=layout.nested))
        found = [path for path in found if path.name.endswith(layout.mask_ending)]
        if images and found and all(re.fullmatch(layout.name, path.stem) for path in images):
            parts[part], counts[part] = {"split": part}, len(images)
            masks += found
    if not parts:
        return None
    look = look_at_masks(masks, seconds=5, most=LOOKED_AT)
    strange = sorted({*look.pixels} - layout.values)
    if strange or look.colors or not look.pixels:
        return None
    counted = ", ".join(f"{part} {count}" for part, count in counts.items())
    first = next(iter(counts.values()))
    return Found(name, 0.95, f"{layout.told} ({counted} images)", _config(folder, parts), first, parts)


def _config(folder: Path, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The config of the first part: there is none for all of them."""
    return {"root": str(folder), **next(iter(parts.values()))}


def _files(folder: Path, *, nested: bool = False) -> Iterator[Path]:
    """The files of a folder that are no links, sorted; also those of its subfolders."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for path in entries:
        if path.is_symlink() or path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path) if nested else ()
        else:
            yield path


def _pascal_voc(folder: Path) -> Found | None:
    lists = folder / "ImageSets" / "Segmentation"
    if not (lists.is_dir() and (folder / "SegmentationClass").is_dir() and (folder / "JPEGImages").is_dir()):
        return None
    images = [path.stem for path in _files(folder / "JPEGImages")]
    parts = {part: {"split": part} for part in ("train", "val") if (lists / f"{part}.txt").is_file()}
    if not parts or not images or not all(re.fullmatch(r"\d{4}_\d{6}", name) for name in images):
        return None
    why = f"it has the folders, lists and names of Pascal VOC ({len(images)} images)"
    return Found("pascal_voc", 0.95, why, _config(folder, parts), len(images), parts)


def _coco_panoptic(folder: Path) -> Found | None:
    notes = folder / "annotations"
    parts = {
        part: {"split": part}
        for part in ("train", "val")
        if (notes / f"panoptic_{part}2017.json").is_file()
        and (notes / f"panoptic_{part}2017").is_dir()
        and (folder / f"{part}2017").is_dir()
    }
    if not parts:
        return None
    count = sum(1 for _ in _files(folder / f"{next(iter(parts))}2017"))
    return Found(
        "coco_panoptic", 0.95, "it has the folders and files of COCO Panoptic", _config(folder, parts), count, parts
    )


def _imagenet(folder: Path) -> Found | None:
    parts, counts = {}, []
    for part in ("train", "val"):
        names = [path.name for path in _folders(folder / part)]
        if len(names) > 1 and all(re.fullmatch(r"n\d{8}", name) for name in names):
            parts[part] = {"split": part}
            counts.append(len(names))
    if not parts:
        return None
    why = f"it has folders with the names of ImageNet's classes ({counts[0]} of 1000)"
    return Found("imagenet", 0.9, why, _config(folder, parts), 0, parts)


def _folders(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    yield from (path for path in entries if path.is_dir() and not path.is_symlink())
