"""Image files of every kind that people have, each with the arrays it was made of: by tifffile, Pillow and by hand.

`all_cases` is a table of formats x bits x layouts. Its rows stand in `tiff_cases.py` and `bitmap_cases.py`. What a file
must give as an image or a mask follows from its array and the rules of docs/datasets.md, not from the reader.
`fuzz_files.py` damages the same files.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 23, 37
Y, X = np.mgrid[:HEIGHT, :WIDTH]
REFUSED = "refused"


def values(bands: int, dtype: Any = np.uint8, top: int | None = None) -> np.ndarray:
    """(H, W, bands) of different numbers in each band, from the lowest to the highest of the type, or 0 to `top`."""
    kind = np.dtype(dtype)
    array = (Y * 7 + X * 3)[..., None] + 40 * np.arange(bands)
    if kind.kind == "f":
        return (array / 8 - 5).astype(kind)
    lowest = 0 if top is not None else int(np.iinfo(kind).min)
    highest = top if top is not None else int(np.iinfo(kind).max)
    step = max(1, (highest - lowest) // 251)
    return (np.mod(array.astype(object) * step, highest - lowest + 1) + lowest).astype(kind)


@dataclass(frozen=True)
class Case:
    """A file that `write` makes, of the suffix of `name`.

    `images` gives the array (H, W, channels) for each (channels, bits) that a data set may say, `mask` the labels
    (H, W) and `colors` the colours (H, W, 3) of a mask; or `REFUSED`. What `images` does not name is refused.
    """

    name: str
    write: Callable[[Path], object]
    images: dict[tuple[int, int], Any] = field(default_factory=dict)
    mask: Any = REFUSED
    colors: Any = REFUSED


CASES: dict[str, Case] = {}


def add(
    name: str, write: Callable[[Path], object], images: Any = None, mask: Any = REFUSED, colors: Any = REFUSED
) -> None:
    assert name not in CASES, name
    CASES[name] = Case(name, write, images or {}, mask, colors)


def grey_images(shown: np.ndarray, bits: int = 8) -> dict[tuple[int, int], np.ndarray]:
    """What a grey image (H, W), 0 black, gives."""
    return {(1, bits): shown[..., None], (3, bits): np.repeat(shown[..., None], 3, 2)}


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601-2, as Pillow documents it."""
    weights = np.array([19595, 38470, 7471])
    return ((rgb.astype(np.int64) @ weights + 0x8000) >> 16).astype(np.uint8)[..., None]


def rgb_images(rgb: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    return {(3, 8): rgb, (1, 8): luma(rgb)}


PALETTE = np.random.default_rng(5).integers(0, 256, (256, 3), dtype=np.uint8)


def palette_case(
    name: str, write: Callable[[Path], object], indices: np.ndarray, palette: np.ndarray = PALETTE
) -> None:
    add(name, write, rgb_images(palette[indices]), indices, palette[indices])


def packed(indices: np.ndarray, bits: int, multiple: int = 1) -> bytes:
    """Rows of `bits` a number, the first in the highest bits, each a multiple of some bytes."""
    digits = (indices[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(digits.reshape(len(indices), -1).astype(np.uint8), axis=1)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % multiple))).tobytes()


def save(array: np.ndarray, **options: Any) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(array).save(path, **options)


GREY, RGB, RGBA = values(1)[..., 0], values(3), values(4)
FEW = values(1, top=15)[..., 0]


def all_cases() -> dict[str, Case]:
    """The whole table, by the names of the files."""
    for module in ("tiff_cases", "bitmap_cases"):
        importlib.import_module(module)
    return CASES
