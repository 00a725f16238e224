"""Image files of every kind that people have, each with the arrays it was made of: by tifffile, Pillow and by hand.

`CASES` is a table of formats x bits x layouts. What a file must give as an image or a mask follows from its array and
the rules of docs/datasets.md, not from the reader. `fuzz_files.py` damages the same files.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
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

    `images` gives the array (H, W, channels) for each (channels, bits) that a data set may say, `mask` the labels (H, W)
    and `colors` the colours (H, W, 3) of a mask; or `REFUSED`. What `images` does not name is refused.
    """

    name: str
    write: Callable[[Path], object]
    images: dict[tuple[int, int], Any] = field(default_factory=dict)
    mask: Any = REFUSED
    colors: Any = REFUSED


CASES: dict[str, Case] = {}


def add(name: str, write: Callable[[Path], object], images: Any = None, mask: Any = REFUSED, colors: Any = REFUSED) -> None:
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


def palette_case(name: str, write: Callable[[Path], object], indices: np.ndarray, palette: np.ndarray = PALETTE) -> None:
    add(name, write, rgb_images(palette[indices]), indices, palette[indices])


# TIFF by tifffile


def tif(array: np.ndarray, **options: Any) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, array, metadata=None, **options)


def add_tiff(name: str, array: np.ndarray, *, planar: bool = False, **options: Any) -> None:
    """A TIFF of `array` (H, W, bands), grey of one band, else as the options say."""
    bands, bits = array.shape[2], 8 * array.dtype.itemsize
    if bands > 1:
        options.setdefault("photometric", "minisblack")
        options["planarconfig"] = "separate" if planar else "contig"
    stored = array[..., 0] if bands == 1 else np.moveaxis(array, -1, 0) if planar else array
    rgb = options.get("photometric") == "rgb"
    extras = options.get("extrasamples", ["unspecified"] * (bands - (3 if rgb else 1)))
    images: dict[tuple[int, int], Any] = {}
    if array.dtype in (np.uint8, np.uint16):
        images[bands, bits] = array
        if bands == 1:
            images |= grey_images(array[..., 0], bits)
        if rgb and "unspecified" not in extras:
            images[3, bits] = array[..., :3]
            if bits == 8:
                images[1, 8] = luma(array[..., :3])
        if not rgb and bands == 2 and "unspecified" not in extras:
            images |= grey_images(array[..., 0], 8) if bits == 8 else {(3, 16): np.repeat(array[..., :1], 3, 2)}
    labels = array[..., 0] if bands == 1 and array.dtype.kind in "iu" else REFUSED
    if array.dtype == np.uint64 and bands == 1 and array.max() >= 1 << 63:
        labels = REFUSED
    colors = array[..., :3] if rgb and bits == 8 and set(extras) <= {"unassalpha"} else REFUSED
    add(name, tif(stored, **options), images, labels, colors)


for kind in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"):
    for bands in (1, 2, 5):
        add_tiff(f"{kind}x{bands}.tif", values(bands, kind))
    add_tiff(f"{kind}x1-big-endian.tif", values(1, kind), byteorder=">")
    add_tiff(f"{kind}x4-planes.tif", values(4, kind), planar=True)
for kind in ("u1", "u2", "i2", "u4", "f4"):
    for compression in ("deflate", "lzw", "zstd", "lzma", "packbits"):
        add_tiff(f"{kind}x1-{compression}.tif", values(1, kind), compression=compression)
    for bands, planar in ((3, False), (3, True), (6, False)):
        name = f"{kind}x{bands}{'-planes' if planar else ''}"
        more = {"photometric": "rgb"} if bands == 3 else {}
        add_tiff(f"{name}-tiles.tif", values(bands, kind), planar=planar, tile=(16, 32), **more)
        add_tiff(f"{name}-big.tif", values(bands, kind), planar=planar, bigtiff=True, rowsperstrip=5, **more)
        order = {"byteorder": ">"}
        coded = {"compression": "deflate", "predictor": True}
        add_tiff(f"{name}-predicted.tif", values(bands, kind), planar=planar, **more, **coded)
        add_tiff(f"{name}-predicted-tiles-be.tif", values(bands, kind), planar=planar, tile=(16, 16), **more, **coded, **order)
    add_tiff(f"{kind}x1-predicted-lzw.tif", values(1, kind), compression="lzw", predictor=True)
    add_tiff(f"{kind}x1-tiles.tif", values(1, kind), tile=(16, 16), compression="zstd")
    add_tiff(f"{kind}x1-big-be.tif", values(1, kind), bigtiff=True, byteorder=">", rowsperstrip=4)
