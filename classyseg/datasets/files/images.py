"""Reading images and masks from files, so that a wrong file is named with what was found in it.

What a file holds is read from its header (`headers`, `tiff_header`, `bmp`). It is read right, or refused by
name. Pillow decodes most files. simplejpeg, where it is installed (`classyseg[fast]`), decodes JPEG to the same pixels.
tifffile (`classyseg[tiff]`) decodes the TIFF that Pillow would change. Masks are numbers as the file holds them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from classyseg.datasets.files.arrays import image_tensor
from classyseg.datasets.files.bmp import Bmp, bmp_header, bmp_samples
from classyseg.datasets.files.float_images import NUMBER_TYPES, NUMBERS, as_float32, refusal_of_numbers
from classyseg.datasets.files.headers import (
    Header,
    TooLargeHeaderError,
    check_file_size,
    gif_header,
    jpeg_header,
    known_format,
    png_header,
    webp_header,
)
from classyseg.datasets.files.mask_rules import (
    check_mask_of_channels,
    check_mask_of_colors,
    check_mask_of_values,
    color_numbers,
    mask_values,
    several,
)
from classyseg.datasets.files.matlab import read_mat
from classyseg.datasets.files.tiff import tiff_samples
from classyseg.datasets.files.tiff_header import Tiff, tiff_header
from classyseg.errors import DataError

Exif = Literal["refuse", "rotate", "ignore"]
Bits = Literal[8, 16, 32]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
LOSSY_SUFFIXES = (".jpg", ".jpeg")
DTYPES: dict[int, type[np.generic]] = {8: np.uint8, 16: np.uint16}
SHOWN_BITS = (1, 2, 4, 8)
"""Bits of grey levels that are scaled to 0..255, as viewers do."""
OF_8_BITS = "images of 8 bits a channel, of 16 with `bits: 16` (a key of `folder`)"
SMALL_TILE = 2**20
"""The pixels of a tile of TIFF that may be larger than its image and than the limit of its reader."""
START = 160
"""How many bytes of a file tell its format."""
Source = Path | bytes
"""An image file: its path, or its content."""


class TurnedError(DataError):
    """An image that its EXIF orientation says to turn, where nobody said whether to do so."""


class TooLargeError(DataError):
    """An image of more pixels than its reader wants."""


class UnreadableError(DataError):
    """No pixel of a file can be read: it is damaged, of another format, or of a kind that no reader here takes."""


class TooLargeFileError(UnreadableError):
    """An image is larger than any that is read as a whole."""


def read_image(
    source: Source,
    *,
    channels: int = 3,
    bits: Bits | None = 8,
    exif: Exif = "refuse",
    max_pixels: int | None = None,
) -> Tensor:
    """The image as (channels, H, W): uint8, uint16 (`bits` 16), or the file's numbers as float32 (`bits` 32).

    A file with `channels` bands is read as it is stored. For 3 or 1 channels, other kinds become RGB or grey, without
    alpha; a band of unknown meaning is never left out. Without `bits`, a file of 8 or of 16 bits is read as what it is.
    `.npy`, an array (H, W) or (H, W, C), may have any number of channels. `exif` says whether an image with an EXIF
    orientation is refused, rotated as viewers show it, or read as its pixels are stored. With 32 bits, only TIFF and
    `.npy` are read, nothing is converted, and a file must have `channels` bands.

    The content of a file, as bytes, is read as the file is: it is an array if it begins as `.npy` does. More than
    `max_pixels` are a `TooLargeError`: the header tells, before memory is taken for them.

    Raises: `DataError` for unreadable files, for another number of bits or channels, for several images in a file, and
    for numbers that are no float32.
    """
    path = _name(source)
    if _is_array(source):
        array, bits = checked_array(source, channels, bits, max_pixels)
        return image_tensor(numbers_of(path, array, bits))
    with _opened(source, max_pixels) as stored:
        header = stored.header
        bits = checked_bits(path, header, channels, bits)
        if stored.turned != 1 and (exif == "refuse" or (exif == "ignore" and header.format == "TIFF")):
            raise TurnedError(_turned(header, stored.turned), file=path)
        image = stored.image
        if image is None:
            samples = stored.samples()
            if bits == 32:
                return image_tensor(np.ascontiguousarray(as_float32(path, samples)))
            return image_tensor(np.ascontiguousarray(converted(samples, header, channels)))
        if stored.turned != 1 and exif == "rotate":
            image = ImageOps.exif_transpose(image)
        elif channels == 3 and (pixels := _fast_jpeg(stored.file, image)) is not None:
            return image_tensor(pixels)
        return image_tensor(_pixels(image, header, channels))


def checked_bits(path: Path | str, header: Header, channels: int, bits: Bits | None) -> Bits:
    """The bits as which an image is read: without `bits`, those of the file.

    Raises: `DataError` for several images in a file, and for one that is not as `channels` and `bits` say.
    """
    if header.images > 1:
        raise DataError(several(header), file=path)
    if bits is None:
        bits = 16 if header.bits > 8 and header.colors != "palette" else 8
    if refusal := _refusal(header, channels, bits):
        raise DataError(refusal, file=path)
    return bits


def _name(source: Source) -> Path | str:
    """What messages call an image: its path; nothing for bytes."""
    return source if isinstance(source, Path) else ""


def _is_array(source: Source) -> bool:
    if isinstance(source, Path):
        return source.suffix.lower() == ".npy"
    return source.startswith(np.lib.format.MAGIC_PREFIX)


def _check_pixels(found: int, most: int | None, path: Path | str, what: str = "pixels") -> None:
    if most is not None and found > most:
        raise TooLargeError(f"its header says {found:,} {what}; accepted are up to {most:,}", file=path)


def _refusal(header: Header, channels: int, bits: int) -> str:
    """Why the image is not as the data set says; empty if it is."""
    if bits == 32:
        return refusal_of_numbers(header, channels)
    deep = header.bits > 8 and header.colors != "palette"
    if deep and header.bands > 1 and header.format == "PNG":  # also for 8 `bits`: 16 would not help
        return (
            f"{header}; Pillow would keep 8 bits. Write it as PNG of 8 bits, or with `bits: 16` as TIFF "
            "(pip install 'classyseg[tiff]') or .npy"
        )
    if header.numbers != "u" or (deep and header.bits > 16):
        known = not refusal_of_numbers(header, header.bands)
        mend = f"`bits: 32` takes its numbers as they are, `channels: {header.bands}`" if known else "write it as .npy"
        accepted = OF_8_BITS if bits == 8 else "images of 16 bits a channel without signs"
        return f"{header}; accepted are {accepted}; {mend}"
    if bits == 8 and deep:
        return f"{header}; accepted are {OF_8_BITS}"
    if bits == 16 and not deep:
        return f"{header}, where the data set's `bits` says 16; leave it out, or put files of 16 bits apart from others"
    if header.colors == "CIELab" or (header.bits not in SHOWN_BITS and not deep and header.colors != "palette"):
        return f"{header}; accepted are grey, palettes, RGB, CMYK, YCbCr and bands, of 8 or 16 bits; write it as RGB"
    if header.bands > 1 and (header.colors in ("palette", "grey with 0 as white") or header.bits < 8):
        return f"{header}, which nobody knows how to show; write it as RGB, or as .npy"
    if channels == header.bands and header.colors != "palette":
        return ""
    if channels not in (1, 3) or (header.bands > 1 and deep and channels == 1) or (deep and header.colors == "CMYK"):
        return f"{header}, where the data set's `channels` says {channels}; accepted are {_accepted(header, channels)}"
    if "unnamed" in header.extra:
        return (
            f"{header}, where the data set reads {channels}: nothing tells whether the rest is needed; write "
            f"`channels: {header.bands}` (a key of `folder`), or take the rest out of the files"
        )
    return ""


def _accepted(header: Header, channels: int) -> str:
    own = "" if header.colors == "palette" else f"its own, `channels: {header.bands}`, "
    return f"{own}or files that hold {channels}, such as arrays (H, W, {channels}) as .npy"


def converted(samples: npt.NDArray[Any], header: Header, channels: int) -> npt.NDArray[Any]:
    """Stored samples (H, W, bands), YCbCr as RGB, as (H, W, channels)."""
    if header.colors == "palette":
        samples = _looked_up(samples[..., 0], header)
    elif header.bits < 8:
        samples = samples * np.uint8(255 // ((1 << header.bits) - 1))
    if channels == samples.shape[2] and header.colors != "palette":
        return samples
    if header.colors == "CMYK":
        inks = np.ascontiguousarray(samples[..., :4])
        samples = np.asarray(Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).convert("RGB"))
    elif header.colors.startswith("grey"):
        return np.repeat(samples[..., :1], channels, axis=2)
    samples = np.ascontiguousarray(samples[..., :3])
    return samples if channels == 3 else np.asarray(Image.fromarray(samples).convert("L"))[..., None]


def _looked_up(indices: npt.NDArray[Any], header: Header) -> npt.NDArray[Any]:
    """The colours (H, W, 3) of indices into the palette. Raises: `ValueError` for those beyond its end."""
    palette = np.zeros((0, 3), np.uint8) if header.palette is None else header.palette
    if int(indices.max(initial=0)) >= len(palette):
        raise ValueError(f"its pixels take colour {int(indices.max())} of a palette of {len(palette)}")
    if indices.dtype != np.uint8:
        return palette[indices]
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())  # takes a fifth of numpy's time
    image.putpalette(palette.tobytes())
    return np.asarray(image.convert("RGB"))


def _pixels(image: Image.Image, header: Header, channels: int) -> npt.NDArray[Any]:
    """(H, W, channels) of what Pillow reads as it is stored."""
    if header.colors == "palette":
        return converted(np.asarray(image)[..., None].astype(np.uint8), header, channels)
    if header.bits == 16:
        return np.repeat(np.asarray(image).astype(np.uint16)[..., None], channels, axis=2)
    if channels in (1, 3):
        mode = "RGB" if channels == 3 else "L"
        array = np.asarray(image if image.mode == mode else image.convert(mode))  # `convert` always copies
        return array.reshape(*array.shape[:2], channels)
    array = np.asarray(image)
    if array.shape[2:] != (channels,):
        raise ValueError(f"Pillow reads {image.mode} where the header says {header}")
    return array


def checked_array(
    source: Source, channels: int, bits: Bits | None, max_pixels: int | None = None
) -> tuple[npt.NDArray[Any], Bits]:
    """The array (H, W, channels) of a `.npy`, mapped and not read, and the bits as which it is read.

    Raises: `DataError` for another shape or type.
    """
    path = _name(source)
    with naming(source):
        # Mapped, not read: a header may promise any size. Objects are never unpickled.
        array = _mapped(source) if isinstance(source, bytes) else np.lib.format.open_memmap(source, mode="r")
    _check_pixels(math.prod(array.shape[:2]), max_pixels, path)
    if array.ndim == 2:
        array = array[..., None]
    kind = array.dtype.newbyteorder("=")
    if bits is None:
        bits = 16 if kind.itemsize == 2 else 8
    is_known = kind in NUMBER_TYPES if bits == 32 else kind == DTYPES[bits]
    if array.ndim != 3 or array.shape[2] != channels or not is_known or 0 in array.shape:
        accepted = NUMBERS if bits == 32 else DTYPES[bits].__name__
        as_they_are = "; `bits: 32` takes its numbers as they are" if bits != 32 and kind in NUMBER_TYPES else ""
        raise DataError(
            f"an array of {array.shape} {array.dtype}; accepted: (H, W, {channels}) of {accepted}, by the "
            f"data set's `channels: {channels}` and `bits: {bits}`{as_they_are}",
            file=path,
        )
    return array, bits


def numbers_of(path: Path | str, array: npt.NDArray[Any], bits: Bits) -> npt.NDArray[Any]:
    """Numbers of an array file as those of an image, in this machine's byte order."""
    return as_float32(path, array) if bits == 32 else array.astype(DTYPES[bits])


