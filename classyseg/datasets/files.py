"""Reading images and masks from files with Pillow, so that a wrong file is named with what was found in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from classyseg.config import DataError
from classyseg.datasets.classy_dataset import image_tensor
from classyseg.datasets.mat_files import read_mat

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
MASK_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")
COLOR_MODES = ("RGB", "RGBA", "RGBX", "P")


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        kind = "no image that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{path}: cannot be read ({kind}; {path.stat().st_size} bytes)") from None
    return image


def read_image(path: Path) -> Tensor:
    """The image as (3, H, W) uint8. Raises: `DataError` for unreadable files and for more than 8 bits a channel."""
    image = _open(path)
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{path}: an image of mode {image.mode}; accepted are images of 8 bits a channel")
    return image_tensor(np.asarray(image.convert("RGB")))


def read_mask_values(path: Path) -> npt.NDArray[Any]:
    """The mask's values, or the indices into its palette, as (H, W) integers of the file's type; never rescaled.

    A `.mat` file of Pascal's extensions is read, too, where scipy is installed. Raises: `DataError` for unreadable
    files, for colour images, and for JPEG, which does not keep labels.
    """
    if path.suffix == ".mat":
        return read_mat(path)
    image = _open(path)
    _refuse_jpeg(path, image)
    if image.mode not in MASK_MODES:
        raise DataError(
            f"{path}: a mask of mode {image.mode}; accepted are images of one channel or with a palette, "
            "whose values are class indices"
        )
    values = np.asarray(image)
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def read_colors(path: Path) -> npt.NDArray[np.int32]:
    """The colours of a mask as (H, W) numbers, 65536 R + 256 G + B; transparency is left out.

    Raises: `DataError` for unreadable files, for JPEG, which changes colours, and for images without colours.
    """
    image = _open(path)
    _refuse_jpeg(path, image)
    if image.mode not in COLOR_MODES:
        raise DataError(f"{path}: a mask of mode {image.mode}; accepted here are masks of colours (RGB, or a palette)")
    channels = np.asarray(image.convert("RGB")).astype(np.int32)
    return channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]


def _refuse_jpeg(path: Path, image: Image.Image) -> None:
    if image.format == "JPEG":
        raise DataError(
            f"{path}: a mask stored as JPEG, which changes labels; accepted are lossless index images, such as PNG"
        )
