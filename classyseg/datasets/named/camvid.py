"""CamVid in the layout of the SegNet tutorial: 11 classes and void, 480 x 360."""

from __future__ import annotations

from typing import Literal

from classyseg.datasets.files.masks import MaskFiles
from classyseg.datasets.files.pairs import matched_pairs
from classyseg.errors import within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig

CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "signsymbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}


@DATASETS.register("camvid")
class CamVid(MaskFiles):
    """Street scenes: `root/train/*.jpg` (or .png) with `root/trainannot/*.png`, and so for `val` and `test`.

    `val` is of one drive that also gives training frames; report `test`.

    CamVid as in the SegNet tutorial: 11 classes, and void (11), which is ignored.

    Source: Brostow et al., "Semantic object classes in video: A high-definition ground truth database", PRL 2009; the
    split and the 11 classes are those of Badrinarayanan et al., "SegNet", TPAMI 2017.

    Args:
        split: `train`, `val` or `test`.
        root: The folder.
        transforms: Transforms.
    """

    classes = tuple(CLASSES)
    palette = tuple(CLASSES.values())
    ignore_index = 11

    def __init__(
        self,
        *,
        split: Literal["train", "val", "test"],
        root: str = "camvid",
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(root)
            images, masks = (data_folder(str(folder / name)) for name in (split, f"{split}annot"))
        super().__init__(matched_pairs(images, masks), transforms)
