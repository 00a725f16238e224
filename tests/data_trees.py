"""Small trees of images and masks of two classes, drawn or copied from the real nuclei, and how to change them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import label_trees
import numpy as np
from PIL import Image

CLASSES = ["background", "nucleus"]
COUNTS = {"train": 12, "val": 4}


def folders(root: Path, split: str) -> tuple[Path, Path]:
    return root / "images" / split, root / "masks" / split


def pairs(root: Path, split: str = "train") -> list[tuple[Path, Path]]:
    """The files of a tree, by name."""
    images, masks = folders(root, split)
    return [(path, masks / f"{path.stem}.png") for path in sorted(images.iterdir())]


def drawn_tree(root: Path) -> Path:
    """Noise with brighter discs, of 48 x 40 and 40 x 40 pixels, in images as JPEG."""
    random = np.random.default_rng(0)
    for split, count in COUNTS.items():
        images, masks = folders(root, split)
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(count):
            height, width = 40, 48 - 8 * (i % 2)
            y, x = np.mgrid[:height, :width]
            mask = sum((x - cx) ** 2 + (y - 20) ** 2 < 64 for cx in (12, 30)) > 0
            image = random.integers(0, 60, (height, width, 3)) + 120 * mask[..., None]
            Image.fromarray(image.astype(np.uint8)).save(images / f"{split}{i:02d}.jpg", quality=95)
            Image.fromarray(mask.astype(np.uint8)).save(masks / f"{split}{i:02d}.png")
    return root


def nuclei_tree(root: Path) -> Path:
    """Copies of some real images and masks, spread over the set so that their sizes differ."""
    source = label_trees.real("nuclei_dsb2018")
    for split, count in COUNTS.items():
        names = sorted(path.stem for path in (source / "images" / split).iterdir())
        images, masks = folders(root, split)
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(count):
            name = names[i * len(names) // count]
            (images / f"{name}.jpg").write_bytes((source / "images" / split / f"{name}.jpg").read_bytes())
            (masks / f"{name}.png").write_bytes((source / "annotations" / split / f"{name}.png").read_bytes())
    return root


def data_sets(root: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """The configs of a tree's data sets by their places."""
    return {
        f"dataset.{split}": {
            "name": "folder",
            "images": str(root / "images" / split),
            "masks": str(root / "masks" / split),
            "classes": CLASSES,
            **options,
        }
        for split in COUNTS
    }


def changed_masks(root: Path, change: Callable[[Any], Any], *, only: int | None = None) -> str:
    """Writes every mask (or the one number `only`) of both splits (or of train) anew; the name of the last one."""
    found = [mask for split in COUNTS for _, mask in pairs(root, split)]
    for mask in found if only is None else [found[only]]:
        values = change(np.asarray(Image.open(mask)))
        (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(mask, "PNG")
        last = mask.name
    return "" if only is None else last


def oblong(root: Path) -> tuple[Path, Path]:
    """The first pair whose width is not its height."""

    def sides() -> Iterator[tuple[Path, Path]]:
        for image, mask in pairs(root):
            width, height = Image.open(image).size
            if width != height:
                yield image, mask

    return next(sides())
