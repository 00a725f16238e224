"""The base of data sets with mask files whose values, or colours, stand for labels that a file of the tool names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from classyseg.config import unknown
from classyseg.console import MAX_NAME, shown
from classyseg.datasets.annotations.annotated_images import class_colors
from classyseg.datasets.annotations.class_labels import BACKGROUND, Classes, ClassLabels, declared_names
from classyseg.datasets.classy_dataset import Palette, check_palette, color_from, color_of
from classyseg.datasets.facts import DataFacts
from classyseg.datasets.files.images import Bits, header_of, read_colors
from classyseg.datasets.files.lists import normal
from classyseg.datasets.files.masks import MaskFiles
from classyseg.datasets.files.pairs import ImageAndMask
from classyseg.datasets.label_map import LabelMap, UnknownValueError, color_text
from classyseg.structures import Sample

Empty = Literal["error", "background", "skip"]
"""The type of the key `empty`."""


class NamedMasks(MaskFiles):
    """Masks whose values, or colours, stand for labels; labels become classes as in the other data sets of annotations.

    A label called `background` is the background, whatever the key `background` calls it, unless `classes` or `ignore`
    names it.

    Args:
        classes: Names of the classes, which are also their labels in the files: `[car, road]`. Or the labels of each
            class: `{vehicle: [car, truck], road: [road]}`. Their order is that of the indices. null: the labels that
            the files name.
        background: The class of pixels without a label; it comes first, unless `classes` names it. null: these pixels
            are ignored.
        ignore: Labels whose pixels are ignored.
        ignore_index: The label of ignored pixels, which count neither in the loss nor in the meters.
        palette: The colour in which each class is shown, such as `["#000000", "#ff0000"]` (in quotes); without it those
            of the files, where these have some, or Pascal VOC's.
        channels: Of the images, as in `folder`.
        bits: Of a channel, as in `folder`.
    """

    def __init__(
        self,
        pairs: Sequence[ImageAndMask],
        labels: ClassLabels,
        named: Mapping[int, str],
        palette: Palette | None,
        channels: int,
        bits: Bits,
        transforms: Sequence[Any],
        *,
        of_colors: bool = False,
        ignored_too: bool = False,
    ) -> None:
        """`named` has the label of each value, or of each colour as `files.images.read_colors` numbers them.

        An image without a mask is background. With `ignored_too`, pixels of the value `ignore_index` are ignored,
        unless it has a label.
        """
        self.labels = labels
        self.classes = labels.classes
        self.ignore_index = labels.ignore_index
        self.channels = channels
        self.bits = bits
        found = {value: _index_of(label, labels) for value, label in named.items()}
        self._unnamed = {value: named[value] for value, index in found.items() if index is None}
        known = {value: index for value, index in found.items() if index is not None}
        if ignored_too and labels.ignore_index not in found:
            known[labels.ignore_index] = labels.ignore_index
        if of_colors:
            self.color_map = LabelMap(known, text=color_text)
            self.palette = class_colors(labels, {normal(name): color_of(f"{c:06x}") for c, name in named.items()})
        else:
            self.label_map = LabelMap(known)
        if palette is not None:
            self.palette = tuple(map(color_from, palette))
        super().__init__(pairs, transforms)
        self.has_masks = True

    @classmethod
    def facts_of(cls, config: Any) -> DataFacts:
        return replace(super().facts_of(config), classes=declared_names(config))

    @classmethod
    def check_config(cls, config: Any) -> None:
        if config.classes is None:
            return
        background = getattr(config, "background", None)
        labels = ClassLabels.of(config.classes, background, config.ignore, "file", config.ignore_index)
        if config.palette is not None:
            check_palette(config.palette, labels.classes)

    def told_size(self, index: int) -> tuple[int, int] | None:
        """The height and width of the mask of image `index`; None where there is none."""
        mask = self.pairs[index][1] if self.pairs else None
        header = None if mask is None else header_of(mask)[0]
        return None if header is None else (header.height, header.width)

    def load(self, index: int) -> Sample:
        mask = self.pairs[index][1]
        if mask is not None:
            return super().load(index)
        image = self.load_image(index)
        dtype = torch.uint8 if 0 <= self.labels.rest <= 255 else torch.int64
        return Sample(image, torch.full(image.shape[-2:], self.labels.rest, dtype=dtype), str(self.pairs[index][0]))

    def load_target(self, index: int) -> Tensor:
        return self.load(index).target if self.pairs[index][1] is None else super().load_target(index)

    def read_labels(self, path: Path) -> Tensor:
        try:
            return super().read_labels(path) if self.color_map is None else self.color_map(read_colors(path), path)
        except UnknownValueError as error:
            raise self.explained(error, path) from None

    def explained(self, error: UnknownValueError, place: object) -> UnknownValueError:
        """An error of a label map; it tells the label, if a value has one that no key of the config names."""
        for value, count in error.pixels.items():
            if value in self._unnamed:
                label = self._unnamed[value]
                known = list(self.labels.indices)
                message = (
                    f"its mask holds the label {shown(label, MAX_NAME)} ({count} pixels), "
                    f"{unknown('to the data set', label, known)} Name it in `classes`, or in `ignore`"
                )
                return UnknownValueError(message, error.pixels, place)
        return error


def foreground(names: Iterable[str]) -> list[str]:
    """Labels without the background."""
    return [name for name in names if name.casefold() != BACKGROUND]


def class_labels(
    classes: Classes,
    background: str | None,
    ignore: tuple[str, ...],
    ignore_index: int,
    names: Iterable[str],
) -> ClassLabels:
    """The classes of masks whose labels are `names`. Raises: `ConfigError`."""
    return ClassLabels.of(classes, background, ignore, "file", ignore_index, found=foreground(names))


def _index_of(label: str, labels: ClassLabels) -> int | None:
    """The class of a label, or the ignored one; None for a label that no key names."""
    found = labels.indices.get(normal(label))
    return labels.rest if found is None and label.casefold() == BACKGROUND else found
