"""Reading images and masks from files with Pillow, so that a wrong file is named with what was found in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from classyseg.config import DataError
from classyseg.datasets.classy_dataset import image_tensor

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
MASK_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")


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


def read_mask(path: Path) -> Tensor:
    """The mask's values, or the indices into its palette, as (H, W) int64; never rescaled.

    Raises: `DataError` for unreadable files, for colour images, and for JPEG, which does not keep labels.
    """
    image = _open(path)
    if image.format == "JPEG":
        raise DataError(
            f"{path}: a mask stored as JPEG, which changes labels; accepted are lossless index images, such as PNG"
        )
    if image.mode not in MASK_MODES:
        raise DataError(
            f"{path}: a mask of mode {image.mode}; accepted are images of one channel or with a palette, "
            "whose values are class indices"
        )
    return torch.from_numpy(np.asarray(image).astype(np.int64))
