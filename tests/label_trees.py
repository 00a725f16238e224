"""Small trees of images and masks in the layouts of public data sets, and where the real samples lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

HEIGHT, WIDTH = 6, 8


def real(name: str) -> Path:
    """The folder of a real sample; skips the test where it is absent."""
    folder = Path(os.environ.get("CLASSYSEG_DATA") or Path(__file__).parents[1] / "../shared/data") / name
    if not folder.is_dir():
        pytest.skip(f"the real {name} is not there: no folder {folder}; $CLASSYSEG_DATA says where such data lies")
    return folder.resolve()


def image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(path)
    return path


def mask(path: Path, *values: int, dtype: Any = np.uint8) -> Path:
    """A mask whose rows hold `values` in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, dtype), HEIGHT)[:, None].repeat(WIDTH, 1)).save(path)
    return path


def colors(path: Path, *values: tuple[int, int, int], mode: str = "RGB") -> Path:
    """A mask whose rows hold colours in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.array([values[i % len(values)] for i in range(HEIGHT)], np.uint8)
    Image.fromarray(rows[:, None].repeat(WIDTH, 1)).convert(mode).save(path)
    return path


def names(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(target: Any) -> list[int]:
    """The label of each row of a mask."""
    return target[:, 0].tolist()
