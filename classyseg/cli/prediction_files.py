"""The files that hold predictions: index PNG, GeoTIFF, scores, overlays."""

from __future__ import annotations

import importlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from classyseg.datasets.files.images import header_of
from classyseg.io import written_atomically
from classyseg.label_files import (
    COMPRESSION,
    Palette,
    check_num_classes,
    encoded,
    flag_palette,
    label_image,
    label_png,
)
from classyseg.pictures import safe_name

Labels = npt.NDArray[Any]
GEO_TAGS = {33550: 12, 33922: 12, 34264: 12, 34735: 3, 34736: 12, 34737: 2, 50844: 12}
"""What places a TIFF on the earth, and the types of its numbers (12: double, 3: short, 2: text).

The size of a pixel, the tie points, the matrix, the keys of the coordinate system with their numbers and texts, and the
coefficients of a satellite's camera. Not the number that marks pixels without data: a label may be that number.
"""
TIE_POINTS, MATRIX, KEYS = 33922, 34264, 34735
UPRIGHT = 1
"""The orientation of an image that is shown as it is stored: a world file is for the stored pixels."""
TILE = 256
"""The side of the tiles of a label raster."""
MAX_CLASSIC = 2**31
"""The most bytes of labels in a TIFF with offsets of 32 bits: half of what these reach."""
TIFF_SUFFIXES = (".tif", ".tiff")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
JPEG_QUALITY = 92
FRAMES_A_SECOND = 25
"""The frames per second of a video that does not tell."""


def geo_tags(path: Path) -> dict[int, Any]:
    """The tags that place an image on the earth: those of a TIFF, or from the world file next to an image.

    Empty for other files, and for unreadable ones. A tag whose numbers are of another type is left out.
    """
    found: dict[int, Any] = {}
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tags are cut off
            start = file.read(16)
            if start.startswith(TIFF_STARTS):
                directory = ImageFileDirectory_v2(start if start[2:4] in (b"+\0", b"\0+") else start[:8])
                file.seek(directory.next)
                directory.load(file)
                found = {tag: directory[tag] for tag, kind in GEO_TAGS.items() if directory.tagtype.get(tag) == kind}
        world = _world_file(path)
        if world is not None and TIE_POINTS not in found and MATRIX not in found and header_of(path)[1] == UPRIGHT:
            found[MATRIX] = _matrix(world, of_corner=not _is_point(found))
    except Exception:  # Pillow may raise anything for a broken file; reading its pixels reports the error
        return {}
    return found


def _world_file(path: Path) -> Path | None:
    """The file of six numbers next to an image, as GDAL finds it: of `a.png`, `a.pgw`, `a.pngw` or `a.wld`."""
    kind = path.suffix[1:]
    names = [f"{kind[:1]}{kind[-1:]}w", f"{kind}w", "wld"]
    places = [path.with_suffix(f".{name}") for each in names for name in (each, each.lower(), each.upper())]
    return next((place for place in places if place.is_file()), None)


def _matrix(world: Path, *, of_corner: bool) -> tuple[float, ...]:
    """The tag for a world file, which gives the middle of the upper left pixel; the tag its corner if `of_corner`."""
    a, d, b, e, x, y = (float(word) for word in world.read_text("utf-8").split())
    half = 0.5 if of_corner else 0.0
    return (a, b, 0.0, x - half * (a + b), d, e, 0.0, y - half * (d + e), *[0.0] * 7, 1.0)


def _is_point(tags: Mapping[int, Any]) -> bool:
    """Whether the keys of a TIFF say that its coordinates are of the middles of pixels, not the corners."""
    keys = tags.get(KEYS, ())
    return any(keys[i : i + 4 : 3] == (1025, 2) for i in range(4, len(keys), 4))


def write_labels(path: Path, labels: npt.NDArray[Any], palette: Palette, geo: Mapping[int, Any] | None = None) -> None:
    """Writes labels (H, W) as the values of a PNG with the palette, of 16 bits for more than 256 classes.

    A path that ends in `.tif` becomes a TIFF with the tags `geo`.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        tags = ImageFileDirectory_v2()
        for tag, value in (geo or {}).items():
            tags[tag] = value
            tags.tagtype[tag] = GEO_TAGS[tag]
        save_image(path, label_image(labels, palette), "TIFF", compression="tiff_adobe_deflate", tiffinfo=tags)
    else:
        _place(path, label_png(labels, palette))


def write_flags(
    paths: Sequence[Path], flags: npt.NDArray[Any], palette: Palette, geo: Mapping[int, Any] | None = None
) -> None:
    """Writes the flags (C, H, W) of each class into a file of its own: 1 in the class's colour, 0 black."""
    for path, own, color in zip(paths, flags, palette, strict=True):
        write_labels(path, own, flag_palette(color), geo)


