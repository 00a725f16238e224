"""Cityscapes: 19 classes of street scenes, finely or coarsely annotated."""

from __future__ import annotations

from typing import Literal

from classyseg.datasets.files.masks import MaskFiles
from classyseg.datasets.files.pairs import ImageAndMask, images_alone, matched_pairs
from classyseg.datasets.label_map import LabelMap, label_table
from classyseg.errors import ConfigError, within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig

LABEL_IDS, CLASSES, PALETTE = label_table("cityscapes")
NUM_LABEL_IDS = 34
FOLDERS = {
    "train": ("train",),
    "val": ("val",),
    "test": ("test",),
    "trainval": ("train", "val"),
    "train_extra": ("train_extra",),
}


@DATASETS.register("cityscapes")
class Cityscapes(MaskFiles):
    """Street scenes: `root/leftImg8bit/train/CITY/*_leftImg8bit.png`, `root/gtFine/train/CITY/*_gtFine_labelIds.png`.

    The 34 values of `labelIds` become 19 classes, the others are ignored; predictions are submitted as `labelIds`.
    `gtCoarse` stands in the place of `gtFine` for coarse annotations, which alone cover `train_extra`. `test` has
    images alone: their masks are not public.

    Source: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.

    Args:
        split: `train`, `val`, `trainval`, or `train_extra` with coarse annotations; `test` has images alone.
        annotations: `fine` or `coarse`.
        root: The folder.
        transforms: Transforms.
    """

    classes = CLASSES
    palette = PALETTE
    label_map = LabelMap(
        {value: LABEL_IDS.index(value) if value in LABEL_IDS else 255 for value in range(NUM_LABEL_IDS)}
    )
    submission_values = LABEL_IDS

    def __init__(
        self,
        *,
        split: Literal["train", "val", "test", "trainval", "train_extra"],
        annotations: Literal["fine", "coarse"] = "fine",
        root: str = "cityscapes",
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        if split == "train_extra" and annotations == "fine":
            raise ConfigError("annotations", "found 'fine', but split 'train_extra' has coarse annotations only")
        if split == "test" and annotations == "coarse":
            raise ConfigError("annotations", "found 'coarse', but split 'test' has images alone; leave the key out")
        kind = f"gt{annotations.capitalize()}"
        pairs: list[ImageAndMask] = []
        with within("root"):
            folder = data_folder(root)
            for name in FOLDERS[split]:
                images = data_folder(str(folder / "leftImg8bit" / name))
                if name == "test":  # gtFine has masks of `test`, too, but they are empty
                    pairs += images_alone(images, image_suffix="_leftImg8bit", nested=True)
                    continue
                masks = data_folder(str(folder / kind / name))
                pairs += matched_pairs(images, masks, f"_{kind}_labelIds", image_suffix="_leftImg8bit", nested=True)
        super().__init__(pairs, transforms)
