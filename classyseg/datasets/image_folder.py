"""Images in one folder for each class: what most people have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from classyseg.datasets.classification_dataset import LabelledFiles
from classyseg.datasets.files.class_folders import class_names, labelled_files
from classyseg.datasets.label_map import labels_of
from classyseg.errors import within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig


@DATASETS.register("image_folder")
class ImageFolder(LabelledFiles):
    """`root/CLASS/**/*.jpg`: the classes are the folders' names, sorted, as in torchvision's `ImageFolder`.

    `classes` gives them another order, or more of them than this part of the data has.

    Args:
        root: The folder of the classes' folders.
        classes: The folders' names in the order of the labels; null: all folders, sorted.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        root: str,
        classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(root)
        self.classes = class_names(folder) if classes is None else tuple(classes)
        super().__init__(labelled_files(folder, labels_of(self.classes)), transforms)
