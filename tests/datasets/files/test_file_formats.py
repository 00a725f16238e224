"""A table of formats x bits x layouts: each file is read bit for bit as the array that it was made of, or refused."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from format_cases import REFUSED, Case, all_cases, values
from fuzz_files import by_tifffile, fuzz
from memory import memory_within
from PIL import Image, ImageOps
from tiff_cases import raw_tiff

from classyseg.config import DataError
from classyseg.datasets.files import images as files

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


def test_the_numbers_of_a_tiff_are_those_that_tifffile_reads_or_refused_by_name(tmp_path: Path) -> None:
    """With `bits: 32`, of any number of channels that the data set says."""
    read, refused = [], []
    for case in CASES.values():
        path = tmp_path / case.name
        case.write(path)
        for channels in range(1, 7):
            try:
                found = image(path, channels, 32)
            except DataError as error:
                refused.append(str(error).startswith(f"{path}: "))
                continue
            assert path.suffix in (".tif", ".npy")
            assert found.dtype == np.float32
            stored = np.load(path) if path.suffix == ".npy" else list(by_tifffile(path))[-1]
            stored = stored if stored.ndim == 3 else stored[..., None]
            assert np.array_equal(found, stored.astype(np.float32)), case.name
            assert stored.dtype == np.float64 or np.array_equal(found, stored), case.name
            read.append(case.name)
    assert all(refused)
    assert len(read) == len(set(read)) >= 100


def test_a_damaged_file_is_refused_or_read_as_another_reader_reads_it(tmp_path: Path) -> None:
    """2,000 of them; `python tests/fuzz_files.py COUNT SEED` tries others."""
    outcomes, wrong = fuzz(2000, tmp_path)
    assert wrong == []
    assert outcomes["refused"] < 1800  # or nothing would be compared
    assert outcomes.total() == 2000


def test_the_fuzz_sees_a_wrong_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = files.read_image
    monkeypatch.setattr(files, "read_image", lambda *args, **keys: right(*args, **keys).flip(-1))
    assert fuzz(100, tmp_path)[1]


@pytest.mark.parametrize(
    ("name", "channels", "bits"),
    [
        ("u1x5.tif", 5, 8),
        ("u2x3-planes-big.tif", 3, 16),
        ("u1-rgb-unspecified.tif", 4, 8),
        ("u2x6-tiles.tif", 6, 16),
        ("f4x5.tif", 5, 32),
        ("i2x4-planes.tif", 4, 32),
        ("f4x1-big-be.tif", 1, 32),
    ],
)
def test_without_tifffile_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, channels: int, bits: int
) -> None:
    path = tmp_path / name
    CASES[name].write(path)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DataError, match=rf"^{path}: .*pip install 'classyseg\[tiff\]'.*\.npy, \(H, W, C\)"):
        image(path, channels, bits)


def test_what_reads_a_file_depends_on_the_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Pillow reads, it reads whether tifffile is installed or not."""
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for name in (
        "u1x1.tif",
        "u1-rgb.tif",
        "pillow-rgba.tif",
        "overviews.tif",
        "u2x1.tif",
        "i4x1.tif",
        "hand-palette-4.tif",
    ):
        CASES[name].write(tmp_path / name)
        for (channels, bits), expected in CASES[name].images.items():
            check(image(tmp_path / name, channels, bits), expected)
        if CASES[name].mask is not REFUSED:
            check(files.read_mask_values(tmp_path / name), CASES[name].mask)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("bands", [1, 5])
def test_a_tiff_with_an_orientation_is_turned_as_viewers_show_it(tmp_path: Path, orientation: int, bands: int) -> None:
    path, stored = tmp_path / "a.tif", values(bands)
    tifffile.imwrite(
        path,
        stored if bands > 1 else stored[..., 0],
        photometric="minisblack",
        metadata=None,
        extratags=[(274, "H", 1, orientation)],
        **({"planarconfig": "contig"} if bands > 1 else {}),
    )
    exif = Image.Exif()
    exif[274] = orientation
    for band in range(bands):
        Image.fromarray(stored[..., band]).save(tmp_path / "a.png", exif=exif)
        shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
        found = files.read_image(path, channels=bands, exif="rotate")[band]
        assert np.array_equal(found, shown)
    for how in ("refuse", "ignore"):
        with pytest.raises(DataError, match=f"its EXIF orientation is {orientation}"):
            files.read_image(path, channels=bands, exif=how)
    with pytest.raises(DataError, match=f"orientation {orientation}"):
        files.read_mask_values(path)


BOMBS = {
    "bands.tif": lambda path: raw_tiff(path, b"\0" * 64, t256=(16000,), t257=(11000,), t277=(4000,), t258=(8,)),
    "tiles.tif": lambda path: raw_tiff(
        path, zlib.compress(bytes(10**6)), t259=(8,), t322=(60000,), t323=(60000,), t324=(300,), t325=(20,), t273=None
    ),
    "deflate.tif": lambda path: raw_tiff(path, zlib.compress(bytes(10**8)), t259=(8,)),
    "pixels.bmp": lambda path: path.write_bytes(
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 60000, 60000, 1, 24, *(0,) * 6)
    ),
    "runs.bmp": lambda path: path.write_bytes(
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 1078, 40, 13000, 13000, 1, 8, 1, *(0,) * 5) + bytes(1100)
    ),
    "screen.gif": lambda path: path.write_bytes(
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(99)
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_header_that_promises_too_much_costs_no_memory(tmp_path: Path, name: str) -> None:
    BOMBS[name](tmp_path / name)
    with memory_within(200_000), pytest.raises(DataError, match=f"^{tmp_path / name}: "):
        files.read_image(tmp_path / name)
    with memory_within(200_000), pytest.raises(DataError, match=f"^{tmp_path / name}: "):
        files.read_mask_values(tmp_path / name)


def test_a_foreign_file_is_named_by_what_it_is(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", "JPEG2000")
    with pytest.raises(DataError, match=r"a.png.*WEBP.*JPEG 2000"):
        files.read_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(DataError, match=r"b.png: .*Git LFS"):
        files.read_image(tmp_path / "b.png")
    np.save(tmp_path / "c.npy", np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match=r"c.npy: .*an array of numpy"):
        files.read_mask_values(tmp_path / "c.npy")


def test_a_png_whose_pixels_were_damaged_is_refused(tmp_path: Path) -> None:
    """Pillow reads one whose checksum is wrong."""
    path = tmp_path / "a.png"
    Image.fromarray(values(1)[..., 0]).save(path, compress_level=0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a.png.*IDAT.*checksum"):
        files.read_mask_values(path)
