"""Windows of TIFF and `.npy` are the pixels that a full read by tifffile or numpy gives, whatever the layout."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from memory import memory_within
from PIL import Image

from classyseg.config import DataError
from classyseg.datasets.files.images import read_image
from classyseg.datasets.files.rasters import Window, read_image_window, read_mask_window, reads_windows

HEIGHT, WIDTH = 61, 77
WINDOWS = (Window(0, 0, HEIGHT, WIDTH), Window(5, 9, 20, 40), Window(60, 76, 1, 1), Window(13, 30, 48, 47))
LAYOUTS: tuple[dict[str, Any], ...] = ({}, {"rowsperstrip": 7}, {"tile": (16, 32)})


def values(bands: int, kind: str) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 200, (HEIGHT, WIDTH, bands)).astype(kind)


def write(path: Path, array: np.ndarray, *, planar: bool = False, **options: Any) -> Path:
    bands = array.shape[2]
    stored = array[..., 0] if bands == 1 else np.moveaxis(array, -1, 0) if planar else array
    if bands > 1:
        options |= {"planarconfig": "separate" if planar else "contig", "photometric": "minisblack"}
        options["extrasamples"] = ["unspecified"] * (bands - 1)
    tifffile.imwrite(path, stored, metadata=None, **options)
    return path


def window_of(path: Path, window: Window, array: np.ndarray) -> np.ndarray:
    bits = {"u1": 8, "u2": 16}.get(array.dtype.str[1:], 32)
    image, missing = read_image_window(path, window, channels=array.shape[2], bits=bits)  # type: ignore[arg-type]
    assert missing is None
    return image.numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize("planar", [False, True], ids=["pixels", "planes"])
def test_a_window_of_a_tiff_is_that_part_of_a_full_read(tmp_path: Path, kind: str, planar: bool) -> None:
    array, number = values(3 if planar else 2, kind), 0
    for compression, predictor in ((None, False), ("deflate", True), ("lzw", False), ("zstd", False), ("lzma", True)):
        for layout in LAYOUTS:
            for order, big in (("<", True), (">", False)):
                number += 1
                path = write(
                    tmp_path / f"{number}.tif",
                    array,
                    planar=planar,
                    compression=compression,
                    predictor=predictor or None,
                    byteorder=order,
                    bigtiff=big,
                    **layout,
                )
                whole = tifffile.imread(path)
                whole = np.moveaxis(whole, 0, -1) if planar else whole
                for window in WINDOWS:
                    found = window_of(path, window, array)
                    assert np.array_equal(found, whole[window.slices]), (compression, layout, order, window)


def test_palettes_grey_and_jpeg_are_read_in_windows_as_they_are_whole(tmp_path: Path) -> None:
    grey, rgb = values(1, "u1")[..., 0], values(3, "u1")
    table = np.random.default_rng(0).integers(0, 1 << 16, (3, 256), np.uint16)
    options = {"tile": (32, 16), "metadata": None}
    tifffile.imwrite(tmp_path / "palette.tif", grey, photometric="palette", colormap=table, **options)
    tifffile.imwrite(tmp_path / "white.tif", grey, photometric="miniswhite", **options)
    tifffile.imwrite(tmp_path / "alpha.tif", np.dstack([rgb, grey]), photometric="rgb", extrasamples=[2], **options)
    for name in ("palette", "white", "alpha"):
        path = tmp_path / f"{name}.tif"
        for channels in (1, 3):
            whole = read_image(path, channels=channels).numpy()
            for window in WINDOWS:
                found, _ = read_image_window(path, window, channels=channels, bits=8)
                assert np.array_equal(found.numpy(), whole[:, *window.slices])
    smooth = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.uint8)
    jpeg = tmp_path / "jpeg.tif"
    tifffile.imwrite(jpeg, np.dstack([smooth] * 3), photometric="rgb", compression="jpeg", **options)
    expected = tifffile.imread(jpeg)
    for window in WINDOWS:
        found, _ = read_image_window(jpeg, window, channels=3, bits=8)
        assert np.array_equal(found.numpy().transpose(1, 2, 0), expected[window.slices])


@pytest.mark.parametrize("kind", ["u1", "i2", "u4"])
def test_masks_keep_their_numbers_in_windows(tmp_path: Path, kind: str) -> None:
    labels = values(1, kind)
    path = write(tmp_path / "a.tif", labels, compression="deflate", rowsperstrip=10)
    for window in WINDOWS:
        assert np.array_equal(read_mask_window(path, window), labels[..., 0][window.slices])


def test_arrays_are_read_in_windows(tmp_path: Path) -> None:
    array = values(4, "u2")
    for i, stored in enumerate((array, np.asfortranarray(array), array.astype(">u2"))):
        path = tmp_path / f"{i}.npy"
        np.save(path, stored)
        for window in WINDOWS:
            assert np.array_equal(window_of(path, window, array), array[window.slices])


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    path, array = tmp_path / "a.tif", values(1, "u1")
    for shift in range(3):
        write(path, array + np.uint8(shift), tile=(32, 32))
        os.utime(path, ns=(shift, shift))
        assert np.array_equal(window_of(path, WINDOWS[1], array), (array + shift)[WINDOWS[1].slices])


def test_a_huge_image_takes_the_memory_of_a_window(tmp_path: Path) -> None:
    """More pixels than any image that is read whole: a tile that is stored once stands for all."""
    path, side = tmp_path / "a.tif", 1 << 14
    tile = np.full((1024, 1024), 9, np.uint8)
    count = (side // 1024) ** 2
    tifffile.imwrite(path, (tile for _ in range(count)), shape=(side, side), dtype=np.uint8, tile=(1024, 1024),
                     compression="deflate", metadata=None)  # fmt: skip
    read_image_window(path, Window(0, 0, 10, 10), channels=1, bits=8)
    with memory_within(110_000):
        for top in range(0, side - 512, 2000):
            image, _ = read_image_window(path, Window(top, 5000, 512, 2000), channels=1, bits=8)
            assert image.shape == (1, 512, 2000)
            assert image.eq(9).all()
    with pytest.raises(DataError, match="accepted are up to"):
        read_image(path)


def test_other_formats_are_told_apart(tmp_path: Path) -> None:
    Image.fromarray(values(1, "u1")[..., 0]).save(tmp_path / "a.png")
    Image.fromarray(values(1, "u1")[..., 0] > 99).save(tmp_path / "fax.tif", compression="group4")
    assert not reads_windows(tmp_path / "a.png")
    assert not reads_windows(tmp_path / "fax.tif")
    (tmp_path / "b.tif").write_bytes(b"GIF")
    with pytest.raises(DataError, match=r"b.tif"):
        reads_windows(tmp_path / "b.tif")


# -- faults


def test_a_window_beyond_the_image_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", values(1, "u1"))
    for window in (Window(0, 0, HEIGHT + 1, 3), Window(-1, 0, 3, 3), Window(0, 70, 3, 8), Window(0, 0, 0, 3)):
        with pytest.raises(ValueError, match=r"a.tif is of 61 x 77"):
            read_image_window(path, window, channels=1, bits=8)


def test_a_file_that_is_cut_off_is_named_before_a_pixel_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", values(1, "u1"), tile=(16, 16), compression="deflate")
    with tifffile.TiffFile(path) as file:
        last = max(file.pages[0].dataoffsets)
    path.write_bytes(path.read_bytes()[: last + 3])
    with pytest.raises(DataError, match=r"a.tif.*cut off"):
        read_image_window(path, WINDOWS[1], channels=1, bits=8)


def test_a_tile_that_is_too_large_to_be_decoded_is_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    """A header that promises one compressed strip of 20 gigabytes."""
    path = write(tmp_path / "a.tif", values(1, "u1"), compression="deflate")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            entry = file.pages[0].tags[tag]
            content[entry.offset : entry.offset + 12] = struct.pack("<HHII", entry.code, 4, 1, 140_000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.tif.*at once.*gdal_translate -co TILED=YES"):
        read_image_window(path, WINDOWS[1], channels=1, bits=8)


def test_a_turned_image_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", values(1, "u1"), extratags=[(274, 3, 1, 6, True)])
    with pytest.raises(DataError, match=r"a.tif.*orientation is 6"):
        read_image_window(path, WINDOWS[1], channels=1, bits=8)
