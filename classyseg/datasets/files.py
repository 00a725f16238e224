"""Reading images and masks from files, so that a wrong file is named with what was found in it.

Pillow reads everything but `.npy`; simplejpeg, where it is installed (`classyseg[fast]`), the pixels of JPEG, which are
the same. Masks are Pillow's alone: their numbers are what the file holds, never scaled.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from classyseg.config import DataError
from classyseg.datasets.classy_dataset import image_tensor
from classyseg.datasets.mat_files import read_mat

Exif = Literal["refuse", "rotate", "ignore"]
Bits = Literal[8, 16]

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP")
"""What a file may hold, whatever its name. Pillow knows others, such as EPS, for which it runs Ghostscript, and JPEG
2000, which may change labels."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
LOSSY_SUFFIXES = (".jpg", ".jpeg")
MASK_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")
COLOR_MODES = ("RGB", "RGBA", "RGBX", "P")
FOUR_CHANNELS = ("RGBA", "RGBX", "CMYK")
LOSSY = ("jpeg", "tiff_jpeg", "webp")
"""Compressions within TIFF that change values."""
SAMPLE_FORMAT = 339
"""The tag of TIFF by which numbers have signs, 2: Pillow leaves it out where they have 8 bits."""
SCALED = {"L;2": 85, "L;4": 17}
"""By which factor Pillow multiplies grey values of 2 and 4 bits."""
DTYPES: dict[int, type[np.generic]] = {8: np.uint8, 16: np.uint16}


def read_image(path: Path, *, channels: int = 3, bits: Bits = 8, exif: Exif = "refuse") -> Tensor:
    """The image as (channels, H, W), uint8 or, of 16 `bits`, uint16.

    Images of another kind become RGB, or grey for one channel, without their alpha; 4 channels are those of RGBA, RGBX
    or CMYK as they are stored; `.npy`, an array (H, W) or (H, W, C), has any number. An image that carries an EXIF
    orientation is refused, rotated as viewers show it, or taken as its pixels are stored.

    Raises: `DataError` for unreadable files, for another number of bits, and for animations.
    """
    if path.suffix.lower() == ".npy":
        return image_tensor(_read_array(path, channels, bits))
    with _opened(path) as (image, raw):
        _refuse_animation(path, image)
        deep = raw.partition(";")[2].startswith(("16", "12", "32"))
        if (deep or image.mode.startswith(("I", "F"))) and (bits == 8 or not image.mode.startswith("I;16")):
            accepted = "grey images of 16 bits, and .npy of any channels"
            if bits == 8:
                accepted = "images of 8 bits a channel (with `bits: 16`, grey ones of 16)"
            raise DataError(f"{path}: an image of mode {_kind(image, raw)}; accepted are {accepted}")
        if bits == 16 and not deep:
            raise DataError(f"{path}: an image of 8 bits a channel, where the data set's `bits` says 16")
        turned = orientation(image)
        if turned != 1:
            image = _upright(path, image, turned, exif)
        elif channels == 3 and bits == 8 and (pixels := _fast_jpeg(path, image)) is not None:
            return image_tensor(pixels)
        return image_tensor(_pixels(path, image, channels, bits))


def _pixels(path: Path, image: Image.Image, channels: int, bits: int) -> npt.NDArray[Any]:
    """(H, W, channels)."""
    if bits == 16 and channels in (1, 3):
        return np.repeat(np.asarray(image).astype(np.uint16)[..., None], channels, axis=2)
    if bits == 8 and channels in (1, 3):
        mode = "RGB" if channels == 3 else "L"
        array = np.asarray(image if image.mode == mode else image.convert(mode))  # which else would copy, too
        return array.reshape(*array.shape[:2], channels)
    if bits == 8 and channels == 4 and image.mode in FOUR_CHANNELS:
        return np.asarray(image)
    raise DataError(
        f"{path}: an image of mode {image.mode}, where the data set's `channels` says {channels}; accepted are arrays "
        "(H, W, C) as .npy" + (", RGBA, RGBX and CMYK" if channels == 4 and bits == 8 else "")
    )


def _read_array(path: Path, channels: int, bits: int) -> npt.NDArray[Any]:
    with _naming(path):
        array: npt.NDArray[Any] = np.lib.format.open_memmap(
            path, mode="r"
        )  # mapped: a header may promise any size; never unpickled
    if array.ndim == 2:
        array = array[..., None]
    if (
        array.ndim != 3
        or array.shape[2] != channels
        or array.dtype.newbyteorder("=") != DTYPES[bits]
        or 0 in array.shape
    ):
        raise DataError(
            f"{path}: an array of {array.shape} {array.dtype}; accepted: (H, W, {channels}), {DTYPES[bits].__name__}, "
            f"as the data set's `channels`, {channels}, and `bits`, {bits}, say"
        )
    return array.astype(DTYPES[bits])  # in this machine's byte order