def _mapped(content: bytes) -> npt.NDArray[Any]:
    """The array that the content of a `.npy` holds, in the same memory. Raises: `ValueError` if it is not whole."""
    file = BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"format {version} of .npy")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, kind = read(file)
    if kind.hasobject or any(side < 0 for side in shape):
        raise ValueError("an array of objects, or of sides below 0")
    if kind.itemsize * math.prod(shape) > len(content) - file.tell():
        raise ValueError("the file is cut off, or truncated")
    array = np.frombuffer(content, kind, math.prod(shape), file.tell())
    return array.reshape(shape, order="F" if by_columns else "C")


def _fast_jpeg(file: BinaryIO, image: Image.Image) -> npt.NDArray[np.uint8] | None:
    """The pixels (H, W, 3) by simplejpeg; None where that is not installed, or where Pillow must decide."""
    decoder = jpeg_decoder()
    if decoder is None or image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    try:
        file.seek(0)
        pixels = decoder.decode_jpeg(file.read(), "RGB")
    except ValueError:  # a broken file: the result must not depend on what is installed, so Pillow decides
        return None
    return pixels if pixels.shape[:2] == (image.height, image.width) else None


@cache
def jpeg_decoder() -> Any:
    """simplejpeg, which gives the same pixels as Pillow in less time; None where it is not installed."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def read_mask_values(source: Source) -> npt.NDArray[Any]:
    """The mask's values, or the indices into its palette, as (H, W) integers of the file's type. They are never scaled.

    The content of a file, as bytes, is read as the file is. A `.mat` file of Pascal's extensions is read, too, where
    scipy is installed. Raises: `DataError` for unreadable files, for colour images, for JPEG, which does not keep
    labels, and for what viewers turn or invert.
    """
    path = _name(source)
    if isinstance(source, Path) and source.suffix == ".mat":
        return read_mat(source)
    with _opened(source) as stored:
        check_mask_of_values(path, stored.header, stored.turned)
        return mask_values(path, stored.samples()[..., 0])


def read_mask_channels(path: Path) -> npt.NDArray[Any]:
    """All channels of a mask, (channels, H, W), as the numbers that the file holds; they are never scaled.

    Of `.npy`, (H, W) or (H, W, channels), of TIFF, and of PNG with up to four channels of 8 bits. Raises: `DataError`
    as `read_mask_values`.
    """
    if _is_array(path):
        with naming(path):
            values = np.array(np.lib.format.open_memmap(path, mode="r"))  # mapped first: a header may promise any size
        if values.ndim not in (2, 3) or values.dtype.kind not in "buif" or not values.size:
            raise DataError(f"an array of {values.shape} {values.dtype}; accepted: (H, W, channels)", file=path)
        values = values.astype(np.uint8 if values.dtype.kind == "b" else values.dtype.newbyteorder("="))
    else:
        with _opened(path) as stored:
            header = stored.header
            if header.bands == 1:
                return read_mask_values(path)[None]
            check_mask_of_channels(path, header, stored.turned)
            values = np.asarray(stored.image) if stored.image is not None else stored.samples()
            if values.shape[2:] != (header.bands,) or (stored.image is not None and header.bits != 8):
                raise DataError(f"a mask that is {header}; Pillow would lose a part of it: write .npy", file=path)
    return mask_values(path, np.ascontiguousarray(values[None] if values.ndim == 2 else values.transpose(2, 0, 1)))


def read_colors(path: Path) -> npt.NDArray[np.int32]:
    """The colours of a mask as (H, W) numbers, 65536 R + 256 G + B; transparency is left out.

    Raises: `DataError` for unreadable files, for JPEG, which changes colours, and for images without colours of 8 bits.
    """
    with _opened(path) as stored:
        check_mask_of_colors(path, stored.header, stored.turned)
        if stored.image is None:
            return color_numbers(converted(stored.samples(), stored.header, 3))
        return color_numbers(_pixels(stored.image, stored.header, 3))


@dataclass(frozen=True)
class _Stored:
    """An open file: its `header`, the orientation in which viewers show it, and the reader of its pixels.

    Pillow's `image` is None for TIFF and BMP, whose `samples` are read as their `details` say.
    """

    header: Header
    turned: int
    image: Image.Image | None
    file: BinaryIO
    details: Tiff | Bmp | None = None

    def samples(self) -> npt.NDArray[Any]:
        """The stored samples (H, W, bands), in the file's type. With Pillow, only for one band."""
        if isinstance(self.details, Tiff):
            return tiff_samples(self.file, self.details)
        if isinstance(self.details, Bmp):
            return bmp_samples(self.file, self.details)
        values = np.asarray(self.image)
        bits = self.header.bits
        if self.header.colors == "grey" and bits in (2, 4):  # Pillow scales these to 0..255
            values = values // np.uint8(255 // ((1 << bits) - 1))
        return values.astype(np.uint16 if bits == 16 else np.uint8, copy=False)[..., None]


