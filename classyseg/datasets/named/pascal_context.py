"""Pascal-Context: 59 classes of things and stuff on the images of Pascal VOC 2010."""

from __future__ import annotations

from typing import Literal

from classyseg.config import user_path
from classyseg.datasets.files.images import MASK_SUFFIXES
from classyseg.datasets.files.masks import MaskFiles
from classyseg.datasets.files.matlab import require_scipy
from classyseg.datasets.files.pairs import listed_pairs, read_names
from classyseg.datasets.label_map import LabelMap, label_table
from classyseg.errors import within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig

FULL_LABELS, CLASSES, _ = label_table("pascal_context")
NUM_FULL_LABELS = 459


@DATASETS.register("pascal_context")
class PascalContext(MaskFiles):
    """Pascal-Context: images and lists of `root`, masks of `root/masks`, by name.

    `mask_values: full` means the 459 labels as published (`.mat`, which scipy reads, or 16-bit PNG). `classes` means 0
    for the background and 1 to 59 in alphabetical order, as here: converters for PyTorch-Encoding and mmsegmentation
    write it. The background is ignored, or `with_background` class 0 of 60.

    Source: Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the Wild", CVPR
    2014.

    Args:
        split: The list `train`, `val` or `trainval`.
        masks: The folder of masks, in `root` or absolute.
        mask_values: `full`: the 459 labels as published; `classes`: 0 to 59 in alphabetical order.
        with_background: The background is class 0 of 60 and not ignored.
        lists: The folder of the lists, in `root`.
        root: The folder of the images.
        transforms: Transforms.
    """

    classes: tuple[str, ...]

    def __init__(
        self,
        *,
        split: Literal["train", "val", "trainval"],
        masks: str,
        mask_values: Literal["full", "classes"],
        with_background: bool = False,
        lists: str = "ImageSets/Main",
        root: str = "VOCdevkit/VOC2010",
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        self.classes = ("background", *CLASSES) if with_background else CLASSES
        offset = 1 if with_background else 0
        background = 0 if with_background else self.ignore_index
        known = dict.fromkeys(range(NUM_FULL_LABELS + 1), background) if mask_values == "full" else {0: background}
        values = FULL_LABELS if mask_values == "full" else range(1, len(CLASSES) + 1)
        self.label_map = LabelMap(known | {value: i + offset for i, value in enumerate(values)})
        self.submission_values = tuple(range(1 - offset, len(CLASSES) + 1))
        with within("root"):
            folder = data_folder(root)
            names = read_names(folder / user_path(lists) / f"{split}.txt")
            images = data_folder(str(folder / "JPEGImages"))
        with within("masks"):
            mask_folder = data_folder(str(folder / user_path(masks)))
        pairs = listed_pairs(names, images, mask_folder, mask_suffixes=(".mat", *MASK_SUFFIXES))
        if pairs and pairs[0][1].suffix == ".mat":
            require_scipy(pairs[0][1])
        super().__init__(pairs, transforms)
