"""Windows of an image file of any size: of TIFF and `.npy`, only what a window touches is read and decoded."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from classyseg.datasets.files.arrays import image_tensor
from classyseg.datasets.files.float_images import as_float32
from classyseg.datasets.files.headers import HeaderError, known_format
from classyseg.datasets.files.images import (
    START,
    Bits,
    Exif,
    TurnedError,
    checked_array,
    checked_bits,
    converted,
    header_of,
    naming,
    numbers_of,
    orientation,
)
from classyseg.datasets.files.mask_rules import (
    check_mask_of_colors,
    check_mask_of_values,
    color_numbers,
    mask_values,
)
from classyseg.datasets.files.tiff import CCITT, check_stream, page_of, tifffile_for
from classyseg.datasets.files.tiff_header import NO_COMPRESSION, tiff_header
from classyseg.errors import DataError

Array = npt.NDArray[Any]
NoData = Literal["file"] | float | None
"""The number that marks pixels without data: a number, or the one that each `file` names in GDAL's tag."""
MAX_PIECE = 1 << 28
"""The most bytes of a strip or tile that is decoded at once."""
KEPT_BYTES = 64_000_000
"""Decoded strips and tiles that a process keeps: windows that follow each other share some."""
KEPT_FILES = 64
NODATA_TAG = 42113
SWAPPING = range(5, 9)
"""Orientations that swap width and height."""
CONVERT = "gdal_translate -co TILED=YES -co COMPRESS=DEFLATE -co BIGTIFF=IF_SAFER IN OUT.tif"