@contextmanager
def _opened(source: Source, max_pixels: int | None = None) -> Iterator[_Stored]:
    """Opens a file and reads its header. Raises: `DataError`, naming the file, for any error inside, too."""

    def checked(header: Header, width: int = 0, height: int = 0) -> Header:
        _check_pixels(max(header.width * header.height, width * height), max_pixels, _name(source))
        return header

    with naming(source), BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        found = known_format(file.read(START))
        if found == "TIFF":
            tiff = tiff_header(file)
            if tiff.tiled and tiff.pieces.pixels > SMALL_TILE:
                _check_pixels(tiff.pieces.pixels, max_pixels, _name(source), "pixels a tile")
            yield _Stored(checked(tiff.header), tiff.header.turned, None, file, tiff)
        elif found == "BMP":
            bmp = bmp_header(file)
            yield _Stored(checked(bmp.header), 1, None, file, bmp)
        else:
            read = {"PNG": png_header, "JPEG": jpeg_header, "GIF": gif_header, "WEBP": webp_header}[found]
            check_file_size(file)
            file.seek(0)
            content = file if isinstance(file, BytesIO) else BytesIO(file.read())
            header = read(content)
            content.seek(0)
            with Image.open(content, formats=[found]) as image:
                # A damaged JPEG may say two sizes, of which Pillow takes the last. Pillow decodes a PNG for its EXIF.
                checked(header, image.width, image.height)
                yield _Stored(header, orientation(image), image, content)