def class_folders(classes: Sequence[str]) -> tuple[str, ...]:
    """A folder's name for each class, on any system: its own name where that is possible."""
    names = [safe_name(name) or "class" for name in classes]
    taken = Counter(name.casefold() for name in names)
    return tuple(f"{name}_{i}" if taken[name.casefold()] > 1 else name for i, name in enumerate(names))


def write_label_raster(
    path: Path, bands: Iterable[tuple[int, Labels]], size: tuple[int, int], palette: Palette, geo: Mapping[int, Any]
) -> None:
    """Writes labels of `size` (height, width) that come in bands of rows as a TIFF in tiles, with the tags `geo`.

    It is a BigTIFF if it may become larger than others can.
    """
    tifffile = importlib.import_module("tifffile")  # which has read the image
    check_num_classes(palette)
    kind = np.dtype(np.uint8 if len(palette) <= 256 else np.uint16)
    colors: dict[str, Any] = {"photometric": "minisblack"}
    if len(palette) <= 256:
        table = np.zeros((3, 256), np.uint16)
        table[:, : len(palette)] = np.array(palette, np.uint16).T * 257
        colors = {"photometric": "palette", "colormap": table}
    values = {tag: value if isinstance(value, str | tuple) else (value,) for tag, value in geo.items()}
    tags = [(tag, GEO_TAGS[tag], len(value), value, True) for tag, value in values.items()]
    options = {"shape": size, "dtype": kind, "tile": (TILE, TILE), "compression": "deflate", **colors}
    is_big = size[0] * size[1] * kind.itemsize > MAX_CLASSIC
    with (
        _placed(path) as temporary,
        open(temporary, "xb") as file,
        tifffile.TiffWriter(file, bigtiff=is_big) as writer,
    ):
        written = _tiles(bands, size, kind)
        writer.write(written, maxworkers=1, metadata=None, software=False, extratags=tags, **options)


def _tiles(bands: Iterable[tuple[int, Labels]], size: tuple[int, int], kind: np.dtype[Any]) -> Iterator[Labels]:
    """The tiles of an image from left to right and top to bottom, filled up by zeros at its ends."""
    row = np.zeros((TILE, -(-size[1] // TILE) * TILE), kind)
    filled = 0
    for first, labels in bands:
        done = 0
        while done < len(labels):
            count = min(TILE - filled, len(labels) - done)
            row[filled : filled + count, : size[1]] = labels[done : done + count]
            filled, done = filled + count, done + count
            if filled == TILE or first + done == size[0]:
                row[filled:] = 0
                for left in range(0, row.shape[1], TILE):
                    yield np.ascontiguousarray(row[:, left : left + TILE])
                filled = 0


def write_values(path: Path, values: npt.NDArray[Any]) -> None:
    """Writes numbers (H, W), uint8 or uint16, as a grey PNG: what evaluation servers read."""
    save_image(path, Image.fromarray(np.ascontiguousarray(values)), "PNG", compress_level=COMPRESSION)


def write_scores(path: Path, scores: npt.NDArray[Any]) -> None:
    """Writes scores (num_classes, H, W) as `.npy`."""
    scores = np.ascontiguousarray(scores)
    with _placed(path) as temporary, open(temporary, "xb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(scores))
        file.write(scores.data)  # because numpy does not report a full disk


def write_overlay(path: Path, overlay: Image.Image) -> None:
    """Writes an image as JPEG or PNG, as the path ends."""
    if path.suffix == ".png":
        save_image(path, overlay, "PNG", compress_level=COMPRESSION)
    else:
        save_image(path, overlay, "JPEG", quality=JPEG_QUALITY)


def save_image(path: Path, image: Image.Image, form: str, **options: Any) -> None:
    """Saves an image completely, or not at all."""
    _place(path, encoded(image, form, **options))


def _place(path: Path, content: bytes) -> None:
    with _placed(path) as temporary, open(temporary, "xb") as file:  # because Pillow does not report a full disk
        file.write(content)


@contextmanager
def _placed(path: Path) -> Iterator[Path]:
    """As `written_atomically`, and makes the parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as temporary:
        yield temporary


@contextmanager
def overlay_video(path: Path, rate: Any) -> Iterator[Callable[[Image.Image], None]]:
    """Yields a function that adds a frame to an MP4 of `rate` frames per second, which becomes `path` at the end."""
    av = importlib.import_module("av")
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with _placed(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate or FRAMES_A_SECOND, options={"crf": "20"})
        stream.pix_fmt = "yuv420p"

        def add(frame: Image.Image) -> None:
            size = frame.width + frame.width % 2, frame.height + frame.height % 2  # which must be even in this format
            if not stream.codec_context.is_open:
                stream.width, stream.height = size
            whole = Image.new("RGB", size)
            whole.paste(frame)
            container.mux(stream.encode(av.VideoFrame.from_image(whole)))

        yield add
        container.mux(stream.encode())
