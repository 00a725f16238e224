"""A small data set whose pixels have several classes: bright discs, dark stripes, and both where they cross."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = ["disc", "stripe"]
SIZE = (40, 48)
IGNORED = 255


def drawn(index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """An image (H, W, 3), and its flags (2, H, W): the first rows of the discs are ignored for that class alone."""
    generator = np.random.default_rng(index)
    row, column = np.mgrid[: SIZE[0], : SIZE[1]]
    middle, left = generator.integers(10, 30, 2), generator.integers(4, 36)
    disc = (row - middle[0]) ** 2 + (column - middle[1]) ** 2 < generator.integers(60, 160)
    stripe = (column >= left) & (column < left + 8)
    image = generator.integers(90, 110, (*SIZE, 3)).astype(np.uint8)
    image[disc, 0] += 120
    image[stripe, 2] -= 80
    flags = np.stack([disc, stripe]).astype(np.uint8)
    flags[0, :2] = IGNORED
    return image, flags


def flag_tree(root: Path, count: int = 12, form: str = "npy") -> Path:
    """`images/NAME.png` with `masks/NAME.npy` of two channels, or with `disc/NAME.png` and `stripe/NAME.png`."""
    for name in ("images", "masks", *CLASSES):
        (root / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image, flags = drawn(i)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        if form == "npy":
            np.save(root / "masks" / f"{i}.npy", np.moveaxis(flags, 0, -1))
        for name, own in zip(CLASSES, flags, strict=True):
            Image.fromarray(own).save(root / name / f"{i}.png")
    return root


def data_of(root: Path, **options: Any) -> dict[str, Any]:
    """The data part of a config."""
    config = {
        "name": "folder",
        "images": str(root / "images"),
        "masks": str(root / "masks"),
        "classes": CLASSES,
        "multi_label": True,
        **options,
    }
    crop = {"name": "random_scale_crop", "size": [32, 32], "scale": [0.8, 1.5]}
    return {
        "dataset.train": {**config, "transforms": [crop, "horizontal_flip"]},
        "dataset.val": config,
        "loss": {"name": "sum_arbitrary", "losses": ["binary_cross_entropy", {"name": "dice", "classes": "all"}]},
    }
