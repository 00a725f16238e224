"""Images that are in two parts of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from classyseg.console import MAX_NAME, printable
from classyseg.datasets.classy_dataset import ClassyDataset


def images_of(dataset: ClassyDataset) -> frozenset[Path]:
    """The image files of a data set; none where several samples lie in one file."""
    found = frozenset(files[0] for index in range(len(dataset)) if (files := dataset.files(index)))
    return found if len(found) == len(dataset) else frozenset()


def overlaps(images: Mapping[str, frozenset[Path]]) -> tuple[list[str], list[str]]:
    """The parts whose images are all in train, too, and notes about all images that are in two parts."""
    train = images.get("train", frozenset())
    doubled = [part for part in ("val", "test") if images.get(part) and images[part] <= train]
    done = {"val": "val is held out of train anew", "test": "test is left out"}
    notes = [f"all {len(images[part])} images of {part} are in train, too: {done[part]}" for part in doubled]
    for one, other in combinations([part for part in images if part not in doubled], 2):
        shared = images[one] & images[other]
        if shared:
            some = printable(min(shared).name, MAX_NAME)
            notes.append(
                f"{len(shared)} images are in {one} and in {other}, such as {some}: take them out of one of them"
            )
    return doubled, notes
