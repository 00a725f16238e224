"""The base of data sets with an image file and a mask file for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.files.images import Bits, Exif, TooLargeFileError, read_image, read_mask_values
from classyseg.datasets.files.pairs import ImageAndMask, report_fault
from classyseg.datasets.files.rasters import (
    CONVERT,
    Window,
    read_image_window,
    read_mask_window,
    reads_windows,
    size_of_image,
)
from classyseg.datasets.files.tiles import Tile, Tiles, TilesConfig
from classyseg.datasets.label_map import LabelMap
from classyseg.errors import DataError
from classyseg.rng import generator_for
from classyseg.structures import Sample

TILES = -3
"""The last integer of the generator that draws the tiles of a training."""


class MaskFiles(ClassyDataset):
    """Pairs of an image file and a mask file; `label_map` says which label the values in the masks stand for.

    Without masks (`has_masks` is False), every pixel is ignored: such images are for predicting. With `tiles`, samples
    are tiles of the images.
    """

    replaced = {**ClassyDataset.replaced, "labels": "call it `load_target`, or write `read_labels(path)`"}
    label_map: LabelMap = LabelMap({}, others_stay=True)
    reads_apart = True
    channels: int = 3
    bits: Bits = 8

    def __init__(
        self, pairs: Sequence[ImageAndMask], transforms: Sequence[Any] = (), tiles: TilesConfig | None = None
    ) -> None:
        super().__init__(transforms)
        self.pairs = list(pairs)
        self.has_masks = all(mask is not None for _, mask in self.pairs)
        self.samples_are_parts = tiles is not None
        self._tiling = tiles
        self._tiles: Tiles | None = None
        self._last: dict[str, tuple[Path, Tensor]] = {}

    @property
    def tiles(self) -> Tiles | None:
        """The tiles of all images. The first look reads the sizes of the files.

        Raises: `DataError` for files that cannot be read, and for a mask of another size than its image.
        """
        if self._tiles is None and self._tiling is not None:
            self._tiles = self._tiles_of(self._tiling)
        return self._tiles

    def _tiles_of(self, tiling: TilesConfig) -> Tiles:
        sizes: list[tuple[int, int]] = []
        kept: list[ImageAndMask] = []
        for image, mask in self.pairs:
            size = _size_of(image, self.exif, "image_unreadable")
            found = size if mask is None else _size_of(mask, "refuse", "mask_unreadable")
            if size is None or found is None:
                continue
            if found != size:
                text = f"{mask}: the mask is {found[1]} x {found[0]} pixels, its image {image} {size[1]} x {size[0]}"
                report_fault("size_mismatch", f"{text}; they must be of one size", [str(mask)])
                continue
            sizes.append(size)
            kept.append((image, mask))
        self.pairs = kept
        height, width = tiling.sides
        if sizes and all(size[0] >= height and size[1] >= width for size in sizes):
            self.image_size = (height, width)
        return Tiles(tiling, sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last": {}}

    def __len__(self) -> int:
        return len(self.pairs) if self.tiles is None else len(self.tiles)

    def load(self, index: int) -> Sample:
        if self.tiles is not None:
            return self._load_tile(self.tiles.tile(index))
        path, mask = self.pairs[index]
        image = self.load_image(index)
        if mask is None:
            channels = (self.num_classes,) if self.has_flags else ()
            return Sample(image, torch.full((*channels, *image.shape[-2:]), self.ignore_index), str(path))
        return Sample(image, self.load_target(index), str(mask))

    def files(self, index: int) -> tuple[Path, ...]:
        return tuple(path for path in self._pair(index) if path is not None)

    def mask_path(self, index: int) -> Path:
        """The mask of sample `index`. Raises: `ValueError` where there is none."""
        image, mask = self._pair(index)
        if mask is None:
            raise ValueError(f"{image} has no mask")
        return mask

    def _pair(self, index: int) -> ImageAndMask:
        return self.pairs[index if self.tiles is None else self.tiles.number_of(index)]

    def load_image(self, index: int) -> Tensor:
        if self.tiles is not None:
            return self._image_of(self.tiles.tile(index))[0]
        return self.read_image(self.pairs[index][0])

    def read_image(self, path: Path) -> Tensor:
        """An image file, (C, H, W) uint8, uint16 or float32. Raises: `DataError`, naming the file."""
        return read_image(path, channels=self.channels, bits=self.bits, exif=self.exif)

    def load_target(self, index: int) -> Tensor:
        """The labels of sample `index`, (H, W), uint8 or int64. Raises: `DataError`, naming the file."""
        if self.tiles is not None:
            return self._load_tile(self.tiles.tile(index), only_labels=True).target
        return self.read_labels(self.mask_path(index))

    def read_labels(self, path: Path) -> Tensor:
        """The labels of a mask file, (H, W), uint8 or int64. Raises: `DataError`, naming the file."""
        return self.label_map(read_mask_values(path), path)

    # -- tiles ---------------------------------------------------------------------------------------------------------

    def read_label_window(self, path: Path, window: Window) -> Tensor:
        """A window of the labels of a mask that is read in windows."""
        return self.label_map(read_mask_window(path, window), path)

    def unit_ends(self) -> Sequence[int]:
        """A part of the data set never splits an image: its tiles show parts of each other."""
        return super().unit_ends() if self.tiles is None else self.tiles.ends

    def image_of(self, index: int) -> tuple[int, tuple[int, int]] | None:
        if self.tiles is None:
            return None
        number = self.tiles.number_of(index)
        return number, self.tiles.sizes[number]

    def counted_part(self, index: int) -> tuple[slice, slice] | None:
        return None if self.tiles is None else self.tiles.tile(index).counted.slices

    def described(self, index: int) -> str:
        found = super().described(index)
        return found if self.tiles is None else f"{found}, tile {_place(self.tiles.tile(index).window)}"

    def draw(self, index: int, epoch: int) -> Sample:
        if self.tiles is None or not self.for_training:
            return self.load(index)
        return self._load_tile(self._drawn(index, epoch))

    def _drawn(self, index: int, epoch: int) -> Tile:
        assert self.tiles is not None
        return self.tiles.drawn(index, generator_for(self.seed, epoch, index, TILES))

    def without_label(self, index: int, epoch: int) -> Sample:
        if self.tiles is None:
            return super().without_label(index, epoch)
        tile = self._drawn(index, epoch) if self.for_training else self.tiles.tile(index)
        image, missing = self._image_of(tile)
        target = torch.full(image.shape[-2:], 0 if self.ignore_index else 1, dtype=self._label_type)
        if missing is not None:
            target[missing] = self.ignore_index
        return Sample(image, target, f"{self.pairs[tile.number][0]} {_place(tile.window)}")

    def _load_tile(self, tile: Tile, *, only_labels: bool = False) -> Sample:
        """A tile; what does not count in it is ignored, and pixels without data, too. The image may be left out."""
        path, mask = self.pairs[tile.number]
        window, counted = tile.window, tile.counted
        name = f"{mask or path} {_place(window)}"
        image, missing = torch.empty(0), None
        if not only_labels or (self._tiling and self._tiling.nodata is not None):
            image, missing = self._image_of(tile)
        if mask is None:
            return Sample(image, torch.full((window.height, window.width), self.ignore_index), name)
        labels = self._labels_of(mask, tile)
        if missing is None and (counted.height, counted.width) == (window.height, window.width):
            return Sample(image, labels, name)
        type_ = self._label_type if labels.dtype == torch.uint8 else labels.dtype
        target = torch.full(labels.shape, self.ignore_index, dtype=type_)
        target[counted.slices] = labels[counted.slices].to(type_)
        if missing is not None:
            target[missing] = self.ignore_index
        return Sample(image, target, name)

    def _image_of(self, tile: Tile) -> tuple[Tensor, Tensor | None]:
        """The pixels of a tile, and which of them have no data; None: no such."""
        path, nodata = self.pairs[tile.number][0], self._tiling.nodata if self._tiling else None
        if reads_windows(path):
            image, empty = read_image_window(path, tile.window, channels=self.channels, bits=self.bits, nodata=nodata)
            return image, None if empty is None else torch.from_numpy(empty)
        whole = self._whole("image", tile.number, path)
        image = whole[:, *tile.window.slices]
        missing = None if nodata is None or nodata == "file" else torch.from_numpy((image.numpy() == nodata).all(0))
        return image.clone(), missing

    def _labels_of(self, path: Path, tile: Tile) -> Tensor:
        if reads_windows(path):
            return self.read_label_window(path, tile.window)
        return self._whole("mask", tile.number, path)[tile.window.slices].clone()

    def _whole(self, kind: str, number: int, path: Path) -> Tensor:
        """A file that is not read in windows: the last one is kept, others are decoded anew, or read from the cache."""
        last = self._last.get(kind)
        if last is not None and last[0] == path:
            return last[1]
        self._last.pop(kind, None)  # before memory is taken for the next
        key = None if self.cache is None else self.cache.key(number, (path,))
        found = None if self.cache is None else self.cache.read(key)
        if found is None:
            try:
                tensor = self.read_image(path) if kind == "image" else self.read_labels(path)
            except TooLargeFileError as error:
                raise error.advise(f"TIFF and .npy of any size are read in windows: {CONVERT}") from None
            if self.cache is not None:
                self.cache.store(key, Sample(tensor, torch.zeros((), dtype=torch.uint8), str(path)))
        else:
            tensor = found.image
        assert self.tiles is not None
        if tuple(tensor.shape[-2:]) != self.tiles.sizes[number]:
            height, width = self.tiles.sizes[number]
            found_size = f"{tensor.shape[-1]} x {tensor.shape[-2]}"
            raise DataError(f"has {found_size} pixels, where its header says {width} x {height}", file=str(path))
        self._last[kind] = (path, tensor)
        return tensor


def _size_of(path: Path, exif: Exif, kind: str) -> tuple[int, int] | None:
    """Height and width of a file; None if it cannot be read and such faults are collected."""
    try:
        return size_of_image(path, exif)
    except DataError as error:
        report_fault(kind, str(error), [str(path)])
        return None


def _place(window: Window) -> str:
    """Where a tile lies, for messages."""
    bottom, right = window.top + window.height - 1, window.left + window.width - 1
    return f"(rows {window.top} to {bottom}, columns {window.left} to {right})"
