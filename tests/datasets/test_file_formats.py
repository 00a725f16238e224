"""A table of formats x bits x layouts: each file is read bit for bit as the array that it was made of, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_cases import REFUSED, Case, all_cases

from classyseg.config import DataError
from classyseg.datasets import files

CASES = all_cases()
SPECS = [(channels, bits) for channels in (1, 2, 3, 4, 5, 6) for bits in (8, 16)]


def image(path: Path, channels: int, bits: Any) -> Any:
    return files.read_image(path, channels=channels, bits=bits).permute(1, 2, 0).numpy()


def colors(path: Path) -> Any:
    numbers = files.read_colors(path)
    return np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], axis=-1)


def check(found: Any, expected: Any) -> None:
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


def test_the_table_has_at_least_120_files() -> None:
    assert len(CASES) >= 120


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_a_file_is_read_as_the_array_it_was_made_of_or_refused_by_name(tmp_path: Path, case: Case) -> None:
    path = tmp_path / case.name
    case.write(path)
    for channels, bits in {*SPECS, *case.images}:
        if (channels, bits) in case.images:
            read = image(path, channels, bits)
            assert read.dtype == (np.uint16 if bits == 16 else np.uint8)
            check(read, case.images[channels, bits])
        elif case.name not in ("colour.jpg", "progressive.jpg"):
            with pytest.raises(DataError, match=f"^{path}: "):
                image(path, channels, bits)
    for read_mask, expected in ((files.read_mask_values, case.mask), (colors, case.colors)):
        if expected is REFUSED:
            with pytest.raises(DataError, match=f"^{path}: "):
                read_mask(path)
        else:
            check(read_mask(path), expected)
