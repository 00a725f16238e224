"""Reads the header of a TIFF or BigTIFF, and checks that all of its pixels can be there.

If a reader guesses what a damaged header leaves out, the next reader guesses something else. So a header that does not
add up is refused. Source: Adobe, "TIFF 6.0"; the AWare Systems' description of BigTIFF.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from classyseg.datasets.files.headers import (
    NUM_COLORS,
    Colors,
    Extra,
    Header,
    HeaderError,
    check_size,
    read_exactly,
    size_of,
)

SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
FILL_ORDER, DESCRIPTION, STRIPS, ORIENTATION, BANDS, ROWS, STRIP_SIZES = 266, 270, 273, 274, 277, 278, 279
PLANES, PREDICTOR, COLOR_MAP, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES = 284, 317, 320, 322, 323, 324, 325
EXTRA, SAMPLE_FORMAT, DEPTH, FAX_OPTIONS = 338, 339, 32997, 292
WANTED = {
    *(SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, DESCRIPTION, STRIPS),
    *(ORIENTATION, BANDS, ROWS, STRIP_SIZES, PLANES, PREDICTOR, COLOR_MAP, TILE_WIDTH, TILE_HEIGHT, TILES),
    *(TILE_SIZES, EXTRA, SAMPLE_FORMAT, DEPTH, FAX_OPTIONS),
}
TYPES = {2: "s", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
REDUCED, MASK = 1, 4
"""Bits of NewSubfileType: a smaller copy of another page, and a mask of another page's transparency."""

