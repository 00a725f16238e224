"""BMP, PNG, GIF, WebP, JPEG and numpy's arrays, for the table of `format_cases`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from format_cases import (
    CASES,
    FEW,
    GREY,
    HEIGHT,
    PALETTE,
    RGB,
    RGBA,
    WIDTH,
    add,
    grey_images,
    packed,
    palette_case,
    rgb_images,
    save,
    values,
)
from PIL import Image

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


GREYS = {
    bits: np.repeat(np.arange(1 << bits)[:, None] * 255 // ((1 << bits) - 1), 3, 1).astype(np.uint8)
    for bits in (1, 2, 4, 8)
}
BLACK_WHITE = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
for bits in (1, 4, 8):
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
    palette_case(
        f"{bits}-top-down.bmp", bitmap(bits, packed(data, bits, 4), palette=PALETTE[: 1 << bits], top_down=True), data
    )
three = values(1, top=2)[..., 0]
add("index-beyond-palette.bmp", bitmap(8, packed(below(three), 8, 4), palette=PALETTE[:2], used=2))


def row_padded(array: np.ndarray) -> bytes:
    rows = array.reshape(HEIGHT, -1).view(np.uint8)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes()


bgr = np.ascontiguousarray(below(RGB)[..., ::-1])
for size in (12, 40, 124):
    add(f"24-header-{size}.bmp", bitmap(24, row_padded(bgr), size=size), rgb_images(RGB), colors=RGB)
add(
    "24-top-down.bmp",
    bitmap(24, row_padded(np.ascontiguousarray(bgr[::-1])), top_down=True),
    rgb_images(RGB),
    colors=RGB,
)
reserved = np.dstack([bgr, below(GREY)])
add("32-reserved.bmp", bitmap(32, row_padded(reserved)), rgb_images(RGB), colors=RGB)
FIELDS_32 = {
    "bgra": (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    "rgba": (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
    "abgr": (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
    "xbgr": (0xFF000000, 0xFF0000, 0xFF00, 0),
}
add("32-odd.bmp", bitmap(32, bytes(4 * WIDTH * HEIGHT), size=124, compression=3, fields=(0xFF00, 0xFF000000, 0xFF, 0)))
add("16-444.bmp", bitmap(16, bytes(2 * (WIDTH + 1) * HEIGHT), compression=3, fields=(0xF00, 0xF0, 0xF)))
add("2-bits.bmp", bitmap(2, bytes(12 * HEIGHT), palette=PALETTE[:4]))
for name, fields in FIELDS_32.items():
    pixels = sum(below(RGBA)[..., i].astype(np.uint32) * (mask & -mask) for i, mask in enumerate(fields) if mask)
    expected = rgb_images(rgb_of := RGBA[..., :3]) | ({(4, 8): RGBA} if fields[3] else {})
    add(
        f"32-{name}.bmp",
        bitmap(32, pixels.astype("<u4").tobytes(), size=124, compression=3, fields=fields),
        expected,
        colors=rgb_of,
    )
    if not fields[3]:
        plain = bitmap(32, pixels.astype("<u4").tobytes(), compression=3, fields=fields[:3])
        add(f"32-{name}-40.bmp", plain, expected, colors=rgb_of)
for name, fields in {"555": (0x7C00, 0x3E0, 0x1F), "565": (0xF800, 0x7E0, 0x1F)}.items():
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
        palette_case(
            name, bitmap(bits, body, compression=3 - bits // 4 if bits == 4 else 1, palette=PALETTE[: 1 << bits]), data
        )
    greys = bitmap(bits, body, compression=2 if bits == 4 else 1, palette=GREYS[bits])
    palette_case(f"rle{bits}-greys.bmp", greys, data, GREYS[bits])
add(
    "rle8-with-a-gap.bmp", bitmap(8, b"\0\2\5\0" + run_lengths(data, 8, absolute=False), compression=1, palette=PALETTE)
)


# PNG by hand


def png(
    path: Path, bits: int, kind: int, rows: np.ndarray, *chunks: tuple[bytes, bytes], interlace: bool = False
) -> None:
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
    add(f"rgb-8{end}", portable(8, 2, RGB, GAMMA, interlace=interlace), rgb_images(RGB), colors=RGB)
    with_alpha = rgb_images(RGBA[..., :3]) | {(4, 8): RGBA}
    add(f"rgba-8{end}", portable(8, 6, RGBA, interlace=interlace), with_alpha, colors=RGBA[..., :3])
    pair = values(2)
    add(f"grey-alpha-8{end}", portable(8, 4, pair, interlace=interlace), grey_images(pair[..., 0]) | {(2, 8): pair})
    for kind, bands in ((2, 3), (4, 2), (6, 4)):
        add(f"{bands}-bands-of-16{end}", portable(16, kind, values(bands, "u2"), interlace=interlace))
add("rgb-8-transparent.png", portable(8, 2, RGB, (b"tRNS", bytes(6))), rgb_images(RGB), colors=RGB)
add("palette-missing.png", portable(8, 3, GREY[..., None]))
add("index-beyond-palette.png", portable(8, 3, three[..., None], (b"PLTE", PALETTE[:2].tobytes())), mask=three)


# By Pillow


def indexed(indices: np.ndarray) -> Image.Image:
    image = Image.frombytes("P", (WIDTH, HEIGHT), indices.tobytes())
    image.putpalette(PALETTE.tobytes())
    return image


def decoded(array: np.ndarray, kind: str, **options: Any) -> np.ndarray:
    """What a lossy format makes of an array."""
    file = BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return np.asarray(Image.open(file))


def frames(path: Path, **options: Any) -> None:
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    first.save(path, save_all=True, append_images=[second], **options)


palette_case("palette.gif", lambda path: indexed(GREY).save(path, optimize=False), GREY)
palette_case("interlaced.gif", lambda path: indexed(GREY).save(path, optimize=False, interlace=1), GREY)
palette_case("transparent.gif", lambda path: indexed(GREY).save(path, optimize=False, transparency=3), GREY)
palette_case("few.gif", lambda path: indexed(FEW).save(path, optimize=False), FEW)
palette_case("grey.gif", save(GREY, optimize=False), GREY, GREYS[8])
add("frames.gif", frames)
add("frames.png", frames)
add("frames.webp", lambda path: frames(path, lossless=True))
add("frames.tif", frames)
lossless = {"lossless": True, "exact": True}
add("lossless.webp", save(RGB, **lossless), rgb_images(RGB), colors=RGB)
add("alpha.webp", save(RGBA, **lossless), with_alpha, colors=RGBA[..., :3])
add("lossy.webp", save(RGB), rgb_images(decoded(RGB, "WEBP")))
add("colour.jpg", save(RGB), rgb_images(decoded(RGB, "JPEG")))
CASES["colour.jpg"].images.pop((1, 8))  # which comes from the decoder's own luminance
add("grey.jpg", save(GREY), grey_images(decoded(GREY, "JPEG")))
add("progressive.jpg", save(RGB, progressive=True), {(3, 8): decoded(RGB, "JPEG")})
add("tiff-jpeg.tif", save(GREY, compression="jpeg"), grey_images(decoded(GREY, "TIFF", compression="jpeg")))
add(
    "pillow-la.tif",
    lambda path: Image.merge("LA", [Image.fromarray(GREY)] * 2).save(path),
    grey_images(GREY) | {(2, 8): np.dstack([GREY] * 2)},
)
add("pillow-rgba.tif", save(RGBA, compression="tiff_lzw"), with_alpha, colors=RGBA[..., :3])
add("pillow-int32.tif", save(values(1, "i4")[..., 0]), mask=values(1, "i4")[..., 0])
add("pillow-float.tif", save(values(1, "f4")[..., 0]))
deep = values(1, "u2")[..., 0]
add("pillow-16.tif", save(deep), grey_images(deep, 16), deep)
bilevel = values(1, top=1)[..., 0]
for compression in ("group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw"):
    add(
        f"pillow-{compression}.tif",
        save(bilevel.astype(bool), compression=compression, tiffinfo={262: 1}),
        grey_images(bilevel * np.uint8(255)),
        bilevel,
    )
palette_case("pillow-palette.tif", lambda path: indexed(GREY).save(path), GREY)
for name, kind in {"ppm": "PPM", "j2k": "JPEG2000", "tga": "TGA", "eps": "EPS", "ico": "ICO", "pdf": "PDF"}.items():
    add(f"foreign-{name}.png", save(RGB, format=kind))


# numpy


def array_file(array: np.ndarray) -> Callable[[Path], object]:
    return lambda path: np.save(path, array)


add("u1.npy", array_file(values(7)), {(7, 8): values(7)})
add("u1-flat.npy", array_file(GREY), {(1, 8): GREY[..., None]})
add("u1-columns.npy", array_file(np.asfortranarray(values(3))), {(3, 8): values(3)})
add("u2.npy", array_file(values(3, "u2")), {(3, 16): values(3, "u2")})
add("u2-be.npy", array_file(values(3, ">u2")), {(3, 16): values(3, "u2")})
for kind in ("i1", "i2", "i4", "i8", "u4", "f2", "f4", "f8", "?"):
    add(f"{'bool' if kind == '?' else kind}.npy", array_file(values(3, "u1").astype(kind)))
add("planes-first.npy", array_file(np.moveaxis(values(3), -1, 0)), {(WIDTH, 8): np.moveaxis(values(3), -1, 0)})
add("four-axes.npy", array_file(values(3)[None]))
