"""ADE20K as the scene parsing benchmark of 150 classes."""

from __future__ import annotations

from typing import Literal

from classyseg.datasets.files.masks import MaskFiles
from classyseg.datasets.files.pairs import images_alone, matched_pairs
from classyseg.datasets.label_map import LabelMap, label_table
from classyseg.errors import within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig

VALUES, CLASSES, PALETTE = label_table("ade20k")
FOLDERS = {"train": "training", "val": "validation", "test": "testing"}


@DATASETS.register("ade20k")
class ADE20K(MaskFiles):
    """Scenes of any kind: `root/images/training/*.jpg` with `root/annotations/training/*.png`, and `validation`.

    Masks hold 1 to 150; 0, other objects, is ignored. Predictions are submitted as 1 to 150, too. `test` has the images
    of `root/images/testing` alone: their masks are not public.

    The scene parsing benchmark of 150 classes.

    Source: Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017.

    Args:
        split: `train` or `val`; `test` has images alone.
        root: The folder.
        transforms: Transforms.
    """

    classes = CLASSES
    palette = PALETTE
    label_map = LabelMap({0: 255} | {value: i for i, value in enumerate(VALUES)})
    submission_values = VALUES

    def __init__(
        self,
        *,
        split: Literal["train", "val", "test"],
        root: str = "ADEChallengeData2016",
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(root)
            images = data_folder(str(folder / "images" / FOLDERS[split]))
            masks = None if split == "test" else data_folder(str(folder / "annotations" / FOLDERS[split]))
        super().__init__(images_alone(images) if masks is None else matched_pairs(images, masks), transforms)