def header_of(path: Path) -> tuple[Header, int]:
    """The header of a file, and the orientation in which viewers show it. Raises: `DataError`, naming the file."""
    with _opened(path) as stored:
        return stored.header, stored.turned


@contextmanager
def naming(source: Source) -> Iterator[None]:
    """Turns any error of a reader inside into an `UnreadableError` that names the file."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise UnreadableError("no such file", file=_name(source)) from None
    except Exception as error:  # readers may raise anything for a broken file
        kind = "Pillow cannot make out its header" if isinstance(error, UnidentifiedImageError) else str(error)
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        error_type = TooLargeFileError if isinstance(error, TooLargeHeaderError) else UnreadableError
        raise error_type(f"cannot be read ({kind}; {size} bytes)", file=_name(source)) from None


def orientation(image: Image.Image) -> int:
    """How viewers turn an image, as EXIF's number; 1, upright, if the file has none, or an unknown one."""
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in range(1, 9) else 1


def _turned(header: Header, turned: int) -> str:
    return (
        f"its EXIF orientation is {turned}: viewers show it turned, whether its mask is, too, nobody knows. In "
        "the data set's config, exif: rotate is right for masks that fit the image as it is shown"
        + ("" if header.format == "TIFF" else ", exif: ignore for those that fit the pixels as they are stored")
    )