NO_COMPRESSION = 1
JPEG = (6, 7)
LOSSLESS = {2: "CCITT", 3: "CCITT", 4: "CCITT", 5: "LZW", 8: "deflate", 32773: "PackBits", 32946: "deflate"}
LOSSLESS |= {NO_COMPRESSION: "none", 34925: "LZMA", 50000: "Zstandard", 34926: "Zstandard"}
LOSSY = {6: "JPEG", 7: "JPEG", 33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000"}
LOSSY |= {34887: "LERC", 50001: "WebP", 50002: "JPEG XL"}
PREDICTED = (5, 8, 32946, 34925, 50000, 34926)
"""Compressions that go with a predictor (differences of neighbours). With other compressions, readers do not agree."""
PHOTOMETRICS: dict[int, Colors] = {
    0: "grey with 0 as white",
    1: "grey",
    2: "RGB",
    3: "palette",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELab",
}
EXTRAS: dict[int, Extra] = {1: "premultiplied alpha", 2: "alpha"}
PIECES = (STRIPS, STRIP_SIZES, TILES, TILE_SIZES)
ALL_BITS = (1, 2, 4, 8, 10, 12, 14, 16, 32, 64, 128)
"""The bits of a sample that are read. Readers disagree about the order of the bytes in 24."""
MAX_BANDS = 4096
MAX_VALUES = 3 << 16
"""How many values a tag may have: as many as a palette of 16 bits."""
MAX_PIECES = 1 << 24
MAX_PAGES = 1000
MAX_SHARED = 2
"""Equal tiles may lie at one place. They are decoded again for each tile, so all have at most so many bytes more than
the file, in those of their pixels."""


@dataclass(frozen=True)
class Pieces:
    """The strips or tiles: the place of each, its number of bytes there, and the number without compression.

    Each is of `rows` x `columns` pixels; the last strip may have fewer rows.
    """

    offsets: npt.NDArray[Any]
    sizes: npt.NDArray[Any]
    needed: npt.NDArray[Any]
    longest: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        """Those of the largest one. Memory is taken for all of them, also where a tile is larger than the image."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Tiff:
    """The page of a file that is its image.

    `index` is its number in the file. `big` says that the file is a BigTIFF, `swapped` that the first byte of a number
    is the highest, `planar` that each band is stored separately. `fax_options` are those of CCITT's group 3. `tags` are
    those that say how to read the pixels.
    """

    header: Header
    index: int
    big: bool
    swapped: bool
    compression: int
    planar: bool
    predictor: int
    reversed_bits: bool
    tiled: bool
    photometric: int
    fax_options: int
    pieces: Pieces
    tags: frozenset[int]


def tiff_header(file: BinaryIO, *, whole: bool = True) -> Tiff:
    """The header of the one image in a file; smaller copies and masks of transparency do not count.

    An image that is not read as a `whole`, but in windows, may be of any size; its strips or tiles may not.

    Raises: `HeaderError` for a file that is damaged, or of a kind that is not read. Several images are counted.
    """
    file.seek(0)
    start = read_exactly(file, 8)
    order = "<" if start[:2] == b"II" else ">"
    big = start[2:4] in (b"+\0", b"\0+")
    if big:
        sizes, offset = start[4:], struct.unpack(f"{order}Q", read_exactly(file, 8))[0]
        if struct.unpack(f"{order}HH", sizes) != (8, 0):
            raise HeaderError("a BigTIFF whose offsets do not have 8 bytes")
    else:
        (offset,) = struct.unpack(f"{order}I", start[4:])
    pages: list[tuple[int, dict[int, Any]]] = []
    reduced: list[tuple[int, dict[int, Any]]] = []
    seen: set[int] = set()
    while offset and len(pages) < 2:
        if offset in seen or len(seen) >= MAX_PAGES:
            raise HeaderError("a TIFF whose pages do not end")
        seen.add(offset)
        tags, offset = _directory(file, offset, order, big)
        subfile = tags.get(SUBFILE, (0,))[0] | (REDUCED if tags.get(OLD_SUBFILE, (1,))[0] == 2 else 0)
        (reduced if subfile & (REDUCED | MASK) else pages).append((len(seen) - 1, tags))
    if not pages:
        pages = reduced  # the only image says that it is a copy of another one, which is not here
    if not pages:
        raise HeaderError("a TIFF without a page")
    index, tags = pages[0]
    return _page(file, tags, index, len(pages), big=big, swapped=order == ">", whole=whole)


def _directory(file: BinaryIO, offset: int, order: str, big: bool) -> tuple[dict[int, Any], int]:
    """The values of the wanted tags of a page, and where the next page is."""
    file.seek(offset)
    count = struct.unpack(f"{order}{'Q' if big else 'H'}", read_exactly(file, 8 if big else 2))[0]
    entry, inline = (20, 8) if big else (12, 4)
    if not 0 < count <= 65535:
        raise HeaderError(f"a TIFF with a page of {count} entries")
    entries = read_exactly(file, count * entry)
    (next_page,) = struct.unpack(f"{order}{'Q' if big else 'I'}", read_exactly(file, inline))
    tags: dict[int, Any] = {}
    for i in range(0, len(entries), entry):
        tag, kind = struct.unpack(f"{order}HH", entries[i : i + 4])
        if tag not in WANTED:
            continue
        if tag in tags and tag == DESCRIPTION:
            continue  # tifffile writes its own after the user's
        if tag in tags:
            raise HeaderError(f"a TIFF that holds its tag {tag} twice")
        (number,) = struct.unpack(f"{order}{'Q' if big else 'I'}", entries[i + 4 : i + entry - inline])
        tags[tag] = _values(file, tag, kind, number, entries[i + entry - inline : i + entry], order)
    return tags, next_page


def _values(file: BinaryIO, tag: int, kind: int, number: int, inline: bytes, order: str) -> Any:
    """The numbers of a tag as a tuple; as an array where there may be millions; as bytes for a text."""
    if kind not in TYPES or not number or (kind == 2) != (tag == DESCRIPTION):
        if tag == DESCRIPTION:
            return b""
        raise HeaderError(f"a TIFF whose tag {tag} has {number} values of the type {kind}")
    letter = TYPES[kind]
    if number > (MAX_PIECES if tag in PIECES else MAX_VALUES):
        raise HeaderError(f"a TIFF whose tag {tag} has {number} values")
    size = number * struct.calcsize(letter)
    if size > len(inline):
        file.seek(struct.unpack(f"{order}{'Q' if len(inline) == 8 else 'I'}", inline)[0])
        if size > size_of(file):
            raise HeaderError("the file is cut off, or truncated")
        inline = read_exactly(file, min(size, 4096) if kind == 2 else size)
    if kind == 2:
        return inline[:size]
    if tag in PIECES:
        return np.frombuffer(inline[:size], f"{order}u{struct.calcsize(letter)}").astype(np.uint64)
    return struct.unpack(f"{order}{number}{letter}", inline[:size])


def _one(tags: Mapping[int, Any], tag: int, default: int | None = None) -> int:
    values = tags.get(tag, () if default is None else (default,))
    if len(values) != 1:
        raise HeaderError(f"a TIFF whose tag {tag} has {len(values)} values where one is needed")
    return int(values[0])


def _page(
    file: BinaryIO, tags: dict[int, Any], index: int, images: int, *, big: bool, swapped: bool, whole: bool
) -> Tiff:
    one = partial(_one, tags)
    width, height, bands, compression = one(WIDTH), one(HEIGHT), one(BANDS, 1), one(COMPRESSION, 1)
    planar, predictor, fill_order = one(PLANES, 1), one(PREDICTOR, 1), one(FILL_ORDER, 1)
    turned = one(ORIENTATION, 1)
    bits, kinds = _same_of_all(tags.get(BITS, (1,)), bands), _same_of_all(tags.get(SAMPLE_FORMAT, (1,)), bands)
    if not 0 < bands <= MAX_BANDS:
        raise HeaderError(f"a TIFF of {bands} bands; accepted are up to {MAX_BANDS}")
    if bits is None or kinds is None:
        raise HeaderError(f"a TIFF whose bands differ: bits {tags.get(BITS)}, formats {tags.get(SAMPLE_FORMAT)}")
    if bits not in ALL_BITS or kinds not in (1, 2, 3, 4, 5, 6):
        raise HeaderError(f"a TIFF of {bits} bits and sample format {kinds}, which is not read")
    if planar not in (1, 2) or fill_order not in (1, 2) or predictor not in (1, 2, 3):
        raise HeaderError(
            f"a TIFF of planar configuration {planar}, fill order {fill_order} and predictor {predictor}, not read"
        )
    if compression not in LOSSLESS and compression not in LOSSY:
        raise HeaderError(f"a TIFF of compression {compression}, which is not read")
    if predictor != 1 and compression in LOSSLESS and compression not in PREDICTED:
        raise HeaderError(f"a TIFF with predictor {predictor} and the compression {LOSSLESS[compression]}")
    if predictor == 3 and kinds != 3:
        raise HeaderError("a TIFF with the predictor of floating point, whose numbers are others")
    if one(DEPTH, 1) != 1:
        raise HeaderError("a TIFF of a volume; accepted are images")
    check_size(*((width, height) if whole else (min(width, 1), min(height, 1))), bands, bits)
    colors, extra = _meaning(tags, bands, one(PHOTOMETRIC, -1))
    header = Header(
        "TIFF",
        width,
        height,
        colors,
        bands,
        bits,
        {1: "u", 2: "i", 3: "f", 4: "u"}.get(kinds, "c"),
        extra,
        palette=_color_map(tags, bits) if colors == "palette" else None,
        lossy=LOSSY.get(compression, ""),
        images=images if images > 1 else _images_of_imagej(tags.get(DESCRIPTION, b"")),
        turned=turned if turned in range(1, 9) else 1,
    )
    pieces = _pieces(file, tags, header, compression, planes=bands if planar == 2 else 1)
    return Tiff(
        header,
        index,
        big,
        swapped,
        compression,
        planar == 2,
        predictor,
        fill_order == 2,
        TILES in tags,
        one(PHOTOMETRIC),
        one(FAX_OPTIONS, 0),
        pieces,
        frozenset(tags) - {DESCRIPTION},
    )


def _same_of_all(values: tuple[int, ...], bands: int) -> int | None:
    """The value that all bands have; None if they differ, or if their number is not one or that of the bands."""
    return values[0] if len(values) in (1, bands) and len(set(values)) == 1 else None


def _meaning(tags: dict[int, Any], bands: int, photometric: int) -> tuple[Colors, tuple[Extra, ...]]:
    if photometric == -1:
        raise HeaderError("a TIFF that does not say what its numbers mean (it has no PhotometricInterpretation)")
    if photometric not in PHOTOMETRICS:
        raise HeaderError(f"a TIFF of PhotometricInterpretation {photometric}, which is not read")
    colors = PHOTOMETRICS[photometric]
    count = bands - NUM_COLORS.get(colors, 1)
    named = tags.get(EXTRA, ())
    if count < 0 or len(named) > count:
        raise HeaderError(f"a TIFF of {colors} with {bands} bands, where {len(named)} are said to be others")
    return colors, tuple(EXTRAS.get(number, "unnamed") for number in (*named, *(0,) * (count - len(named))))


def _color_map(tags: dict[int, Any], bits: int) -> Any:
    """The palette (n, 3), uint8: the upper 8 of 16 bits, unless the writer used only 8."""
    values = np.array(tags.get(COLOR_MAP, ()))
    if bits > 16 or len(values) != 3 << bits:
        raise HeaderError(
            f"a TIFF with a palette of {len(values)} numbers for {bits} bits; expected {3 << min(bits, 16)}"
        )
    return (values if values.max() < 256 else values >> 8).astype(np.uint8).reshape(3, -1).T


def _images_of_imagej(description: bytes) -> int:
    """The number of images in a stack of ImageJ, which stores large ones after the first image, without pages."""
    found = re.search(rb"^images=(\d+)", description, re.MULTILINE) if description.startswith(b"ImageJ=") else None
    return max(1, int(found[1])) if found else 1


def _pieces(file: BinaryIO, tags: dict[int, Any], header: Header, compression: int, *, planes: int) -> Pieces:
    """Raises: `HeaderError` unless every strip or tile is there, within the file, and as long as it must be."""
    samples = header.bands // planes
    tiled = TILES in tags
    if tiled:
        width, height = (tags.get(tag, (0,))[0] for tag in (TILE_WIDTH, TILE_HEIGHT))
        if not (width and height) or STRIPS in tags:
            raise HeaderError(f"a TIFF with tiles of {width} x {height} pixels, or with strips, too")
        check_size(width, height, samples, header.bits)
        across, down = math.ceil(header.width / width), math.ceil(header.height / height)
    elif TILE_WIDTH in tags or TILE_HEIGHT in tags:
        raise HeaderError("a TIFF with strips that says how large its tiles are")
    else:
        width, height = header.width, max(1, min(tags.get(ROWS, (header.height,))[0], header.height))
        across, down = 1, math.ceil(header.height / height)
    count = across * down * planes
    offsets = tags.get(TILES if tiled else STRIPS, ())
    row = (width * samples * header.bits + 7) // 8
    sizes = tags.get(TILE_SIZES if tiled else STRIP_SIZES, ())
    if len(offsets) != count or len(sizes) != count:
        what = "tiles" if tiled else "strips"
        raise HeaderError(f"a TIFF with {len(offsets)} offsets and {len(sizes)} sizes of {count} {what}")
    if not offsets.all() or not sizes.all():
        raise HeaderError("a TIFF with parts that were never written (a sparse file); write it whole")
    end = size_of(file)
    if (offsets > end).any() or (sizes > end).any() or (offsets + sizes > end).any():
        raise HeaderError("the file is cut off, or truncated: strips or tiles lie behind its end")
    if int(sizes.sum(dtype=np.uint64)) > end + MAX_SHARED * count * row * height:
        raise HeaderError("a TIFF whose strips or tiles have more bytes than the file and than their pixels")
    rows = np.full(count, height)
    if not tiled:
        rows[down - 1 :: down] = header.height - height * (down - 1)
    needed = (rows * row).astype(np.uint64)
    if compression == NO_COMPRESSION and header.colors != "YCbCr" and (sizes < needed).any():
        raise HeaderError("a TIFF with strips or tiles that are shorter than their pixels")
    return Pieces(offsets, sizes, needed, row * height, height, width)
