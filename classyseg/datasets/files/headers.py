"""Reads the header of an image file: kind of colours, bands, bits, numbers, images. No pixel is read.

Pillow's mode tells what it makes of a file, not what is in it: 16 bits become 8, a fourth band vanishes, a palette of
black and white becomes bits. So the header decides how a file is read, and Pillow only decodes.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Colors = Literal["grey", "grey with 0 as white", "palette", "RGB", "CMYK", "YCbCr", "CIELab", "unknown colours"]
Extra = Literal["alpha", "premultiplied alpha", "unnamed"]
"""What the bands after the colours may be."""

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP")
"""The formats that are read, whatever the file's name. Pillow knows more, such as EPS (by Ghostscript), and JPEG
2000, which may change labels."""
NUM_COLORS = {"RGB": 3, "CMYK": 4, "YCbCr": 3, "CIELab": 3}
"""How many bands are colours; one of the others."""
NUMBERS = {"u": "", "i": " with signs", "f": " in floating point", "c": " of complex numbers"}
MAX_BYTES_A_PIXEL = 8
"""The bytes of the largest image: Pillow's limit of pixels, in RGBA of 16 bits. More bands mean fewer pixels."""
PIECE = 1 << 20

SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"BM", "BMP"),
)
FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x93NUMPY", "an array of numpy: images of it end in .npy, masks of it are not read"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIF"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftyp", "a video or another MPEG-4 file"),
    *((0, b"P%d" % i, "a PNM file (PBM, PGM, PPM or PAM)") for i in range(1, 8)),
    (0, b"Pf", "a PFM file"),
    (0, b"PF", "a PFM file"),
    (0, b"%!PS", "PostScript"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop's PSD"),
    (0, b"DDS ", "DDS"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"CDF", "NetCDF"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5"),
    (0, b"MATLAB ", "a MATLAB file"),
    (128, b"DICM", "DICOM"),
    (0, b"qoif", "QOI"),
    (0, b"\0\0\x01\0", "a Windows icon"),
    (0, b"BA", "an OS/2 array of bitmaps"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself with `git lfs pull`"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
)
"""What else files with an image's name may hold; for messages only."""


class HeaderError(Exception):
    """What is wrong with a file. The caller adds the path."""


@dataclass(frozen=True)
class Header:
    """What is stored in an image file.

    `bands` are all samples of a pixel, `extra` names those after the colours; a palette is one band. `numbers` is
    numpy's letter of a type, of `bits` bits. `palette` is (n, 3), uint8. `turned` is the orientation, where the format
    has one of its own. `lossy` names a compression that changes labels. `images` is 2 or more where the file holds
    several.
    """

    format: str
    width: int
    height: int
    colors: Colors
    bands: int
    bits: int = 8
    numbers: str = "u"
    extra: tuple[Extra, ...] = ()
    palette: npt.NDArray[Any] | None = None
    lossy: str = ""
    images: int = 1
    turned: int = 1

    def __str__(self) -> str:
        more: list[str] = [name for name in self.extra if name != "unnamed"]
        unnamed = self.extra.count("unnamed")
        text: str = self.colors
        if self.colors == "grey" and self.bands > 1 and not more:
            text = f"{self.bands} bands"
        elif unnamed:
            more.append(f"{unnamed} band{'s' if unnamed > 1 else ''} that it does not name")
        if self.colors == "palette":
            text = f"indices into a palette, {self.bits} bits"
            return " and ".join([f"a {self.format} of {text}", *more])
        return f"{'an' if self.format[0] in 'AEIO' else 'a'} {self.format} of {' and '.join([text, *more])}, " + (
            f"{self.bits} bit{'s' if self.bits > 1 else ''} a channel{NUMBERS.get(self.numbers, '')}"
        )


class TooLargeHeaderError(HeaderError):
    """The image is larger than any that is read as a whole."""


def known_format(start: bytes) -> str:
    """One of `FORMATS`, by the first 160 bytes of a file. Raises: `HeaderError` that names what else it is."""
    for place, signature, name in SIGNATURES:
        if start.startswith(signature, place) and (name != "WEBP" or start.startswith(b"RIFF")):
            return name
    found = next((name for place, text, name in FOREIGN if start.lstrip(b"\xef\xbb\xbf").startswith(text, place)), "")
    raise HeaderError(f"no {', '.join(FORMATS)}{f', but {found}' if found else ''}")


def check_size(width: int, height: int, bands: int = 1, bits: int = 8) -> None:
    """Raises: `HeaderError` for an image without pixels, and for one that is too large."""
    if width <= 0 or height <= 0:
        raise HeaderError(f"its header says {width} x {height} pixels")
    if Image.MAX_IMAGE_PIXELS is None:
        return
    limit = 2 * Image.MAX_IMAGE_PIXELS
    if width * height > limit or width * height * bands * max(bits, 8) // 8 > limit * MAX_BYTES_A_PIXEL:
        raise TooLargeHeaderError(
            f"its header says {width} x {height}, {width * height} pixels, of {bands} x {bits} bits; accepted are up "
            f"to {limit} pixels and {limit * MAX_BYTES_A_PIXEL} bytes"
        )


def size_of(file: BinaryIO) -> int:
    """How many bytes a file has."""
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(place)
    return size


def check_file_size(file: BinaryIO) -> None:
    """Raises: `HeaderError` for a file that is larger than the largest image would be without compression."""
    size = size_of(file)
    if Image.MAX_IMAGE_PIXELS is not None and size > 2 * Image.MAX_IMAGE_PIXELS * MAX_BYTES_A_PIXEL:
        raise TooLargeHeaderError("the file is larger than any image that is read")


def read_exactly(file: BinaryIO, count: int) -> bytes:
    """Raises: `HeaderError` for a file that ends before."""
    data = file.read(count)
    if len(data) < count:
        raise HeaderError("the file is cut off, or truncated")
    return data


def png_header(file: BinaryIO) -> Header:
    """The header of a PNG. Its chunks are compared with their checksums: Pillow does not do that."""
    file.seek(8)
    length, kind = struct.unpack(">I4s", read_exactly(file, 8))
    if kind != b"IHDR" or length != 13:
        raise HeaderError("a PNG that does not begin with its header")
    header = read_exactly(file, 13)
    width, height, bits, color, *_ = struct.unpack(">IIBBBBB", header)
    check_size(width, height, 4, bits)
    kinds: dict[int, tuple[Colors, int, tuple[int, ...]]] = {
        0: ("grey", 1, (1, 2, 4, 8, 16)),
        2: ("RGB", 3, (8, 16)),
        3: ("palette", 1, (1, 2, 4, 8)),
        4: ("grey", 2, (8, 16)),
        6: ("RGB", 4, (8, 16)),
    }
    if color not in kinds or bits not in kinds[color][2]:
        raise HeaderError(f"a PNG of colour type {color} and {bits} bits, which does not exist")
    colors, bands, _ = kinds[color]
    if zlib.crc32(b"IHDR" + header) != struct.unpack(">I", read_exactly(file, 4))[0]:
        raise HeaderError("its header does not have its checksum")
    images, palette = 1, None
    for chunk, body in _checked_chunks(file):
        if chunk == b"acTL" and len(body) == 8:
            images = max(1, struct.unpack(">I", body[:4])[0])
        elif chunk == b"PLTE":
            palette = colors_of(body)
    if colors == "palette" and palette is None:
        raise HeaderError("a PNG whose palette is missing")
    extra: tuple[Extra, ...] = ("alpha",) if color in (4, 6) else ()
    return Header("PNG", width, height, colors, bands, bits, extra=extra, palette=palette, images=images)


def _checked_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The names of the chunks after the header up to the last, and the first bytes of each, 1 MiB at most.

    Chunks that matter for the pixels are compared with their checksums.
    """
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind in (b"IDAT", b"PLTE", b"acTL"):
            piece = first = read_exactly(file, min(length, PIECE))
            found = zlib.crc32(piece, zlib.crc32(kind))
            while (length := length - len(piece)) > 0:
                piece = read_exactly(file, min(length, PIECE))
                found = zlib.crc32(piece, found)
            if found != struct.unpack(">I", read_exactly(file, 4))[0]:
                raise HeaderError(f"its chunk {kind.decode()} does not have its checksum: the file is damaged")
        else:
            file.seek(length + 4, 1)
            first = b""
        yield kind, first
        if kind == b"IEND":
            return


def colors_of(table: bytes) -> npt.NDArray[Any]:
    """A palette (n, 3) from bytes of red, green, blue."""
    return np.frombuffer(table[: len(table) // 3 * 3], np.uint8).reshape(-1, 3)


def gif_header(file: BinaryIO) -> Header:
    """The header of a GIF; its images are counted."""
    file.seek(6)
    width, height, flags, _, _ = struct.unpack("<HHBBB", read_exactly(file, 7))
    check_size(width, height)
    palette = read_exactly(file, 3 << (flags & 7) + 1) if flags & 0x80 else b""
    images = 0
    while (kind := file.read(1)) and kind != b";":
        if kind == b"!":
            read_exactly(file, 1)
        elif kind == b",":
            images += 1
            left, top, columns, rows, flags = struct.unpack("<HHHHB", read_exactly(file, 9))
            if images == 1 and (left, top, columns, rows) != (0, 0, width, height):
                raise HeaderError(
                    f"a GIF whose image of {columns} x {rows} pixels does not fill its {width} x {height}"
                )
            table = read_exactly(file, 3 << (flags & 7) + 1) if flags & 0x80 else b""
            palette = (table or palette) if images == 1 else palette
            read_exactly(file, 1)
        else:
            break  # the rest is not GIF: viewers stop here, too
        while size := read_exactly(file, 1)[0]:
            read_exactly(file, size)
    if not images or not palette:
        raise HeaderError(f"a GIF without {'an image' if not images else 'a palette'}")
    return Header("GIF", width, height, "palette", 1, palette=colors_of(palette), images=images)


def webp_header(file: BinaryIO) -> Header:
    """The header of a WebP. It is lossless if all of its parts are."""
    file.seek(12)
    chunks, alpha, size = [], False, (1, 1)
    while len(start := file.read(8)) == 8:
        kind, length = struct.unpack("<4sI", start)
        body = file.read(min(length, 10))
        chunks.append(kind)
        if kind == b"VP8X" and len(body) == 10:
            alpha = bool(body[0] & 0x10)
            size = (int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1)
        elif kind == b"VP8L" and len(body) >= 5:
            numbers = int.from_bytes(body[1:5], "little")
            alpha = alpha or bool(numbers >> 28 & 1)
            size = size if size != (1, 1) else ((numbers & 0x3FFF) + 1, (numbers >> 14 & 0x3FFF) + 1)
        elif kind == b"VP8 " and len(body) == 10 and size == (1, 1):
            size = struct.unpack_from("<HH", body, 6)
            size = size[0] & 0x3FFF, size[1] & 0x3FFF
        file.seek(length + length % 2 - len(body), 1)
    check_size(*size)
    lossy = "WebP" if b"VP8L" not in chunks or b"VP8 " in chunks else ""
    images = max(1, chunks.count(b"ANMF"))
    return Header(
        "WEBP", *size, "RGB", 4 if alpha else 3, extra=("alpha",) if alpha else (), lossy=lossy, images=images
    )


def jpeg_header(file: BinaryIO) -> Header:
    """The first frame header of a JPEG. Raises: `HeaderError` for kinds that no reader here takes."""
    file.seek(2)
    while True:
        marker = read_exactly(file, 2)
        while marker == b"\xff\xff":
            marker = b"\xff" + read_exactly(file, 1)
        kind = marker[1]
        if marker[0] != 0xFF or kind in (0xD9, 0xDA):
            raise HeaderError("a JPEG without a frame header")
        if kind in (0x01, *range(0xD0, 0xD9)):
            continue  # markers without a body
        length = int.from_bytes(read_exactly(file, 2), "big")
        if kind in range(0xC0, 0xD0) and kind not in (0xC4, 0xC8, 0xCC):
            break
        file.seek(max(length, 2) - 2, 1)
    bits, height, width, bands = struct.unpack(">BHHB", read_exactly(file, 6))
    if kind in (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF):
        raise HeaderError("a lossless or hierarchical JPEG, which Pillow does not read; write it as PNG")
    if bits != 8:
        raise HeaderError(f"a JPEG of {bits} bits a channel; accepted are JPEG of 8 bits, or write it as .npy")
    names: dict[int, Colors] = {1: "grey", 3: "RGB", 4: "CMYK"}
    if bands not in names:
        raise HeaderError(f"a JPEG of {bands} channels; accepted are 1, 3 and 4")
    check_size(width, height, bands)
    return Header("JPEG", width, height, names[bands], bands, lossy="JPEG")
