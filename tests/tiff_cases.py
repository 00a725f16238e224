"""TIFF by tifffile, Pillow and by hand, for the table of `format_cases`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from format_cases import (
    FEW,
    GREY,
    HEIGHT,
    PALETTE,
    REFUSED,
    RGB,
    RGBA,
    WIDTH,
    add,
    grey_images,
    luma,
    packed,
    palette_case,
    rgb_images,
    values,
)
from PIL import Image

# TIFF by tifffile


def tif(array: np.ndarray, **options: Any) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, array, metadata=None, **options)


def add_tiff(name: str, array: np.ndarray, *, planar: bool = False, **options: Any) -> None:
    """A TIFF of `array` (H, W, bands), GREY of one band, else as the options say."""
    bands, bits = array.shape[2], 8 * array.dtype.itemsize
    if bands > 1:
        options.setdefault("photometric", "minisblack")
        options["planarconfig"] = "separate" if planar else "contig"
    stored = array[..., 0] if bands == 1 else np.moveaxis(array, -1, 0) if planar else array
    is_rgb = options.get("photometric") == "rgb"
    extras = options.get("extrasamples", ["unspecified"] * (bands - (3 if is_rgb else 1)))
    images: dict[tuple[int, int], Any] = {}
    if array.dtype in (np.uint8, np.uint16):
        images[bands, bits] = array
        if bands == 1:
            images |= grey_images(array[..., 0], bits)
        if is_rgb and "unspecified" not in extras:
            images[3, bits] = array[..., :3]
            if bits == 8:
                images[1, 8] = luma(array[..., :3])
        if not is_rgb and bands == 2 and "unspecified" not in extras:
            images |= grey_images(array[..., 0], 8) if bits == 8 else {(3, 16): np.repeat(array[..., :1], 3, 2)}
    labels = array[..., 0] if bands == 1 and array.dtype.kind in "iu" else REFUSED
    if array.dtype == np.uint64 and bands == 1 and array.max() >= 1 << 63:
        labels = REFUSED
    colors = array[..., :3] if is_rgb and bits == 8 and set(extras) <= {"unassalpha"} else REFUSED
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
        add_tiff(
            f"{name}-predicted-tiles-be.tif",
            values(bands, kind),
            planar=planar,
            tile=(16, 16),
            **more,
            **coded,
            **order,
        )
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
add(
    "u2-white-is-0-be.tif",
    tif(deep_white, photometric="miniswhite", byteorder=">"),
    grey_images(65535 - deep_white, 16),
)
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
    shown = grey_images(data * np.uint8(255 // ((1 << bits) - 1))) if bits < 8 else grey_images(data, 16)
    known = (shown, data) if bits < 24 else ()  # of 24, readers disagree
    add(f"packed-{bits}.tif", tif(data, bitspersample=bits), *known)
for kind in ("u1", "u2"):
    indices = values(1, kind)[..., 0]
    table = np.random.default_rng(3).integers(0, 65536, (3, 1 << 8 * indices.dtype.itemsize), dtype=np.uint16)
    palette_case(
        f"{kind}-palette.tif",
        tif(indices, photometric="palette", colormap=table),
        indices,
        (table >> 8).T.astype(np.uint8),
    )
small_table = (np.arange(768, dtype=np.uint16) * 5 % 256).reshape(3, 256)
palette_case(
    "palette-of-8-bits.tif", tif(FEW, photometric="palette", colormap=small_table), FEW, small_table.T.astype(np.uint8)
)


def pages(path: Path, *more: Any) -> None:
    """An image and others: (array, NewSubfileType)."""
    with tifffile.TiffWriter(path) as file:
        for array, subfile in more:
            kind = "mask" if subfile & 4 else "minisblack" if array.ndim == 2 else "rgb"
            file.write(array, subfiletype=subfile, photometric=kind, metadata=None)


add(
    "overviews.tif",
    lambda path: pages(path, (RGB, 0), (RGB[::2, ::2], 1), (RGB[::4, ::4], 1)),
    rgb_images(RGB),
    colors=RGB,
)
add(
    "mask-page.tif",
    lambda path: pages(path, (RGB, 0), (GREY > 99, 4), (GREY[::2, ::2] > 99, 5)),
    rgb_images(RGB),
    colors=RGB,
)
add("thumbnail-first.tif", lambda path: pages(path, (GREY[::2, ::2], 1), (GREY, 0)), grey_images(GREY), GREY)
add("mask-page-first.tif", lambda path: pages(path, (GREY > 99, 4), (GREY, 0)), grey_images(GREY), GREY)
add("one-page-of-many.tif", lambda path: pages(path, (GREY, 2)), grey_images(GREY), GREY)
add("two-pages.tif", lambda path: pages(path, (GREY, 0), (GREY, 0)))
add("two-pages-and-a-copy.tif", lambda path: pages(path, (RGB, 0), (GREY, 1), (RGB, 2)))
add("imagej-stack.tif", lambda path: tifffile.imwrite(path, np.stack([GREY, GREY]), imagej=True))
add("described.tif", lambda path: tifffile.imwrite(path, GREY, description="of a field"), grey_images(GREY), GREY)
deep6 = values(6, "u2")
add(
    "overviews-of-bands.tif",
    lambda path: [
        tifffile.imwrite(
            path,
            array,
            append=i > 0,
            subfiletype=i and 1,
            photometric="minisblack",
            planarconfig="contig",
            metadata=None,
        )
        for i, array in enumerate((deep6, deep6[::2, ::2]))
    ],
    {(6, 16): deep6},
)


# TIFF by hand


def raw_tiff(path: Path, data: bytes, *, order: str = "<", **tags: Any) -> None:
    """A TIFF of one strip with tags such as `t258=(8, 8, 8)`."""
    entries = {
        256: (WIDTH,),
        257: (HEIGHT,),
        258: (8,),
        259: (1,),
        262: (1,),
        277: (1,),
        278: (HEIGHT,),
        279: (len(data),),
    }
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
for bits in (10, 12, 14):  # tifffile writes them wrong in this order
    data = values(1, "u2", top=(1 << bits) - 1)[..., 0]
    big = hand(packed(data, bits), t258=(bits,), order=">")
    add(f"hand-packed-{bits}-be.tif", big, grey_images(data, 16), data)
signed = values(1, "i1")[..., 0]
add("hand-signed-8.tif", hand(signed.tobytes(), t339=(2,)), mask=signed)
add("hand-no-photometric.tif", hand(GREY.tobytes(), t262=None))
add("hand-mixed-bits.tif", hand(RGB.tobytes(), t258=(8, 8, 16), t262=(2,), t277=(3,)))
add("hand-565.tif", hand(RGB.tobytes(), t258=(5, 6, 5), t262=(2,), t277=(3,)))
missing = hand(RGBA.tobytes(), t258=(8,) * 4, t262=(2,), t277=(4,))
add("hand-fourth-band-unnamed.tif", missing, {(4, 8): RGBA})
add("hand-predictor-without-compression.tif", hand(GREY.tobytes(), t317=(2,)))
add("hand-sparse.tif", hand(GREY.tobytes(), t279=(0,)))
add("hand-short-strip.tif", hand(GREY.tobytes(), t279=(HEIGHT * WIDTH - 1,)))
add("hand-depth.tif", hand(GREY.tobytes(), t32997=(2,)))
add("hand-thumbnail-alone.tif", hand(GREY.tobytes(), t254=(1,)), grey_images(GREY), GREY)
add("hand-upright.tif", hand(GREY.tobytes(), t274=(1,)), grey_images(GREY), GREY)
add("hand-turned.tif", hand(GREY.tobytes(), t274=(6,)))
add("hand-alpha-first-of-two.tif", hand(RGBA.tobytes(), t258=(8,) * 4, t277=(4,), t338=(2, 0, 0)), {(4, 8): RGBA})


# One band that is said to lie in a plane of its own, as GDAL's INTERLEAVE=BAND writes it


for bits in (1, 2, 4, 8, 16):
    data = values(1, "u2" if bits == 16 else "u1", top=(1 << bits) - 1)[..., 0]
    rows = data.astype("<u2").tobytes() if bits == 16 else packed(data, bits)
    shown = data if bits == 16 else data * np.uint8(255 // ((1 << bits) - 1))
    add(f"one-plane-{bits}.tif", hand(rows, t258=(bits,), t284=(2,)), grey_images(shown, max(bits, 8)), data)
table = PALETTE[:16].T.astype(int).ravel() * 257
few_rows = hand(packed(FEW, 4), t258=(4,), t262=(3,), t284=(2,), t320=tuple(table))
palette_case("one-plane-palette.tif", few_rows, FEW)
negative = values(1, "i2")[..., 0]
add("one-plane-signed.tif", hand(negative.tobytes(), t258=(16,), t284=(2,), t339=(2,)), mask=negative)


def as_jpeg(array: np.ndarray) -> np.ndarray:
    return imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(array, level=95))


planes = {
    "photometric": "minisblack",
    "planarconfig": "separate",
    "compression": "jpeg",
    "compressionargs": {"level": 95},
}
five = values(5)
lossy = np.dstack([as_jpeg(np.ascontiguousarray(five[..., i])) for i in range(5)])
add("jpeg-planes.tif", tif(np.moveaxis(five, -1, 0), **planes), {(5, 8): lossy})
exact = {"compression": "webp", "compressionargs": {"lossless": True}}
add("webp.tif", tif(RGB, photometric="rgb", **exact), rgb_images(RGB))


# Labels in floating point, as programs for maps write them


for kind in ("f2", "f4", "f8"):
    whole = (values(1, "u1")[..., 0].astype(int) - 20).astype(kind)
    for order in "<>":
        add(
            f"{kind}-whole{'-be' if order == '>' else ''}.tif", tif(whole, byteorder=order), mask=whole.astype(np.int64)
        )
    add(f"{kind}-whole-deflate.tif", tif(whole, compression="deflate", predictor=True), mask=whole.astype(np.int64))
    for name, value in {"missing": np.nan, "infinite": np.inf}.items():
        hole = whole.copy()
        hole[3, 4] = value
        add(f"{kind}-{name}.tif", tif(hole))
add("f4-too-large.tif", tif(np.full((HEIGHT, WIDTH), 1e20, np.float32)))