class Window(NamedTuple):
    """A rectangle of whole pixels of an image."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


class Raster(ABC):
    """An image file that is read in windows. It keeps no file open, and may be read by several threads.

    `size` is (height, width), `nodata` the number of pixels without data that the file names.
    """

    def __init__(self, path: Path, size: tuple[int, int], nodata: float | None = None) -> None:
        self.path, self.size, self.nodata = path, size, nodata

    def check(self, window: Window) -> None:
        """Raises: `ValueError` for a window that is empty or reaches beyond the image."""
        ends = window.top + window.height, window.left + window.width
        if min(window.top, window.left) < 0 or min(window[2:]) < 1 or ends[0] > self.size[0] or ends[1] > self.size[1]:
            raise ValueError(f"found {window}; {self.path} is of {self.size[0]} x {self.size[1]} (height, width)")

    @abstractmethod
    def image(self, window: Window, channels: int, bits: Bits | None, nodata: NoData) -> tuple[Array, Array | None]:
        """The pixels (h, w, channels) as `read_image` gives them, and which of them (h, w) have no data."""


class ArrayRaster(Raster):
    """A `.npy` file."""

    def __init__(self, path: Path) -> None:
        with naming(path):
            shape = np.lib.format.open_memmap(path, mode="r").shape
        if len(shape) not in (2, 3):
            raise DataError(f"an array of {shape}; accepted: (H, W) and (H, W, C)", file=path)
        super().__init__(path, (shape[0], shape[1]))

    def image(self, window: Window, channels: int, bits: Bits | None, nodata: NoData) -> tuple[Array, Array | None]:
        self.check(window)
        array, bits = checked_array(self.path, channels, bits)  # mapped anew, so that no page stays in memory
        pixels = np.array(array[window.slices])
        pixels, missing = _without_data(self, pixels, nodata, bits)
        return numbers_of(self.path, pixels, bits), missing


class TiffRaster(Raster):
    """A TIFF. What was decoded last is kept, for the next window."""

    def __init__(self, path: Path) -> None:
        with naming(path), path.open("rb") as file:
            self.tiff = tiff = tiff_header(file, whole=False)
            self.header = header = tiff.header
            self.is_plain = tiff.compression == NO_COMPRESSION and header.bits % 8 == 0 and not tiff.reversed_bits
            self.is_plain = self.is_plain and not tiff.tiled
            if tiff.pieces.longest > MAX_PIECE and not self.is_plain:
                raise HeaderError(
                    f"a TIFF whose {'tiles' if tiff.tiled else 'strips'} have {tiff.pieces.longest:,} bytes each, and "
                    f"each is decoded at once; accepted are up to {MAX_PIECE:,}. Write it in tiles: {CONVERT}"
                )
            file.seek(0)
            with tifffile_for(header).TiffFile(file) as opened:
                page, self.kind = page_of(opened, tiff)
                self.decode, self.tables = page.decode, page.jpegtables
                tag = page.tags.get(NODATA_TAG)
                nodata = None if tag is None else _number(str(tag.value))
        self.across = math.ceil(header.width / tiff.pieces.columns)
        self.down = math.ceil(header.height / tiff.pieces.rows)
        super().__init__(path, (header.height, header.width), nodata)

    def image(self, window: Window, channels: int, bits: Bits | None, nodata: NoData) -> tuple[Array, Array | None]:
        bits = checked_bits(self.path, self.header, channels, bits)
        self._check_upright()
        samples, missing = _without_data(self, self.samples(window), nodata, bits)
        with naming(self.path):
            if self.header.colors == "grey with 0 as white":
                samples = ((1 << self.header.bits) - 1) - samples
            if bits == 32:
                return as_float32(self.path, samples), missing
            return converted(samples, self.header, channels), missing

    def labels(self, window: Window) -> Array:
        """The values (h, w) of a mask, as `read_mask_values` gives them."""
        check_mask_of_values(self.path, self.header, self.header.turned)
        return mask_values(self.path, self.samples(window)[..., 0])

    def colors(self, window: Window) -> npt.NDArray[np.int32]:
        """The colours (h, w) of a mask, as `read_colors` gives them."""
        check_mask_of_colors(self.path, self.header, self.header.turned)
        with naming(self.path):
            return color_numbers(converted(self.samples(window), self.header, 3))

    def _check_upright(self) -> None:
        if self.header.turned != 1:
            raise TurnedError(
                f"its orientation is {self.header.turned}: viewers turn it; in windows, only upright images are read. "
                f"Write it upright: {CONVERT}",
                file=self.path,
            )

    def samples(self, window: Window) -> Array:
        """The stored samples (h, w, bands). Raises: `DataError`, naming the file, for damaged ones."""
        self.check(window)
        found = np.empty((window.height, window.width, self.header.bands), self.kind)
        planes = self.header.bands if self.tiff.planar else 1
        with naming(self.path), self.path.open("rb") as file:
            for plane in range(planes):
                bands = found[..., plane : plane + 1] if self.tiff.planar else found
                if self.is_plain:
                    self._read_rows(file, window, plane, bands)
                else:
                    self._read_pieces(file, window, plane, bands)
        return found

    def _read_rows(self, file: BinaryIO, window: Window, plane: int, target: Array) -> None:
        """Reads the samples of strips without compression: only those of the window, row by row."""
        pieces, kind = self.tiff.pieces, self.kind.newbyteorder(">" if self.tiff.swapped else "<")
        pixel = target.shape[2] * kind.itemsize
        for i in range(window.height):
            strip, row = divmod(window.top + i, pieces.rows)
            offset = int(pieces.offsets[plane * self.down + strip])
            file.seek(offset + (row * self.size[1] + window.left) * pixel)
            data = file.read(window.width * pixel)
            if len(data) < window.width * pixel:
                raise HeaderError("the file is cut off, or truncated")
            target[i] = np.frombuffer(data, kind).reshape(window.width, -1)

    def _read_pieces(self, file: BinaryIO, window: Window, plane: int, target: Array) -> None:
        """Decodes the strips or tiles that the window touches, and takes its part of each."""
        height, width = self.tiff.pieces.rows, self.tiff.pieces.columns
        bottom, right = window.top + window.height, window.left + window.width
        for row in range(window.top // height, -(-bottom // height)):
            for column in range(window.left // width, -(-right // width)):
                index = (plane * self.down + row) * self.across + column
                key = (self, index)
                piece = _kept.get(key)
                if piece is None:
                    piece = self._decoded(file, index, row, column)
                    _kept.add(key, piece)
                top, left = row * height, column * width
                first, last = max(top, window.top), min(top + height, bottom)
                start, end = max(left, window.left), min(left + width, right)
                part = piece[first - top : last - top, start - left : end - left]
                target[first - window.top : last - window.top, start - window.left : end - window.left] = part

    def _decoded(self, file: BinaryIO, index: int, row: int, column: int) -> Array:
        """A strip or tile (h, w, bands of a plane). Raises: anything for a damaged one."""
        pieces = self.tiff.pieces
        file.seek(int(pieces.offsets[index]))
        data = file.read(int(pieces.sizes[index]))
        if len(data) < pieces.sizes[index]:
            raise HeaderError("the file is cut off, or truncated")
        place = f"{'tile' if self.tiff.tiled else 'strip'} {index}"
        try:
            check_stream(data, self.tiff, int(pieces.needed[index]))
            piece, _, _ = self.decode(data, index, jpegtables=self.tables)
        except Exception as error:  # codecs raise what they like
            raise HeaderError(f"its {place} is damaged: {error}") from None
        rows = min(pieces.rows, self.size[0] - row * pieces.rows)
        columns = min(pieces.columns, self.size[1] - column * pieces.columns)
        if piece is None or piece.dtype not in (self.kind, np.bool_):
            raise HeaderError(f"its {place} is of another type than its header says")
        whole = self.tiff.tiled and not self.header.lossy
        needed = (pieces.rows, pieces.columns) if whole else (rows, columns)
        if piece.shape[1] < needed[0] or piece.shape[2] < needed[1]:
            raise HeaderError(f"its {place} is damaged: it has {piece.shape[1]} x {piece.shape[2]} pixels")
        decoded: Array = piece[0, :rows, :columns]
        return decoded


class _Kept:
    """The pieces that were decoded last, by their file and number, up to `KEPT_BYTES`."""

    def __init__(self) -> None:
        self._pieces: OrderedDict[tuple[TiffRaster, int], Array] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[TiffRaster, int]) -> Array | None:
        with self._lock:
            piece = self._pieces.get(key)
            if piece is not None:
                self._pieces.move_to_end(key)
            return piece

    def add(self, key: tuple[TiffRaster, int], piece: Array) -> None:
        with self._lock:
            if piece.nbytes > KEPT_BYTES or key in self._pieces:
                return
            # A view would keep what lies outside of the image, too.
            self._pieces[key] = piece if piece.base is None else piece.copy()
            self._bytes += piece.nbytes
            while self._bytes > KEPT_BYTES:
                self._bytes -= self._pieces.popitem(last=False)[1].nbytes


_kept = _Kept()
_opened: OrderedDict[tuple[str, int, int], Raster] = OrderedDict()
_opening = threading.Lock()


def reads_windows(path: Path) -> bool:
    """Whether a file is of a kind that is read in windows. Raises: `DataError` if it cannot be read."""
    if path.suffix.lower() == ".npy":
        return True
    with naming(path), path.open("rb") as file:
        if known_format(file.read(START)) != "TIFF":
            return False
        return tiff_header(file, whole=False).compression not in CCITT  # whose only check is that of the whole


def raster_of(path: Path) -> Raster:
    """The raster of a file for which `reads_windows`; those that were used last are kept, unless the file changes.

    Raises: `DataError`, naming the file.
    """
    with naming(path):
        state = path.stat()
    key = (str(path), state.st_size, state.st_mtime_ns)
    with _opening:
        found = _opened.get(key)
        if found is None:
            found = ArrayRaster(path) if path.suffix.lower() == ".npy" else TiffRaster(path)
            _opened[key] = found
            if len(_opened) > KEPT_FILES:
                _opened.popitem(last=False)
        _opened.move_to_end(key)
    return found


def size_of_image(path: Path, exif: Exif = "refuse") -> tuple[int, int]:
    """Height and width of an image as it is read, by its header. Raises: `DataError`, naming the file."""
    if reads_windows(path):
        return raster_of(path).size
    with naming(path), path.open("rb") as file:
        if known_format(file.read(START)) in ("TIFF", "BMP"):
            header, turned = header_of(path)
            width, height = header.width, header.height
        else:
            with Image.open(path) as image:  # which reads no more than it must
                width, height = image.size
                turned = orientation(image) if image.format in ("JPEG", "WEBP") else 1
    return (width, height) if exif == "rotate" and turned in SWAPPING else (height, width)


def read_image_window(
    path: Path, window: Window, *, channels: int, bits: Bits | None, nodata: NoData = None
) -> tuple[Tensor, Array | None]:
    """A window of an image, (channels, h, w) as of `read_image`, and which pixels (h, w) have no data; None: no such.

    A pixel without data holds the number `nodata` in all bands; with `bits: 32`, in any. Then it becomes the mean of
    the others of the window, band by band.
    """
    pixels, missing = raster_of(path).image(window, channels, bits, nodata)
    return image_tensor(np.ascontiguousarray(pixels)), missing


def read_mask_window(path: Path, window: Window) -> Array:
    """A window of `read_mask_values`. Raises: `DataError`, naming the file."""
    return _tiff(path).labels(window)


def read_colors_window(path: Path, window: Window) -> npt.NDArray[np.int32]:
    """A window of `read_colors`. Raises: `DataError`, naming the file."""
    return _tiff(path).colors(window)


def _tiff(path: Path) -> TiffRaster:
    raster = raster_of(path)
    if not isinstance(raster, TiffRaster):
        raise DataError("a mask in .npy, which is not read; write it as TIFF or PNG", file=path)
    return raster


def _without_data(raster: Raster, samples: Array, nodata: NoData, bits: int) -> tuple[Array, Array | None]:
    """Samples (h, w, bands), and which of their pixels have no data."""
    number = raster.nodata if nodata == "file" else nodata
    if number is None:
        return samples, None
    same: Array = np.isnan(samples) if math.isnan(number) and samples.dtype.kind == "f" else samples == number
    if bits != 32:
        return samples, np.logical_and.reduce(same, axis=2)
    missing = np.logical_or.reduce(same, axis=2)
    if missing.any():
        samples = samples.copy()
        others = samples[~missing]
        samples[missing] = others.mean(axis=0, dtype=np.float64) if len(others) else 0
    return samples, missing


def _number(text: str) -> float | None:
    """The number in GDAL's tag, a text such as `-9999`, `nan` or `0 `; None for something else."""
    try:
        return float(text.strip(" \0"))
    except ValueError:
        return None