def _fast_jpeg(path: Path, image: Image.Image) -> npt.NDArray[np.uint8] | None:
    """The pixels (H, W, 3) by simplejpeg; None where that is not installed, or Pillow shall decide."""
    decoder = _simplejpeg()
    if decoder is None or image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    try:
        pixels = decoder.decode_jpeg(path.read_bytes(), "RGB")
    except ValueError:  # something is wrong with the file: what becomes of it must not depend on what is installed
        return None
    return pixels if pixels.shape[:2] == (image.height, image.width) else None


@cache
def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def read_mask_values(path: Path) -> npt.NDArray[Any]:
    """The mask's values, or the indices into its palette, as (H, W) integers of the file's type; never rescaled.

    A `.mat` file of Pascal's extensions is read, too, where scipy is installed. Raises: `DataError` for unreadable
    files, for colour images, for JPEG, which does not keep labels, and for what Pillow would turn or invert.
    """
    if path.suffix == ".mat":
        return read_mat(path)
    with _opened(path) as (image, raw):
        _check_mask(path, image)
        if image.mode not in MASK_MODES:
            raise DataError(
                f"{path}: a mask of mode {image.mode}; accepted are images of one channel or with a palette, "
                "whose values are class indices"
            )
        raw = raw.removesuffix("R")  # of bits in reverse order
        if raw.partition(";")[2].endswith("I"):
            raise DataError(f"{path}: a mask in which 0 means white, which Pillow inverts; accepted: 0 means black")
        values = np.asarray(image)
        if image.format == "TIFF" and image.mode == "L" and 2 in image.tag_v2.get(SAMPLE_FORMAT, ()):  # type: ignore[attr-defined]
            values = values.view(np.int8)
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    return values // np.uint8(SCALED[raw]) if raw in SCALED else values


def read_colors(path: Path) -> npt.NDArray[np.int32]:
    """The colours of a mask as (H, W) numbers, 65536 R + 256 G + B; transparency is left out.

    Raises: `DataError` for unreadable files, for JPEG, which changes colours, and for images without colours of 8 bits.
    """
    with _opened(path) as (image, raw):
        _check_mask(path, image)
        if image.mode not in COLOR_MODES or ";16" in raw:
            raise DataError(
                f"{path}: a mask of mode {_kind(image, raw)}; accepted here are masks of colours (RGB of 8 bits a "
                "channel, or a palette)"
            )
        channels = np.asarray(image.convert("RGB")).astype(np.int32)
    return channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]


def _check_mask(path: Path, image: Image.Image) -> None:
    if image.format in ("JPEG", "MPO") or image.info.get("compression") in LOSSY:
        raise DataError(
            f"{path}: a mask stored as JPEG, which changes labels; accepted are lossless index images, such as PNG"
        )
    _refuse_animation(path, image)
    if (turned := orientation(image)) != 1:
        raise DataError(f"{path}: a mask with the EXIF orientation {turned}; save it upright, without one")


def open_image(path: Path) -> Image.Image:
    """The file by Pillow, if it holds one of `FORMATS`. Raises: whatever a broken or foreign file leads to."""
    return Image.open(path, formats=FORMATS)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Image.Image, str]]:
    """The image, and how its pixels are stored, in Pillow's words, such as `L;4`: known until they are loaded."""
    with _naming(path), open_image(path) as image:
        details = image.tile[0][3] if image.tile else ()  # type: ignore[attr-defined]
        first = details if isinstance(details, str) else details[0] if details else ""
        yield image, first if isinstance(first, str) and first else image.mode


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file in whatever a reader raises inside. Raises: `DataError`."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # readers raise whatever a broken file leads to
        kind = f"no {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{path}: cannot be read ({kind}; {path.stat().st_size} bytes)") from None


def _kind(image: Image.Image, raw: str) -> str:
    """The mode, as it is stored where Pillow would keep 8 of 16 bits."""
    return raw if ";16" in raw and ";" not in image.mode else image.mode


def _refuse_animation(path: Path, image: Image.Image) -> None:
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a photograph with its preview
        raise DataError(f"{path}: several images in one file ({image.format}); accepted are files of one")


def orientation(image: Image.Image) -> int:
    """How viewers turn an image, by EXIF's numbers; 1, upright, where it does not say, or nothing that is known."""
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in range(1, 9) else 1


def _upright(path: Path, image: Image.Image, turned: int, exif: Exif) -> Image.Image:
    if exif == "rotate":
        return ImageOps.exif_transpose(image)
    if exif == "ignore" and image.format != "TIFF":  # which Pillow turns when it loads
        return image
    raise DataError(
        f"{path}: its EXIF orientation is {turned}: viewers show it turned, whether its mask is, too, nobody knows. In "
        "the data set's config, exif: rotate is right for masks that fit the image as it is shown"
        + ("" if image.format == "TIFF" else ", exif: ignore for those that fit the pixels as they are stored")
    )
