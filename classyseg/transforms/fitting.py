"""Sizes that keep an image's ratio: into a box, or by the lengths of its sides."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from classyseg.errors import ConfigError
from classyseg.transforms.pixels import Side, height_and_width

Positive = Annotated[float, Field(gt=0, le=10_000)]
Box = tuple[Side, Side]


class Fitting:
    """The factor that fits an image to the options that several transforms share; 1 if they are null.

    `fit` is a height and a width that the image fills in one direction. `shorter_side` and `longer_side` are lengths of
    those sides; with both, the image is as large as it can be with neither side longer. Raises: `ConfigError` for
    `fit` together with one of the others.
    """

    def __init__(self, fit: Box | None, shorter_side: int | None, longer_side: int | None) -> None:
        if fit is not None and (shorter_side is not None or longer_side is not None):
            raise ConfigError("fit", "give either 'fit', or 'shorter_side' or 'longer_side' (or both of these)")
        self.box = None if fit is None else height_and_width(fit, "fit")
        self.shorter_side, self.longer_side = shorter_side, longer_side

    def __bool__(self) -> bool:
        """Whether there is something to fit to."""
        return any(option is not None for option in (self.box, self.shorter_side, self.longer_side))

    def factor(self, height: int, width: int) -> float:
        """What an image of `height` x `width` is multiplied by."""
        if self.box is not None:
            return min(self.box[0] / height, self.box[1] / width)
        wanted = (self.shorter_side, min(height, width)), (self.longer_side, max(height, width))
        return min((side / length for side, length in wanted if side is not None), default=1.0)


def scaled(height: int, width: int, factor: float) -> tuple[int, int]:
    """The size of an image of `height` x `width` times `factor`, in whole pixels."""
    return max(1, round(height * factor)), max(1, round(width * factor))
