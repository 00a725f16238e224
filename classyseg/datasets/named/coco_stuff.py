"""COCO-Stuff: things and stuff of COCO 2017 as pixel maps."""

from __future__ import annotations

from typing import Literal

from classyseg.config import user_path
from classyseg.datasets.files.masks import MaskFiles
from classyseg.datasets.files.pairs import matched_pairs
from classyseg.datasets.label_map import LabelMap, label_table
from classyseg.datasets.named.coco import coco_folders
from classyseg.errors import within
from classyseg.registry import DATASETS, TransformConfig

LABEL_IDS, CLASSES, _ = label_table("coco_stuff")
VALUES = tuple(label - 1 for label in LABEL_IDS)


@DATASETS.register("coco_stuff")
class CocoStuff(MaskFiles):
    """80 things and 91 stuffs: `root/train2017/*.jpg` with `root/{masks}/train2017/*.png`, and so for `val2017`.

    The pixel maps hold label numbers less one: 0 to 181, where 11 are unused; 255 is ignored.

    Source: Caesar et al., "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018.

    Args:
        split: `train` or `val`.
        masks: The folder of the pixel maps, in `root`.
        root: The folder.
        transforms: Transforms.
    """

    classes = CLASSES
    label_map = LabelMap({value: i for i, value in enumerate(VALUES)} | {255: 255})
    submission_values = VALUES

    def __init__(
        self,
        *,
        split: Literal["train", "val"],
        masks: str = "stuffthingmaps",
        root: str = "coco",
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            _, image_folder, mask_folder = coco_folders(root, f"{split}2017", f"{user_path(masks)}/{split}2017")
        super().__init__(matched_pairs(image_folder, mask_folder), transforms)
