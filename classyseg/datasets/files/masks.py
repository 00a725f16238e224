"""The base of data sets with an image file and a mask file for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.files.images import Bits, read_image, read_mask_values
from classyseg.datasets.files.pairs import ImageAndMask
from classyseg.datasets.label_map import LabelMap
from classyseg.structures import Sample


class MaskFiles(ClassyDataset):
    """Pairs of an image file and a mask file; `label_map` says which label the values in the masks stand for.

    Without masks (`has_masks` is False), every pixel is ignored: such images are for predicting.
    """

    replaced = {**ClassyDataset.replaced, "labels": "call it `load_target`, or write `read_labels(path)`"}
    label_map: LabelMap = LabelMap({}, others_stay=True)
    reads_apart = True
    channels: int = 3
    bits: Bits = 8

    def __init__(self, pairs: Sequence[ImageAndMask], transforms: Sequence[Any] = ()) -> None:
        super().__init__(transforms)
        self.pairs = list(pairs)
        self.has_masks = all(mask is not None for _, mask in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> Sample:
        path, mask = self.pairs[index]
        image = self.load_image(index)
        if mask is None:
            channels = (self.num_classes,) if self.has_flags else ()
            return Sample(image, torch.full((*channels, *image.shape[-2:]), self.ignore_index), str(path))
        return Sample(image, self.load_target(index), str(mask))

    def files(self, index: int) -> tuple[Path, ...]:
        return tuple(path for path in self.pairs[index] if path is not None)

    def mask_path(self, index: int) -> Path:
        """The mask of sample `index`. Raises: `ValueError` where there is none."""
        mask = self.pairs[index][1]
        if mask is None:
            raise ValueError(f"{self.pairs[index][0]} has no mask")
        return mask

    def load_image(self, index: int) -> Tensor:
        return self.read_image(self.pairs[index][0])

    def read_image(self, path: Path) -> Tensor:
        """An image file, (C, H, W) uint8, uint16 or float32. Raises: `DataError`, naming the file."""
        return read_image(path, channels=self.channels, bits=self.bits, exif=self.exif)

    def load_target(self, index: int) -> Tensor:
        """The labels of sample `index`, (H, W), uint8 or int64. Raises: `DataError`, naming the file."""
        return self.read_labels(self.mask_path(index))

    def read_labels(self, path: Path) -> Tensor:
        """The labels of a mask file, (H, W), uint8 or int64. Raises: `DataError`, naming the file."""
        return self.label_map(read_mask_values(path), path)