for kind in ("u1", "u2"):
    add_tiff(f"{kind}-rgb.tif", values(3, kind), photometric="rgb")
    add_tiff(f"{kind}-rgb-be.tif", values(3, kind), photometric="rgb", byteorder=">")
    for extra in ("unassalpha", "assocalpha", "unspecified"):
        for planar in (False, True):
            name = f"{kind}-rgb-{extra}{'-planes' if planar else ''}.tif"
            add_tiff(name, values(4, kind), planar=planar, photometric="rgb", extrasamples=[extra])
        add_tiff(f"{kind}-grey-{extra}.tif", values(2, kind), extrasamples=[extra])
    add_tiff(f"{kind}-rgb-two-more.tif", values(5, kind), photometric="rgb", extrasamples=["unassalpha", "unspecified"])

white = values(1)[..., 0]
add("u1-white-is-0.tif", tif(white, photometric="miniswhite"), grey_images(255 - white))
add("u1-white-is-0-lzw.tif", tif(white, photometric="miniswhite", compression="lzw"), grey_images(255 - white))
deep_white = values(1, "u2")[..., 0]
add("u2-white-is-0.tif", tif(deep_white, photometric="miniswhite"), grey_images(65535 - deep_white, 16))
add("u2-white-is-0-be.tif", tif(deep_white, photometric="miniswhite", byteorder=">"), grey_images(65535 - deep_white, 16))
add("f4-white-is-0.tif", tif(values(1, "f4")[..., 0], photometric="miniswhite"))
ink = values(4)
inks = np.asarray(Image.frombytes("CMYK", (WIDTH, HEIGHT), ink.tobytes()).convert("RGB"))
add("cmyk.tif", tif(ink, photometric="separated", planarconfig="contig"), rgb_images(inks) | {(4, 8): ink})
separate = tif(np.moveaxis(ink, -1, 0), photometric="separated", planarconfig="separate")
add("cmyk-planes.tif", separate, rgb_images(inks) | {(4, 8): ink})
add("cmyk16.tif", tif(values(4, "u2"), photometric="separated", planarconfig="contig"), {(4, 16): values(4, "u2")})
add("lab.tif", tif(values(3), photometric="cielab"))
add("iccLab.tif", tif(values(3), photometric="icclab"))
add("ycbcr.tif", tif(values(3), photometric="ycbcr"))
add("raw-sensor.tif", tif(values(1, "u2")[..., 0], photometric="cfa"))
add("complex.tif", tif(values(1, "f4")[..., 0].astype(np.complex64)))
for bits in (2, 4, 10, 12, 14, 24):
    data = values(1, "u1" if bits < 8 else "u2" if bits < 24 else "u4", top=(1 << bits) - 1)[..., 0]
    shown = grey_images(data * np.uint8(255 // ((1 << bits) - 1))) if bits < 8 else grey_images(data, 16) if bits < 24 else {}
    add(f"packed-{bits}.tif", tif(data, bitspersample=bits), shown, data)
    add(f"packed-{bits}-be.tif", tif(data, bitspersample=bits, byteorder=">"), shown, data)
for kind in ("u1", "u2"):
    indices = values(1, kind)[..., 0]
    table = np.random.default_rng(3).integers(0, 65536, (3, 1 << 8 * indices.dtype.itemsize), dtype=np.uint16)
    palette_case(
        f"{kind}-palette.tif", tif(indices, photometric="palette", colormap=table), indices, (table >> 8).T.astype(np.uint8)
    )
few = values(1, top=15)[..., 0]
small_table = (np.arange(768, dtype=np.uint16) * 5 % 256).reshape(3, 256)
palette_case("palette-of-8-bits.tif", tif(few, photometric="palette", colormap=small_table), few, small_table.T.astype(np.uint8))


def pages(path: Path, *more: Any) -> None:
    """An image and others: (array, NewSubfileType)."""
    with tifffile.TiffWriter(path) as file:
        for array, subfile in more:
            file.write(array, subfiletype=subfile, photometric="minisblack" if array.ndim == 2 else "rgb", metadata=None)


grey, rgb = values(1)[..., 0], values(3)
add("overviews.tif", lambda path: pages(path, (rgb, 0), (rgb[::2, ::2], 1), (rgb[::4, ::4], 1)), rgb_images(rgb), colors=rgb)
add("mask-page.tif", lambda path: pages(path, (rgb, 0), (grey, 4), (grey[::2, ::2], 5)), rgb_images(rgb), colors=rgb)
add("thumbnail-first.tif", lambda path: pages(path, (grey[::2, ::2], 1), (grey, 0)), grey_images(grey), grey)
add("one-page-of-many.tif", lambda path: pages(path, (grey, 2)), grey_images(grey), grey)
add("two-pages.tif", lambda path: pages(path, (grey, 0), (grey, 0)))
add("two-pages-and-a-copy.tif", lambda path: pages(path, (rgb, 0), (grey, 1), (rgb, 2)))
add("imagej-stack.tif", lambda path: tifffile.imwrite(path, np.stack([grey, grey]), imagej=True))
add("described.tif", lambda path: tifffile.imwrite(path, grey, description="of a field"), grey_images(grey), grey)
deep6 = values(6, "u2")
add(
    "overviews-of-bands.tif",
    lambda path: [
        tifffile.imwrite(path, array, append=i > 0, subfiletype=i and 1, photometric="minisblack", planarconfig="contig", metadata=None)
        for i, array in enumerate((deep6, deep6[::2, ::2]))
    ],
    {(6, 16): deep6},
)


# TIFF by hand


def raw_tiff(path: Path, data: bytes, *, order: str = "<", **tags: Any) -> None:
    """A TIFF of one strip with tags such as `t258=(8, 8, 8)`."""
    entries = {256: (WIDTH,), 257: (HEIGHT,), 258: (8,), 259: (1,), 262: (1,), 277: (1,), 278: (HEIGHT,), 279: (len(data),)}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    entries = {tag: value for tag, value in sorted((entries | {273: (0,)}).items()) if value is not None}
    start = 8 + 2 + 12 * len(entries) + 4
    directory, tail = struct.pack(f"{order}H", len(entries)), b""
    for tag, numbers in entries.items():
        body = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if tag == 273:
            body = struct.pack(f"{order}I", start)
        if len(body) > 4:
            where, tail = start + len(data) + len(data) % 2 + len(tail), tail + body
            body = struct.pack(f"{order}I", where)
        directory += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + body
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    path.write_bytes(head + directory + bytes(4) + data + b"\0" * (len(data) % 2) + tail)


def packed(indices: np.ndarray, bits: int, multiple: int = 1) -> bytes:
    """Rows of `bits` a number, the first in the highest bits, each a multiple of some bytes."""
    digits = (indices[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(digits.reshape(len(indices), -1).astype(np.uint8), axis=1)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % multiple))).tobytes()


def reversed_bits(data: bytes) -> bytes:
    return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, 8)[:, ::-1]).tobytes()


