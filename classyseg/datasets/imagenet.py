"""ImageNet-1k: 1000 classes in folders that are named after WordNet's synsets."""

from __future__ import annotations

from typing import Literal

from classyseg.config import within
from classyseg.datasets.class_folders import labelled_files
from classyseg.datasets.classification_dataset import LabelledFiles
from classyseg.datasets.label_map import label_table
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig

SYNSETS, CLASSES, _ = label_table("imagenet")
LABELS = {f"n{number:08}": label for label, number in enumerate(SYNSETS)}


@DATASETS.register("imagenet")
class ImageNet(LabelledFiles):
    """`root/train/n01440764/*.JPEG` and so on, and `root/val/n01440764/*.JPEG`.

    A class has the same label where some folders are missing: that of the 1000 in the order of their synsets, which
    published weights have.

    Source: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.
    """

    classes = CLASSES

    def __init__(
        self, *, split: Literal["train", "val"], root: str = "imagenet", transforms: tuple[TransformConfig, ...] = ()
    ) -> None:
        with within("root"):
            folder = data_folder(root)
            files = labelled_files(data_folder(str(folder / split)), LABELS)
        super().__init__(files, transforms)
