"""The base of data sets that store an image file and a mask file for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.files import Bits, read_image, read_mask_values
from classyseg.datasets.label_map import LabelMap
from classyseg.datasets.pairs import Pair
from classyseg.structures import Sample


class MaskFiles(ClassyDataset):
    """Pairs of an image file and a mask file; `label_map` says which label the values in the masks stand for."""

    label_map: LabelMap = LabelMap({}, others_stay=True)
    channels: int = 3
    bits: Bits = 8

    def __init__(self, pairs: Sequence[Pair], transforms: Sequence[Any] = ()) -> None:
        super().__init__(transforms)
        self.pairs = list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> Sample:
        image, mask = self.pairs[index]
        return Sample(self.read_image(image), self.labels(index), str(mask))

    def files(self, index: int) -> tuple[Path, ...]:
        return self.pairs[index]

    def read_image(self, path: Path) -> Tensor:
        """An image file, (C, H, W) uint8 or uint16. Raises: `DataError`, naming the file."""
        return read_image(path, channels=self.channels, bits=self.bits, exif=self.exif)

    def labels(self, index: int) -> Tensor:
        """The labels of sample `index`, (H, W), uint8 or int64. Raises: `DataError`, naming the file."""
        return self.read_labels(self.pairs[index][1])

    def read_labels(self, path: Path) -> Tensor:
        """The labels of a mask file, (H, W), uint8 or int64. Raises: `DataError`, naming the file."""
        return self.label_map(read_mask_values(path), path)
