"""The base of data sets whose masks are drawn from annotated objects."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from classyseg.console import shown
from classyseg.datasets.annotations.class_labels import ClassLabels, declared_names
from classyseg.datasets.annotations.patches import Annotation
from classyseg.datasets.classy_dataset import ClassyDataset, Palette, check_palette, color_from
from classyseg.datasets.facts import DataFacts
from classyseg.datasets.files.images import Bits, header_of, read_image
from classyseg.datasets.files.pairs import ImageAndMask
from classyseg.datasets.label_map import BACKGROUNDS
from classyseg.datasets.splits import Split, refuse_of, take_part
from classyseg.errors import ConfigError, DataError
from classyseg.structures import Color, Sample

MAX_PIXELS = 178_956_970
"""What an annotated image may have, as in reading images."""


class AnnotatedImages(ClassyDataset):
    """Images whose objects a file of annotations has. Each object has a label; labels become classes.

    A subclass finds pairs of an image and the file that annotates it (None where nothing does), and the `ClassLabels`
    of its config, and gives both to `super().__init__`. It gives `annotation` for one image. A label that no key names
    is an error.

    Args:
        classes: Names of the classes, which are also their labels in the files: `[car, road]`. Or the labels of each
            class: `{vehicle: [car, truck], road: [road]}`. Their order is that of the indices. null: the labels that
            the files name.
        background: The class of pixels without an object; it comes first, unless `classes` names it. null: these pixels
            are ignored.
        ignore: Labels whose pixels are ignored.
        order: Where objects overlap. `file`: later objects cover earlier ones. `area`: smaller ones cover larger ones.
            Or a list of classes: the last one is on top, ignored labels cover all, and classes that it does not name
            lie below.
        ignore_index: The label of ignored pixels, which count neither in the loss nor in the meters.
        palette: The colour in which each class is shown, such as `["#000000", "#ff0000"]` (in quotes); without it those
            of the files, where these have some, or Pascal VOC's.
        channels: Of the images, as in `folder`.
        bits: Of a channel, as in `folder`.
    """

    reads_apart = True
    draws_masks = True
    channels: int = 3
    bits: Bits = 8
    _sizes: Sequence[tuple[int, int] | None] = ()
    """The height and width of each image that the file of annotations says, where one file says all."""

    def __init__(
        self,
        pairs: Sequence[ImageAndMask],
        labels: ClassLabels,
        palette: Palette | None,
        channels: int,
        bits: Bits,
        transforms: Sequence[Any],
        *,
        colors: Mapping[str, Color] | None = None,
    ) -> None:
        self.pairs = list(pairs)
        self.labels = labels
        self.classes = labels.classes
        self.ignore_index = labels.ignore_index
        self.channels = channels
        self.bits = bits
        self.palette = class_colors(labels, colors or {}) if palette is None else tuple(map(color_from, palette))
        super().__init__(transforms)

    @classmethod
    def facts_of(cls, config: Any) -> DataFacts:
        return replace(super().facts_of(config), classes=declared_names(config))

    @classmethod
    def check_config(cls, config: Any) -> None:
        if config.classes is None:  # `order` and `ignore_index` are checked when the files have told the classes
            return
        labels = ClassLabels.of(config.classes, config.background, config.ignore, config.order, config.ignore_index)
        if config.palette is not None:
            check_palette(config.palette, labels.classes)

    def told_size(self, index: int) -> tuple[int, int] | None:
        """The height and width that the annotations of image `index` say; None where they say none."""
        return self._sizes[index] if self._sizes else None

    @abstractmethod
    def annotation(self, index: int) -> Annotation:
        """What is annotated in image `index`. Raises: `DataError` that names the file."""

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> tuple[Path, ...]:
        return tuple(path for path in self.pairs[index] if path is not None)

    def load(self, index: int) -> Sample:
        image, target = self.load_image(index), self.load_target(index)
        path, annotated = self.pairs[index]
        if image.shape[-2:] != target.shape:
            raise DataError(
                f"says that {shown(path.name)} is {target.shape[1]} x {target.shape[0]} pixels, but {path} is "
                f"{image.shape[-1]} x {image.shape[-2]}; they must be of one size",
                file=annotated or path,
            )
        return Sample(image, target, str(path))

    def load_image(self, index: int) -> Tensor:
        return read_image(self.pairs[index][0], channels=self.channels, bits=self.bits, exif=self.exif)

    def load_target(self, index: int) -> Tensor:
        path, annotated = self.pairs[index]
        file = annotated or path
        annotation = self.annotation(index)
        height, width = annotation.height, annotation.width
        if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
            raise DataError(
                f"says that its image has {width} x {height} pixels; accepted are up to {MAX_PIXELS:,}", file=file
            )
        try:
            return torch.from_numpy(self.labels.draw(annotation.objects, height, width))
        except DataError as error:
            raise DataError(str(error), file=file) from None

    def shown_size(self, path: Path) -> tuple[int, int]:
        """The height and width of an image file as this data set reads it, from its header. Raises: `DataError`."""
        header, turned = header_of(path)
        swapped = turned >= 5 and self.exif == "rotate"
        return (header.width, header.height) if swapped else (header.height, header.width)


def class_colors(labels: ClassLabels, colors: Mapping[str, Color]) -> tuple[Color, ...]:
    """The colour of the first label of each class, and black for a background, if all others have one; else none."""
    found: dict[int, Color] = {}
    for label, index in labels.indices.items():
        if label in colors:
            found.setdefault(index, colors[label])
    for index, name in enumerate(labels.classes):
        if name.lower() in BACKGROUNDS or index == labels.rest:
            found.setdefault(index, (0, 0, 0))
    every = range(len(labels.classes))
    return tuple(found[index] for index in every) if all(index in found for index in every) else ()


def part_of(items: Sequence[Any], images: Sequence[Path], split: Split | None, folder: Path) -> list[Any]:
    """The `items` whose `images` are in the part `split` of the files in `folder`: all, without a split.

    Raises: `ConfigError` for the name of a part, also in `of`: these files name none.
    """
    if isinstance(split, str):
        raise ConfigError(
            "split", f"found {shown(split)}, but its files name no parts; accepted: {{part: train, val: 0.2}}"
        )
    if split is None:
        return list(items)
    refuse_of(split)
    return take_part(items, images, split, folder)


def no_labels(what: object) -> ConfigError:
    """The error where neither the config nor the files name a class."""
    return ConfigError("classes", f"missing, and {what} names no label; name the classes")
