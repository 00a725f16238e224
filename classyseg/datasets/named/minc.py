"""MINC-2500: 23 materials, 2500 images each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from classyseg.config import listed
from classyseg.datasets.classification_dataset import LabelledFiles
from classyseg.datasets.files.pairs import existing_files, read_names
from classyseg.errors import DataError, within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig

CLASSES = (
    *("brick", "carpet", "ceramic", "fabric", "foliage", "food", "glass", "hair", "leather", "metal", "mirror"),
    *("other", "painted", "paper", "plastic", "polishedstone", "skin", "sky", "stone", "tile", "wallpaper"),
    *("water", "wood"),
)


@DATASETS.register("minc")
class MINC(LabelledFiles):
    """`root/images/CLASS/*.jpg`, and lists of such paths in `root/labels`: `train1.txt` and so on for 5 folds.

    MINC-2500, 23 materials.

    Source: Bell et al., "Material Recognition in the Wild with the Materials in Context Database", CVPR 2015.

    Args:
        split: The list `train`, `validate` or `test`.
        fold: Which of the 5 lists of that name.
        root: The folder.
        transforms: Transforms.
    """

    classes = CLASSES

    def __init__(
        self,
        *,
        split: Literal["train", "validate", "test"],
        fold: Annotated[int, Field(ge=1, le=5)] = 1,
        root: str = "minc-2500",
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(root)
            table = folder / "labels" / f"{split}{fold}.txt"
            names = read_names(table)
        wrong = [name for name in names if len(name.split("/")) != 3 or name.split("/")[1] not in CLASSES]
        if wrong:
            raise DataError(f"{table}: found {listed(wrong, limit=5)}; expected lines such as images/brick/NAME.jpg")
        labelled = [(name, CLASSES.index(name.split("/")[1])) for name in names]
        super().__init__(existing_files(table, folder, labelled), transforms)
