"""Images and clips with one class each: the base of such data sets, and of those with an image file for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.files.images import read_image
from classyseg.datasets.files.texts import Texts
from classyseg.errors import DataError
from classyseg.structures import Sample

NO_CLASS = -1


class ClassificationDataset(ClassyDataset):
    """Samples whose target is a class index, (), or `ignore_index` where the class is unknown.

    With `multi_label` it is a flag for each class, (num_classes,) float32: 1, 0, or `ignore_index` if that is unknown.
    `load` gives an image (C, H, W), or a clip (C, T, H, W), uint8.
    """

    ignore_index = NO_CLASS
    whole_images = True

    def _check(self, sample: Sample) -> None:
        if self.multi_label:
            self._check_flags(sample)
            return
        if sample.target.dim():
            raise DataError(
                f"its target has the shape {tuple(sample.target.shape)}; expected one class, ()", file=str(sample.name)
            )
        label = int(sample.target)
        if label != self.ignore_index and not 0 <= label < self.num_classes:
            raise DataError(
                f"its class is {label}; accepted: 0 to {self.num_classes - 1}, and {self.ignore_index} for no class",
                file=str(sample.name),
            )

    def _check_flags(self, sample: Sample) -> None:
        flags = sample.target
        if flags.shape != (self.num_classes,) or not flags.is_floating_point():
            raise DataError(
                f"its target has the shape {tuple(flags.shape)} and the type {flags.dtype}; expected a flag for each "
                f"class, ({self.num_classes},), in floating point",
                file=str(sample.name),
            )
        wrong = flags[(flags != 0) & (flags != 1) & (flags != self.ignore_index)]
        if len(wrong):
            raise DataError(
                f"its flags hold {wrong[0].item():g}; accepted: 0, 1, and {self.ignore_index} for unknown",
                file=str(sample.name),
            )


class LabelledFiles(ClassificationDataset):
    """Image files with the class of each, or with several, where `multi_label` is set before it is built."""

    channels = 3
    reads_apart = True

    def __init__(self, files: Sequence[tuple[str, Any]], transforms: Sequence[Any] = ()) -> None:
        """`files` are (path, label), or (path, labels)."""
        super().__init__(transforms)
        self.paths = Texts(path for path, _ in files)
        self.labels: npt.NDArray[Any]
        if self.multi_label:
            self.labels = np.zeros((len(files), self.num_classes), np.float32)
            for flags, (_, labels) in zip(self.labels, files, strict=True):
                flags[list(labels)] = 1
        else:
            self.labels = np.array([label for _, label in files], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def files(self, index: int) -> tuple[Path, ...]:
        return (Path(self.paths[index]),)

    def load(self, index: int) -> Sample:
        return Sample(self.load_image(index), self.load_target(index), self.paths[index])

    def load_image(self, index: int) -> torch.Tensor:
        return self.read_image(Path(self.paths[index]))

    def load_target(self, index: int) -> torch.Tensor:
        found = self.labels[index]
        return torch.from_numpy(found.copy()) if self.multi_label else torch.tensor(int(found))

    def _stored(self, index: int, epoch: int) -> Sample:
        """The stored sample with its current class: a list may have been corrected after the image was cached."""
        return super()._stored(index, epoch).replace(target=self.load_target(index))

    def read_image(self, path: Path) -> torch.Tensor:
        """An image file, (3, H, W) uint8. Raises: `DataError`, naming the file."""
        return read_image(path, exif=self.exif)
