"""Labels of an image of any size: its file is read in windows, and its labels come in bands of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from classyseg.datasets.files.images import Bits
from classyseg.datasets.files.rasters import Window, raster_of, read_image_window, reads_windows
from classyseg.errors import ConfigError, DataError
from classyseg.inference.budget import BYTES_OF_IMAGES, Choice
from classyseg.inference.classy_protocol import Wanted
from classyseg.inference.finish import Bands
from classyseg.inference.memory import BudgetError
from classyseg.inference.rows import Rows, Size

if TYPE_CHECKING:
    from classyseg.inference.predictor import Predictor

ROWS_AT_ONCE = 64
WINDOW: Size = (512, 512)
"""The windows where nobody says how large the images of the training were."""


class FileRows(Rows):
    """The normalised pixels of an image file, read row by row."""

    def __init__(self, path: Path, channels: int, bits: Bits | None, normalized: Callable[[Tensor], Tensor]) -> None:
        super().__init__(channels, raster_of(path).size)
        self.path, self.bits, self.normalized = path, bits, normalized

    def rows(self, first: int, stop: int) -> Tensor:
        parts: list[Tensor] = []
        for top in range(first, stop, ROWS_AT_ONCE):  # the copies that normalising makes are of few rows
            window = Window(top, 0, min(ROWS_AT_ONCE, stop - top), self.size[1])
            image, _ = read_image_window(self.path, window, channels=self.channels, bits=self.bits)
            part = self.normalized(image[None])[0]
            if not parts:
                parts.append(part.new_empty(self.channels, stop - first, self.size[1]))
            parts[0][:, top - first : top - first + window.height] = part
        return parts[0]

    def bytes_for(self, count: int) -> int:
        return super().bytes_for(count + 3 * ROWS_AT_ONCE)


def reads_in_bands(predictor: Predictor, path: Path) -> bool:
    """Whether the labels of an image are made band by band: it is too large to be held, and of a kind that allows it.

    It is too large if it has more pixels than any image that is read as a whole, or if it alone takes more than
    `max_memory`. Labels of several classes of a pixel are not made so. Raises: `DataError` for a file that cannot be
    read.
    """
    if (
        predictor.multi_label
        or not predictor.network.gives_maps(predictor.head)
        or predictor.takes_clips
        or not reads_windows(path)
    ):
        return False
    height, width = raster_of(path).size
    if Image.MAX_IMAGE_PIXELS is not None and height * width > 2 * Image.MAX_IMAGE_PIXELS:
        return True
    taken = height * width * predictor.preparation.channels * BYTES_OF_IMAGES
    return predictor.max_memory is not None and taken > predictor.max_memory


@torch.no_grad()
def label_bands(predictor: Predictor, path: Path) -> Iterator[tuple[int, Tensor]]:
    """The labels of an image file, of any size, in bands from top to bottom: the first row, and labels (h, W).

    A protocol with windows gives the labels that it gives of the whole image. Where nobody named a protocol, the image
    is computed in windows of the size of the training's images, which `in_windows` counts. Raises: `ConfigError` for a
    protocol or a preparation that needs the whole image, `BudgetError`, `DataError`.
    """
    preparation = predictor.preparation
    bits: Bits | None = 32 if preparation.own_unit else None
    image = FileRows(path, preparation.channels, bits, predictor.normalized)
    if steps := preparation.changing(image.size):
        raise DataError(
            f"has {image.size[1]} x {image.size[0]} pixels, and this model's images pass through {steps[0]}, which "
            "needs all of an image; cut it into smaller ones",
            file=path,
        )
    choice, bands = _chosen(predictor, image)
    if choice.window is not None:
        is_first = not predictor.in_windows
        predictor.in_windows[choice.text] += 1
        if is_first:
            predictor.budget.warn(predictor.in_windows, " so far")
    for first, _, made in bands.pieces():
        for _, labels in made:
            yield first, labels


def _chosen(predictor: Predictor, image: FileRows) -> tuple[Choice, Bands]:
    """The protocol for an image, and its plan. Raises: `ConfigError`."""
    protocol, size, budget = predictor.protocol, image.size, predictor.max_memory
    wanted = [Wanted(predictor.head)]
    try:
        bands = protocol.in_bands(predictor.network, image, size, wanted, budget)
    except BudgetError:
        if not predictor.may_use_windows:
            raise
        bands = None
    if bands is not None:
        return Choice(protocol, None), bands
    window = predictor.train_size or WINDOW
    smaller = protocol.in_windows(window) if predictor.may_use_windows else None
    bands = None if smaller is None else smaller.in_bands(predictor.network, image, size, wanted, budget)
    if smaller is None or bands is None:
        raise ConfigError(
            "protocol",
            f"found {type(protocol).__name__}, which needs the whole image; accepted for an image of {size[1]} x "
            f"{size[0]} pixels: sliding_window",
        )
    return Choice(smaller, smaller.window_size or window), bands
