"""The content of an image file as bytes is read as the file is."""

from __future__ import annotations

import random
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_cases import all_cases
from fuzz_files import changed
from memory import memory_within
from PIL import Image

from classyseg.datasets.files.images import TooLargeError, UnreadableError, read_image
from classyseg.errors import DataError

CASES = all_cases()
SPECS: list[dict[str, Any]] = [
    {"bits": None, "exif": "rotate"},
    {"bits": None, "exif": "ignore", "channels": 1},
    {"bits": None, "exif": "rotate", "channels": 4},
    {"bits": 32, "exif": "rotate", "channels": 1},
]


def outcome(source: Path | bytes, options: dict[str, Any]) -> Any:
    """The image, or what is said about it, without the path."""
    try:
        return read_image(source, **options)
    except DataError as error:
        return type(error), error.without(source) if isinstance(source, Path) else str(error)


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


@pytest.mark.parametrize("suffix", sorted({Path(case.name).suffix for case in CASES.values()}))
def test_bytes_of_every_format_are_read_as_their_file_is(tmp_path: Path, suffix: str) -> None:
    for case in (case for case in CASES.values() if Path(case.name).suffix == suffix):
        path = tmp_path / case.name
        case.write(path)
        for options in SPECS:
            assert alike(outcome(path, options), outcome(path.read_bytes(), options)), (case.name, options)


def test_bytes_of_damaged_files_are_read_or_refused_as_their_file_is(tmp_path: Path) -> None:
    draw, told = random.Random(3), 0
    names = sorted(CASES)
    for i in range(300):
        case = CASES[names[i * 7 % len(names)]]
        path = tmp_path / case.name
        case.write(path)
        data = changed(path.read_bytes(), path.suffix, draw)
        path.write_bytes(data)
        if (path.suffix == ".npy") != data.startswith(b"\x93NUMPY"):
            continue  # the name of a file decides, and bytes have none
        one, other = outcome(path, SPECS[0]), outcome(data, SPECS[0])
        if isinstance(one, tuple) and path.suffix == ".npy":
            one, other = one[0], other[0]  # a mapped file has words of its own for what is cut off
        assert alike(one, other), (case.name, i)
        told += not isinstance(one, torch.Tensor)
    assert 50 < told < 290


def npy(array: Any, version: Any = None) -> bytes:
    file = BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_from_bytes_as_numpy_wrote_them(version: tuple[int, int], order: Any) -> None:
    array = np.asarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8), order=order)
    found = read_image(npy(array, version)).permute(1, 2, 0).numpy()
    assert np.array_equal(found, array)
    wide = np.arange(20, dtype=">u2").reshape(4, 5)
    assert read_image(npy(wide, version), channels=1, bits=None).tolist() == [wide.tolist()]


def header(shape: str, kind: str = "|u1") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        header("(-1, 4, 3)") + bytes(24),
        header("(2, 4, 3)") + bytes(23),
        header("(100000, 100000, 3)"),
        header("(2, 4, 3)", "|O") + bytes(500),
        header("(1" + "0" * 5000 + ",)"),
        b"\x93NUMPY\7\0" + bytes(20),
        b"\x93NUMPY",
        b"",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_bytes_that_are_no_whole_image_are_refused_without_a_traceback(content: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"^cannot be read"):
        read_image(content)


def jpeg_of_two_sizes() -> bytes:
    """A JPEG whose second frame header says 4000 x 4000; its first one says 8 x 8."""
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    content = file.getvalue()
    place = content.index(b"\xff\xc0")
    length = struct.unpack_from(">H", content, place + 2)[0]
    frame = bytearray(content[place : place + 2 + length])
    struct.pack_into(">HH", frame, 5, 4000, 4000)
    return content[: place + 2 + length] + bytes(frame) + content[place + 2 + length :]


def bombs() -> dict[str, bytes]:
    large = Image.new("L", (4000, 4000))
    found = {"npy": header("(4000, 4000, 3)") + bytes(3 * 4000 * 4000), "jpeg of two sizes": jpeg_of_two_sizes()}
    for form, options in (
        ("PNG", {}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 1}),
        ("JPEG", {}),
        ("BMP", {}),
        ("GIF", {}),
    ):
        file = BytesIO()
        large.save(file, form, **options)
        found[f"{form} {options}"] = file.getvalue()
    return found


def test_more_pixels_than_wanted_are_refused_by_the_header_before_memory_is_taken(tmp_path: Path) -> None:
    for name, content in bombs().items():
        with memory_within(6 * 2**10), pytest.raises(TooLargeError, match=r"16,000,000 pixels.*up to 1,000,000"):
            read_image(content, max_pixels=10**6)
        path = tmp_path / ("a.npy" if name == "npy" else "a.png")
        path.write_bytes(content)
        with pytest.raises(TooLargeError, match=f"^{path}: "):
            read_image(path, max_pixels=10**6)
    assert read_image(npy(np.zeros((4, 5, 3), np.uint8)), max_pixels=20).shape == (3, 4, 5)
