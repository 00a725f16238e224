"""CIFAR-10 and CIFAR-100: images of 32 x 32. Files for Python and binary ones are both read as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from classyseg.console import MAX_NAME, printable
from classyseg.datasets.classification_dataset import ClassificationDataset
from classyseg.datasets.label_map import label_table
from classyseg.errors import DataError, within
from classyseg.io import data_folder
from classyseg.pickled import containers, read_pickle, steps_of
from classyseg.pickled_arrays import ARRAY_CONSTRUCTORS, PickledArray
from classyseg.registry import DATASETS, TransformConfig
from classyseg.structures import Sample

IMAGE_BYTES = 3 * 32 * 32
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = label_table("cifar100")[1]
CIFAR100_COARSE = label_table("cifar100_coarse")[1]


class _Cifar(ClassificationDataset):
    """Images (N, 3, 32, 32) and their labels, held in memory."""

    def __init__(
        self, root: str, names: Sequence[str], keys: tuple[str, ...], column: int, transforms: Sequence[Any]
    ) -> None:
        """`keys` are those of labels in pickles, in the order of label bytes in binary files; `column` is the one
        taken."""
        with within("root"):
            folder = data_folder(root)
            parts = [_read(folder / name, keys, column) for name in names]
        super().__init__(transforms)
        self.images = torch.cat([images for images, _ in parts])
        self.labels = [label for _, labels in parts for label in labels]
        self.places = [
            f"{folder / name} {i}" for name, part in zip(names, parts, strict=True) for i in range(len(part[1]))
        ]

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Sample:
        return Sample(self.images[index].clone(), torch.tensor(self.labels[index]), self.places[index])


@DATASETS.register("cifar10")
class Cifar10(_Cifar):
    """`root/data_batch_1` to `5` and `test_batch`, as published for Python, or with `.bin`, as published for C.

    CIFAR-10, 10 classes, 32 x 32.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        split: `train` or `test`.
        root: The folder of the batches, for Python or binary.
        transforms: Transforms.
    """

    classes = CIFAR10

    def __init__(
        self,
        *,
        split: Literal["train", "test"],
        root: str = "cifar-10-batches-py",
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
        super().__init__(root, names, ("labels",), 0, transforms)


@DATASETS.register("cifar100")
class Cifar100(_Cifar):
    """`root/train` and `test`, as published for Python, or with `.bin`, as published for C.

    `labels` are the 100 `fine` ones, or the 20 `coarse` ones; a coarse one holds 5 fine ones.

    CIFAR-100, 32 x 32.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        split: `train` or `test`.
        labels: `fine`: 100 classes; `coarse`: 20.
        root: The folder of the two files, for Python or binary.
        transforms: Transforms.
    """

    classes: tuple[str, ...]

    def __init__(
        self,
        *,
        split: Literal["train", "test"],
        labels: Literal["fine", "coarse"] = "fine",
        root: str = "cifar-100-python",
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        self.classes = CIFAR100 if labels == "fine" else CIFAR100_COARSE
        keys = ("coarse_labels", "fine_labels")
        super().__init__(root, [split], keys, keys.index(f"{labels}_labels"), transforms)


def _read(path: Path, keys: tuple[str, ...], column: int) -> tuple[Tensor, list[int]]:
    """The images (N, 3, 32, 32) and labels of a file, which has the suffix `.bin` or none. Raises: `DataError`."""
    binary = path.with_name(f"{path.name}.bin")
    found = binary if binary.is_file() else path
    try:
        if found is binary:
            return _read_binary(np.fromfile(binary, np.uint8), len(keys), column)
        with path.open("rb") as file:
            steps = steps_of(path.stat().st_size)
            contents = read_pickle(file, {**containers(), **ARRAY_CONSTRUCTORS}, max_steps=steps)
        return _from_pickle(contents, keys[column])
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, nor with .bin") from None
    except OSError as error:
        raise DataError(f"{found}: cannot be read ({error.strerror})") from None
    except Exception as error:  # damaged pickles may raise anything; the message must name the file
        raise DataError(
            f"{found}: no file of CIFAR's images ({type(error).__name__}: {printable(str(error), MAX_NAME)})"
        ) from None


def _read_binary(content: npt.NDArray[np.uint8], label_bytes: int, column: int) -> tuple[Tensor, list[int]]:
    """Records of labels and an image."""
    if not content.size or content.size % (label_bytes + IMAGE_BYTES):
        raise ValueError(f"found {content.size} bytes; expected records of {label_bytes + IMAGE_BYTES}")
    records = content.reshape(-1, label_bytes + IMAGE_BYTES)
    return torch.from_numpy(records[:, label_bytes:].copy()).view(-1, 3, 32, 32), records[:, column].tolist()


def _from_pickle(contents: Any, key: str) -> tuple[Tensor, list[int]]:
    """Reads Python 2's `{"data": array (N, 3072), key: list}`; in rewritten files, keys are bytes."""
    if not isinstance(contents, dict):
        raise ValueError(f"found a {type(contents).__name__}; expected a dict with data and {key}")
    items = {name.decode("latin1") if isinstance(name, bytes) else name: value for name, value in contents.items()}
    data, labels = items.get("data"), items.get(key)
    if not isinstance(data, PickledArray) or not isinstance(labels, list):
        raise ValueError(f"found {', '.join(map(str, items))[:100] or 'nothing'}; expected an array data, a list {key}")
    images = data.tensor()
    if images.dtype != torch.uint8 or images.shape != (len(labels), IMAGE_BYTES):
        raise ValueError(f"found images {tuple(images.shape)} of {images.dtype} for {len(labels)} labels")
    if not all(type(label) is int for label in labels):
        raise ValueError("found labels that are no whole numbers")
    return images.view(-1, 3, 32, 32), labels
