"""ImageNet-1k: 1000 classes in folders that are named after WordNet's synsets."""

from __future__ import annotations

import os
import re
from collections.abc import Set
from pathlib import Path
from typing import Literal

from classyseg.config import listed
from classyseg.console import MAX_NAME, shown
from classyseg.datasets.classification_dataset import LabelledFiles
from classyseg.datasets.files.class_folders import labelled_files
from classyseg.datasets.files.images import IMAGE_SUFFIXES
from classyseg.datasets.files.lists import BLANKS, lines_of
from classyseg.datasets.files.pairs import report_fault
from classyseg.datasets.label_map import label_table
from classyseg.errors import ConfigError, DataError, within
from classyseg.io import data_folder, data_path
from classyseg.registry import DATASETS, TransformConfig

SYNSETS, CLASSES, _ = label_table("imagenet")
LABELS = {f"n{number:08}": label for label, number in enumerate(SYNSETS)}

TABLE = "lines such as NAME.JPEG n01440764, or LOC_val_solution.csv, whose columns are ImageId and PredictionString"


@DATASETS.register("imagenet")
class ImageNet(LabelledFiles):
    """`root/train/n01440764/*.JPEG` and so on, and `root/val/n01440764/*.JPEG`.

    Where the images of a split lie in one folder, as those of `val` are distributed, `table` names the class of each: a
    text file of lines `NAME.JPEG n01440764`, or the `LOC_val_solution.csv` of Kaggle's distribution.

    A class keeps its label if some folders are missing: its number among the 1000 in the order of synsets, as published
    weights have it.

    ImageNet-1k, 1000 classes.

    Source: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.

    Args:
        split: `train` or `val`.
        root: The folder.
        table: The classes of images that lie in one folder, as those of `val` are distributed: a text file of lines
            such as `ILSVRC2012_val_00000001.JPEG n01751748`, or Kaggle's `LOC_val_solution.csv`; under the data root,
            or absolute.
        transforms: Transforms.
    """

    classes = CLASSES

    def __init__(
        self,
        *,
        split: Literal["train", "val"],
        root: str = "imagenet",
        table: str | None = None,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(str(data_folder(root) / split))
            images = images_in(folder)
            if images and table is None:
                raise ConfigError(
                    f"{folder}: holds {len(images)} images and no folder of a class; set table to a list of their "
                    f"classes ({TABLE}), or sort them into folders such as n01440764"
                )
            files = [] if images else labelled_files(folder, LABELS)
        if table is not None:
            if not images:
                raise ConfigError(
                    "table", f"found {shown(table, MAX_NAME)}, but {folder} has folders of classes; leave it out"
                )
            files = _listed_files(data_path(table), folder, images)
        super().__init__(files, transforms)


def images_in(folder: Path) -> set[str]:
    """The names of the images right in a folder; none where it holds folders, too."""
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    if any(entry.is_dir() for entry in entries):
        return set()
    return {entry.name for entry in entries if entry.name.lower().endswith(IMAGE_SUFFIXES)}


def _listed_files(table: Path, folder: Path, images: Set[str]) -> list[tuple[str, int]]:
    """The files and labels of a list. Raises: `DataError` for one that is not so, or names files that are missing."""
    labels: dict[str, int] = {}
    twice = []
    lines = lines_of(table)
    is_solution = bool(lines) and lines[0][1].split(",")[0].strip(BLANKS) == "ImageId"
    for number, line in lines[is_solution:]:
        words = [word for word in re.split(r"[ \t,]+", line) if word] or [""]
        name = f"{words[0]}.JPEG" if is_solution else words[0]
        classes = {word for word in words[1:] if word.startswith("n")} if is_solution else {*words[1:]}
        if len(classes) != 1 or not classes <= LABELS.keys():
            # The table may be any file of the machine: a line is shown only if it is about one of the images.
            found = shown(line.strip(BLANKS)) if name in images else f"{len(words)} words"
            raise DataError(f"{table}, line {number}: found {found}; expected {TABLE}")
        twice += [name] if name in labels else []
        labels[name] = LABELS[classes.pop()]
    if not labels:
        raise DataError(f"{table}: an empty list; expected {TABLE}")
    if twice:
        report_fault("listed_twice", f"{table}: names {listed(twice, limit=5)} more than once", twice)
    missing = [name for name in labels if name not in images]
    if missing:
        message = f"{table}: names {len(missing)} of {len(labels)} files not in {folder}: {listed(missing, limit=5)}"
        report_fault("missing_file", message, [str(folder / name) for name in missing])
    return [(str(folder / name), label) for name, label in labels.items() if name in images]