def hand(data: bytes, **tags: Any) -> Callable[[Path], object]:
    return lambda path: raw_tiff(path, data, **tags)


for bits in (1, 2, 4, 8):
    data = values(1, top=(1 << bits) - 1)[..., 0]
    shown = data * np.uint8(255 // ((1 << bits) - 1))
    rows = packed(data, bits)
    for order in "<>":
        end = f"{bits}{'-be' if order == '>' else ''}.tif"
        add(f"hand-grey-{end}", hand(rows, order=order, t258=(bits,)), grey_images(shown), data)
        add(f"hand-white-is-0-{end}", hand(rows, order=order, t258=(bits,), t262=(0,)), grey_images(255 - shown))
        turned_bits = hand(reversed_bits(rows), order=order, t258=(bits,), t266=(2,))
        add(f"hand-reversed-{end}", turned_bits, grey_images(shown), data)
    table = PALETTE[: 1 << bits].T.astype(int).ravel() * 257
    palette_case(f"hand-palette-{bits}.tif", hand(rows, t258=(bits,), t262=(3,), t320=tuple(table)), data)
    reversed_rows = hand(reversed_bits(rows), t258=(bits,), t262=(3,), t320=tuple(table), t266=(2,))
    palette_case(f"hand-palette-reversed-{bits}.tif", reversed_rows, data)
    deflated = hand(zlib.compress(rows), t258=(bits,), t259=(8,))
    add(f"hand-deflate-{bits}.tif", deflated, grey_images(shown), data)
twelve = values(1, "u2", top=4095)[..., 0]
add("hand-grey-12.tif", hand(packed(twelve, 12), t258=(12,)), grey_images(twelve, 16), twelve)
signed = values(1, "i1")[..., 0]
add("hand-signed-8.tif", hand(signed.tobytes(), t339=(2,)), mask=signed)
add("hand-no-photometric.tif", hand(grey.tobytes(), t262=None))
add("hand-mixed-bits.tif", hand(rgb.tobytes(), t258=(8, 8, 16), t262=(2,), t277=(3,)))
add("hand-565.tif", hand(rgb.tobytes(), t258=(5, 6, 5), t262=(2,), t277=(3,)))
four = values(4)
missing = hand(four.tobytes(), t258=(8,) * 4, t262=(2,), t277=(4,))
add("hand-fourth-band-unnamed.tif", missing, {(4, 8): four})
add("hand-predictor-without-compression.tif", hand(grey.tobytes(), t317=(2,)))
add("hand-sparse.tif", hand(grey.tobytes(), t279=(0,)))
add("hand-short-strip.tif", hand(grey.tobytes(), t279=(HEIGHT * WIDTH - 1,)))
add("hand-depth.tif", hand(grey.tobytes(), t32997=(2,)))
add("hand-thumbnail-alone.tif", hand(grey.tobytes(), t254=(1,)), grey_images(grey), grey)
add("hand-upright.tif", hand(grey.tobytes(), t274=(1,)), grey_images(grey), grey)
add("hand-turned.tif", hand(grey.tobytes(), t274=(6,)))
add("hand-alpha-first-of-two.tif", hand(four.tobytes(), t258=(8,) * 4, t277=(4,), t338=(2, 0, 0)), {(4, 8): four})


# BMP by hand


def bmp(
    path: Path,
    bits: int,
    data: bytes,
    *,
    size: int = 40,
    compression: int = 0,
    palette: np.ndarray | None = None,
    fields: tuple[int, ...] = (),
    top_down: bool = False,
    used: int = 0,
) -> None:
    height = -HEIGHT if top_down else HEIGHT
    if size == 12:
        info = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", size, WIDTH, height, 1, bits, compression, len(data), 0, 0, used, 0)
        info = (info + (struct.pack(f"<{len(fields)}I", *fields) if size >= 52 else b"")).ljust(size, b"\0")
    if fields and size == 40:
        info += struct.pack(f"<{len(fields)}I", *fields)
    if palette is not None:
        colors = palette[:, ::-1]
        info += (colors if size == 12 else np.pad(colors, ((0, 0), (0, 1)))).astype(np.uint8).tobytes()
    path.write_bytes(b"BM" + struct.pack("<IHHI", 14 + len(info) + len(data), 0, 0, 14 + len(info)) + info + data)


def bitmap(*arguments: Any, **options: Any) -> Callable[[Path], object]:
    return lambda path: bmp(path, *arguments, **options)


def below(indices: np.ndarray) -> np.ndarray:
    return indices[::-1]


GREYS = {bits: np.repeat(np.arange(1 << bits)[:, None] * 255 // ((1 << bits) - 1), 3, 1).astype(np.uint8) for bits in (1, 2, 4, 8)}
BLACK_WHITE = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
for bits in (1, 2, 4, 8):
    data = values(1, top=(1 << bits) - 1)[..., 0]
    rows = packed(below(data), bits, 4)
    for size in (12, 40, 52, 56, 64, 108, 124):
        write = bitmap(bits, rows, size=size, palette=PALETTE[: 1 << bits])
        palette_case(f"{bits}-header-{size}.bmp", write, data)
    palette_case(f"{bits}-greys.bmp", bitmap(bits, rows, palette=GREYS[bits]), data, GREYS[bits])
    palette_case(f"{bits}-whites.bmp", bitmap(bits, rows, palette=GREYS[bits][::-1]), data, GREYS[bits][::-1])
    two = values(1, top=1)[..., 0]
    two_rows = packed(below(two), bits, 4)
    palette_case(f"{bits}-two-colours.bmp", bitmap(bits, two_rows, palette=BLACK_WHITE, used=2), two, BLACK_WHITE)
    palette_case(f"{bits}-top-down.bmp", bitmap(bits, packed(data, bits, 4), palette=PALETTE[: 1 << bits], top_down=True), data)
three = values(1, top=2)[..., 0]
add("index-beyond-palette.bmp", bitmap(8, packed(below(three), 8, 4), palette=PALETTE[:2], used=2), mask=three)


def row_padded(array: np.ndarray) -> bytes:
    rows = array.reshape(HEIGHT, -1).view(np.uint8)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes()


bgr = np.ascontiguousarray(below(rgb)[..., ::-1])
for size in (12, 40, 124):
    add(f"24-header-{size}.bmp", bitmap(24, row_padded(bgr), size=size), rgb_images(rgb), colors=rgb)
add("24-top-down.bmp", bitmap(24, row_padded(np.ascontiguousarray(bgr[::-1])), top_down=True), rgb_images(rgb), colors=rgb)
reserved = np.dstack([bgr, below(grey)])
add("32-reserved.bmp", bitmap(32, row_padded(reserved)), rgb_images(rgb), colors=rgb)
FIELDS_32 = {
    "bgra": (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    "rgba": (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
    "abgr": (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
    "xbgr": (0xFF000000, 0xFF0000, 0xFF00, 0),
    "odd": (0xFF00, 0xFF000000, 0xFF, 0),
}
for name, fields in FIELDS_32.items():
    pixels = sum(below(four)[..., i].astype(np.uint32) * (mask & -mask) for i, mask in enumerate(fields) if mask)
    expected = rgb_images(rgb_of := four[..., :3]) | ({(4, 8): four} if fields[3] else {})
    add(f"32-{name}.bmp", bitmap(32, pixels.astype("<u4").tobytes(), size=124, compression=3, fields=fields), expected, colors=rgb_of)
    if not fields[3]:
        plain = bitmap(32, pixels.astype("<u4").tobytes(), compression=3, fields=fields[:3])
        add(f"32-{name}-40.bmp", plain, expected, colors=rgb_of)
for name, fields in {"555": (0x7C00, 0x3E0, 0x1F), "565": (0xF800, 0x7E0, 0x1F), "444": (0xF00, 0xF0, 0xF)}.items():
    largest = np.array([mask // (mask & -mask) for mask in fields])
    parts = (values(3).astype(int) * 5) % (largest + 1)
    pixels = (below(parts) * np.array([mask & -mask for mask in fields])).sum(2).astype("<u2")
    shown = (parts * 255 // largest).astype(np.uint8)
    add(f"16-{name}.bmp", bitmap(16, row_padded(pixels), compression=3, fields=fields), rgb_images(shown), colors=shown)
    if name == "555":
        add("16-plain.bmp", bitmap(16, row_padded(pixels)), rgb_images(shown), colors=shown)
ten = bitmap(32, bytes(4 * WIDTH * HEIGHT), size=124, compression=3, fields=(0x3FF00000, 0xFFC00, 0x3FF, 0))
add("32-ten-bits.bmp", ten)
add("jpeg-within.bmp", bitmap(24, bytes(WIDTH * HEIGHT * 4), compression=4))


def run_lengths(indices: np.ndarray, bits: int, *, absolute: bool) -> bytes:
    """Encoded (or absolute) runs of each row, from below."""
    data = b""
    for row in below(indices):
        x = 0
        while x < WIDTH:
            count = min(6, WIDTH - x)
            run = row[x : x + count]
            if absolute and count > 2:
                body = packed(run[None], bits, 2)
                data, x = data + bytes([0, count]) + body, x + count
            else:
                data, x = data + bytes([1, int(run[0]) << (4 if bits == 4 else 0)]), x + 1
        data += b"\0\0"
    return data[:-2] + b"\0\1"


for bits in (4, 8):
    data = values(1, top=(1 << bits) - 1)[..., 0]
    for absolute in (False, True):
        body = run_lengths(data, bits, absolute=absolute)
        name = f"rle{bits}{'-absolute' if absolute else ''}.bmp"
        palette_case(name, bitmap(bits, body, compression=3 - bits // 4 if bits == 4 else 1, palette=PALETTE[: 1 << bits]), data)
    greys = bitmap(bits, body, compression=2 if bits == 4 else 1, palette=GREYS[bits])
    palette_case(f"rle{bits}-greys.bmp", greys, data, GREYS[bits])
add("rle8-with-a-gap.bmp", bitmap(8, b"\0\2\5\0" + run_lengths(data, 8, absolute=False), compression=1, palette=PALETTE))


# PNG by hand


def png(path: Path, bits: int, kind: int, rows: np.ndarray, *chunks: tuple[bytes, bytes], interlace: bool = False) -> None:
    """`rows` (H, W, bands), packed."""
    def scanlines(part: np.ndarray) -> bytes:
        flat = part.reshape(len(part), -1)
        return b"".join(b"\0" + packed(row[None], bits) for row in flat) if part.size else b""

    adam = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    body = b"".join(scanlines(rows[y::dy, x::dx]) for y, x, dy, dx in adam) if interlace else scanlines(rows)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, kind, 0, 0, interlace)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    data = (struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))


def portable(*arguments: Any, **options: Any) -> Callable[[Path], object]:
    return lambda path: png(path, *arguments, **options)


GAMMA = (b"gAMA", struct.pack(">I", 100000))
TEXT = (b"tEXt", b"Comment\0labels")
for interlace in (False, True):
    end = "-interlaced.png" if interlace else ".png"
    for bits in (1, 2, 4, 8, 16):
        data = values(1, "u2" if bits == 16 else "u1", top=(1 << bits) - 1)
        shown = data[..., 0] if bits >= 8 else data[..., 0] * np.uint8(255 // ((1 << bits) - 1))
        images = grey_images(shown, max(bits, 8))
        add(f"grey-{bits}{end}", portable(bits, 0, data, GAMMA, TEXT, interlace=interlace), images, data[..., 0])
        see_through = portable(bits, 0, data, (b"tRNS", b"\0\0"), interlace=interlace)
        add(f"grey-{bits}-transparent{end}", see_through, images, data[..., 0])
        if bits < 16:
            table = (b"PLTE", PALETTE[: 1 << bits].tobytes())
            palette_case(f"palette-{bits}{end}", portable(bits, 3, data, table, interlace=interlace), data[..., 0])
            see_through = portable(bits, 3, data, table, (b"tRNS", b"\0\x80"), interlace=interlace)
            palette_case(f"palette-{bits}-transparent{end}", see_through, data[..., 0])
    add(f"rgb-8{end}", portable(8, 2, rgb, GAMMA, interlace=interlace), rgb_images(rgb), colors=rgb)
    with_alpha = rgb_images(four[..., :3]) | {(4, 8): four}
    add(f"rgba-8{end}", portable(8, 6, four, interlace=interlace), with_alpha, colors=four[..., :3])
    pair = values(2)
    add(f"grey-alpha-8{end}", portable(8, 4, pair, interlace=interlace), grey_images(pair[..., 0]) | {(2, 8): pair})
    for kind, bands in ((2, 3), (4, 2), (6, 4)):
        add(f"{bands}-bands-of-16{end}", portable(16, kind, values(bands, "u2"), interlace=interlace))
add("rgb-8-transparent.png", portable(8, 2, rgb, (b"tRNS", bytes(6))), rgb_images(rgb), colors=rgb)
add("palette-missing.png", portable(8, 3, grey[..., None]))
add("index-beyond-palette.png", portable(8, 3, three[..., None], (b"PLTE", PALETTE[:2].tobytes())), mask=three)


# By Pillow


def save(array: np.ndarray, **options: Any) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(array).save(path, **options)


def indexed(indices: np.ndarray) -> Image.Image:
    image = Image.frombytes("P", (WIDTH, HEIGHT), indices.tobytes())
    image.putpalette(PALETTE.tobytes())
    return image


def decoded(array: np.ndarray, kind: str, **options: Any) -> np.ndarray:
    """What a lossy format makes of an array."""
    from io import BytesIO

    file = BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return np.asarray(Image.open(file))


def frames(path: Path, **options: Any) -> None:
    first, second = Image.fromarray(grey), Image.fromarray(255 - grey)
    first.save(path, save_all=True, append_images=[second], **options)


palette_case("palette.gif", lambda path: indexed(grey).save(path, optimize=False), grey)
palette_case("interlaced.gif", lambda path: indexed(grey).save(path, optimize=False, interlace=1), grey)
palette_case("transparent.gif", lambda path: indexed(grey).save(path, optimize=False, transparency=3), grey)
palette_case("few.gif", lambda path: indexed(few).save(path, optimize=False), few)
palette_case("grey.gif", save(grey), grey, GREYS[8])
add("frames.gif", frames)
add("frames.png", frames)
add("frames.webp", lambda path: frames(path, lossless=True))
add("frames.tif", frames)
lossless = {"lossless": True, "exact": True}
add("lossless.webp", save(rgb, **lossless), rgb_images(rgb), colors=rgb)
add("alpha.webp", save(four, **lossless), with_alpha, colors=four[..., :3])
add("lossy.webp", save(rgb), rgb_images(decoded(rgb, "WEBP")))
add("colour.jpg", save(rgb), rgb_images(decoded(rgb, "JPEG")))
CASES["colour.jpg"].images.pop((1, 8))  # which comes from the decoder's own luminance
add("grey.jpg", save(grey), grey_images(decoded(grey, "JPEG")))
add("progressive.jpg", save(rgb, progressive=True), {(3, 8): decoded(rgb, "JPEG")})
add("tiff-jpeg.tif", save(grey, compression="jpeg"), grey_images(decoded(grey, "TIFF", compression="jpeg")))
add("pillow-la.tif", lambda path: Image.merge("LA", [Image.fromarray(grey)] * 2).save(path), grey_images(grey) | {(2, 8): np.dstack([grey] * 2)})
add("pillow-rgba.tif", save(four, compression="tiff_lzw"), with_alpha, colors=four[..., :3])
add("pillow-int32.tif", save(values(1, "i4")[..., 0]), mask=values(1, "i4")[..., 0])
add("pillow-float.tif", save(values(1, "f4")[..., 0]))
add("pillow-16.tif", save(deep_white), grey_images(deep_white, 16), deep_white)
bilevel = values(1, top=1)[..., 0]
for compression in ("group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw"):
    add(f"pillow-{compression}.tif", save(bilevel.astype(bool), compression=compression, tiffinfo={262: 1}), grey_images(bilevel * np.uint8(255)), bilevel)
palette_case("pillow-palette.tif", lambda path: indexed(grey).save(path), grey)
for name, kind in {"ppm": "PPM", "j2k": "JPEG2000", "tga": "TGA", "eps": "EPS", "ico": "ICO", "pdf": "PDF"}.items():
    add(f"foreign-{name}.png", save(rgb, format=kind))


# numpy


def array_file(array: np.ndarray) -> Callable[[Path], object]:
    return lambda path: np.save(path, array)


add("u1.npy", array_file(values(7)), {(7, 8): values(7)})
add("u1-flat.npy", array_file(grey), {(1, 8): grey[..., None]})
add("u1-columns.npy", array_file(np.asfortranarray(values(3))), {(3, 8): values(3)})
add("u2.npy", array_file(values(3, "u2")), {(3, 16): values(3, "u2")})
add("u2-be.npy", array_file(values(3, ">u2")), {(3, 16): values(3, "u2")})
for kind in ("i1", "i2", "i4", "i8", "u4", "f2", "f4", "f8", "?"):
    add(f"{'bool' if kind == '?' else kind}.npy", array_file(values(3, "u1").astype(kind)))
add("planes-first.npy", array_file(np.moveaxis(values(3), -1, 0)), {(WIDTH, 8): np.moveaxis(values(3), -1, 0)})
add("four-axes.npy", array_file(values(3)[None]))


def cases() -> Iterator[Case]:
    yield from CASES.values()
