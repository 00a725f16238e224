"""Reads BMP as its header says: Pillow reads palettes of black and white as one bit a pixel, and grey ones as 8 bits.

Source: Microsoft, "Bitmap Storage" (BITMAPINFOHEADER to BITMAPV5HEADER), and OS/2's BITMAPCOREHEADER.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from classyseg.datasets.files.headers import Colors, Header, HeaderError, check_size, read_exactly

HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
OS2_V2 = 64
RAW, RLE8, RLE4, BITFIELDS, ALPHA_BITFIELDS = 0, 1, 2, 3, 6
COMPRESSIONS = {1: "run lengths", 2: "run lengths", 3: "bit fields", 4: "JPEG", 5: "PNG", 6: "bit fields"}
PALETTE_BITS = (1, 4, 8)
FIVE_BITS, SIX_BITS = (0x7C00, 0x3E0, 0x1F, 0), (0xF800, 0x7E0, 0x1F, 0)
FIELDS = {
    16: (FIVE_BITS, SIX_BITS),
    32: (
        (0xFF0000, 0xFF00, 0xFF, 0),
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF000000, 0xFF0000, 0xFF00, 0),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
        (0xFF000000, 0xFF00, 0xFF, 0),
        (0xFF000000, 0xFF00, 0xFF, 0xFF0000),
    ),
}
"""The bits of red, green, blue and alpha that writers use, and that other readers know."""


@dataclass(frozen=True)
class Bmp:
    """A parsed header: where the pixels are, and how. `fields` are the bits of red, green, blue and alpha."""

    header: Header
    offset: int
    bits: int
    compression: int
    top_down: bool
    fields: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return (self.header.width * self.bits + 31) // 32 * 4


def bmp_header(file: BinaryIO) -> Bmp:
    """Raises: `HeaderError` for what is no whole BMP, and for kinds of it that are not read."""
    file.seek(10)
    offset, size = struct.unpack("<II", read_exactly(file, 8))
    if size not in HEADER_SIZES:
        raise HeaderError(f"a BMP with a header of {size} bytes; accepted are {', '.join(map(str, HEADER_SIZES))}")
    rest = read_exactly(file, size - 4)
    if size == 12:
        width, height, planes, bits = struct.unpack("<HHHH", rest)
        compression = colors_used = 0
    else:
        width, height, planes, bits, compression = struct.unpack("<iiHHI", rest[:16])
        (colors_used,) = struct.unpack("<I", rest[28:32])
    check_size(width, abs(height), 4)
    if planes != 1:
        raise HeaderError(f"a BMP of {planes} planes; accepted is 1")
    if not _is_known(size, bits, compression) or (height < 0 and compression in (RLE8, RLE4)):
        how = COMPRESSIONS.get(compression, f"compression {compression}") if compression else "no compression"
        raise HeaderError(
            f"a BMP of {bits} bits with {how}, which is not read; write it as PNG, or as a BMP without compression"
        )
    if bits <= 8 and colors_used > 1 << bits:
        raise HeaderError(f"a BMP with a palette of {colors_used} colours for {bits} bits")
    fields = _bit_fields(file, rest, size, bits, compression) if bits > 8 else ()
    palette = None
    if bits <= 8:
        palette = _palette(file, offset, 14 + size, 3 if size == 12 else 4, colors_used or 1 << bits)
    if offset < file.tell() or offset >= file.seek(0, os.SEEK_END):
        raise HeaderError(f"a BMP whose pixels begin at byte {offset}, in its header or behind its end")
    colors: Colors = "palette" if bits <= 8 else "RGB"
    bands = 1 if bits <= 8 else 4 if fields[3] else 3
    header = Header(
        "BMP",
        width,
        abs(height),
        colors,
        bands,
        bits if bits <= 8 else 8,
        extra=("alpha",) if bands == 4 else (),
        palette=palette,
    )
    return Bmp(header, offset, bits, compression, height < 0, fields)


def _is_known(size: int, bits: int, compression: int) -> bool:
    if compression == RAW:
        return bits in (*PALETTE_BITS, 16, 24, 32)
    if compression in (RLE8, RLE4):
        return bits == {RLE8: 8, RLE4: 4}[compression]
    return compression in (BITFIELDS, ALPHA_BITFIELDS) and bits in (16, 32) and size != OS2_V2


def _bit_fields(file: BinaryIO, rest: bytes, size: int, bits: int, compression: int) -> tuple[int, ...]:
    """The bits of a pixel that are red, green, blue and alpha. Raises: `HeaderError` for unusual ones."""
    if compression == RAW:
        return FIVE_BITS if bits == 16 else (0xFF0000, 0xFF00, 0xFF, 0)
    if size >= 52:
        fields = struct.unpack("<III", rest[36:48]) + (struct.unpack("<I", rest[48:52]) if size >= 56 else (0,))
    else:
        count = 4 if compression == ALPHA_BITFIELDS else 3
        fields = (*struct.unpack(f"<{count}I", read_exactly(file, 4 * count)), 0)[:4]
    if fields == (0, 0, 0, 0) and bits == 32:
        return (0xFF0000, 0xFF00, 0xFF, 0xFF000000)  # without masks, writers mean these fields
    if fields not in FIELDS[bits]:
        found = ", ".join(f"{field:#x}" for field in fields)
        raise HeaderError(f"a BMP whose bit fields are {found}, which is not read; write it as PNG")
    return fields


def _palette(file: BinaryIO, offset: int, start: int, entry: int, count: int) -> npt.NDArray[Any]:
    """(n, 3) RGB."""
    file.seek(start)
    count = min(count, max(0, offset - start) // entry)
    entries = np.frombuffer(read_exactly(file, count * entry), np.uint8).reshape(-1, entry)
    return entries[:, 2::-1]


def bmp_samples(file: BinaryIO, bmp: Bmp) -> npt.NDArray[Any]:
    """The samples (H, W, bands): indices into the palette, RGB or RGBA. Raises: `HeaderError` for a cut-off file."""
    samples = _samples(file, bmp)
    palette = bmp.header.palette
    if palette is not None and int(samples.max()) >= len(palette):
        raise HeaderError(f"its pixels take colour {int(samples.max())} of a palette of {len(palette)}")
    return samples


def _samples(file: BinaryIO, bmp: Bmp) -> npt.NDArray[Any]:
    header = bmp.header
    file.seek(bmp.offset)
    if bmp.compression in (RLE8, RLE4):
        return _run_lengths(file, bmp)[::-1, :, None]
    needed = bmp.row_bytes * header.height
    last_row = bmp.row_bytes - (header.width * bmp.bits + 7) // 8  # some writers leave out the padding of the last row
    data = file.read(needed)
    if len(data) < needed - last_row:
        raise HeaderError("the file is cut off, or truncated")
    rows = np.frombuffer(data.ljust(needed, b"\0"), np.uint8).reshape(header.height, bmp.row_bytes)
    if not bmp.top_down:
        rows = rows[::-1]
    if bmp.bits <= 8:
        return _unpacked(rows, bmp.bits)[:, : header.width, None]
    if bmp.bits == 24:
        return rows[:, : 3 * header.width].reshape(header.height, header.width, 3)[..., ::-1]
    pixels = np.ascontiguousarray(rows).view("<u2" if bmp.bits == 16 else "<u4")[:, : header.width]
    samples = np.empty((header.height, header.width, header.bands), np.uint8)
    for i, field in enumerate(bmp.fields[: header.bands]):
        lowest = field & -field
        values, largest = (pixels & field) // lowest, field // lowest
        samples[..., i] = values if largest == 255 else values.astype(np.uint32) * 255 // largest
    return samples


def _unpacked(rows: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    """Bytes of several pixels each, the first one in the highest bits, as one byte for each pixel."""
    if bits == 8:
        return rows
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return (rows[..., None] >> shifts & (1 << bits) - 1).reshape(len(rows), -1)


def _run_lengths(file: BinaryIO, bmp: Bmp) -> npt.NDArray[Any]:
    """The indices (H, W), rows from below. Raises: `HeaderError` for runs that leave pixels out, or do not fit."""
    width, height, packed = bmp.header.width, bmp.header.height, bmp.bits == 4
    data, found = file.read(), np.zeros((height, width), np.uint8)
    x = y = place = filled = 0
    while filled < width * height:
        if place + 2 > len(data):
            raise HeaderError("the file is cut off, or truncated")
        count, value = data[place], data[place + 1]
        place += 2
        if count:
            run = [value >> 4, value & 15] if packed else [value]
            values = np.resize(np.array(run, np.uint8), count)
        elif value == 0:
            x, y = 0, y + 1
            continue
        elif value in (1, 2):
            break
        else:
            count, size = value, (value + 1) // 2 if packed else value
            values = np.frombuffer(data[place : place + size], np.uint8)
            values = (_unpacked(values[None], 4)[0] if packed else values)[:count]
            place += size + size % 2
        if y >= height or x + count > width or len(values) < count:
            raise HeaderError("a BMP whose runs do not fit its size")
        found[y, x : x + count] = values
        x, filled = x + count, filled + count
    if filled < width * height:
        raise HeaderError("a BMP whose runs leave pixels out; write it without compression")
    return found
