"""Labels as the content of a file: what `classyseg predict` writes, and what `classyseg serve` answers."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from classyseg.errors import ConfigError

Palette = Sequence[tuple[int, int, int]]
COMPRESSION = 3
"""zlib's level, of nine: a label map takes a third of the default level's time, and a tenth more bytes."""


def flag_palette(color: tuple[int, int, int]) -> Palette:
    """Of a file that tells where pixels have a class: 0 is black, 1 has the class's colour."""
    return (0, 0, 0), color


def label_image(labels: npt.NDArray[Any], palette: Palette) -> Image.Image:
    """Labels (H, W) as an image with the palette; of 16 bits if it has more than 256 colours."""
    check_num_classes(palette)
    if len(palette) > 256:
        return Image.fromarray(np.ascontiguousarray(labels, np.uint16))
    image = Image.fromarray(np.ascontiguousarray(labels, np.uint8), "P")
    image.putpalette(np.array(palette, np.uint8).tobytes())
    return image


def check_num_classes(palette: Palette) -> None:
    """Raises: `ConfigError` for more classes than a file of labels holds."""
    if len(palette) > 2**16:
        raise ConfigError(f"found {len(palette)} classes; files of labels hold up to {2**16}")


def label_png(labels: npt.NDArray[Any], palette: Palette) -> bytes:
    """Labels (H, W) as the values of a PNG with the palette, of 16 bits for more than 256 classes."""
    image = label_image(labels, palette)
    return encoded(image, "PNG", compress_level=COMPRESSION, **({"bits": 8} if image.mode == "P" else {}))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The content of an image's file."""
    content = BytesIO()
    image.save(content, form, **options)
    return content.getvalue()
