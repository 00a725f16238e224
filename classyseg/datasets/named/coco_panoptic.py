"""COCO's panoptic annotations, read as semantic ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from classyseg.config import listed
from classyseg.console import shown
from classyseg.datasets.files.coco_file import CocoFile, CocoImage
from classyseg.datasets.files.images import read_colors
from classyseg.datasets.files.json_file import in_words
from classyseg.datasets.files.lists import normal
from classyseg.datasets.files.masks import MaskFiles
from classyseg.datasets.files.pairs import pairs_by_name
from classyseg.datasets.label_map import LabelMap, label_table
from classyseg.datasets.named.coco import coco_folders
from classyseg.errors import DataError, within
from classyseg.registry import DATASETS, TransformConfig

CATEGORY_IDS, CLASSES, PALETTE = label_table("coco_panoptic")
Array = npt.NDArray[Any]
PANOPTIC = "coco_panoptic"
LABELS = {category: i for i, category in enumerate(CATEGORY_IDS)}

log = logging.getLogger(__name__)


@DATASETS.register("coco_panoptic")
class CocoPanoptic(MaskFiles):
    """80 things and 53 stuffs: `root/val2017/*.jpg`, `root/annotations/panoptic_val2017/*.png` and `.json`.

    A pixel's colour is the number of its segment, R + 256 G + 65536 B; the JSON gives the category of each segment. 0
    is ignored. Predictions are submitted as category numbers.

    COCO's panoptic annotations as 133 classes.

    Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019.

    Args:
        split: `train` or `val`.
        root: The folder.
        transforms: Transforms.
    """

    classes = CLASSES
    palette = PALETTE
    submission_values = CATEGORY_IDS

    def __init__(
        self,
        *,
        split: Literal["train", "val"],
        root: str = "coco",
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder, images, masks = coco_folders(root, f"{split}2017", f"annotations/panoptic_{split}2017")
        self._source = source = folder / "annotations" / f"panoptic_{split}2017.json"
        names, self._sizes, self._ids, self._labels, self._ends = _segments(source, f"{split}2017")
        pairs = pairs_by_name(names, images, masks)
        self._rows = [row for row, name in enumerate(names) if name in pairs]
        super().__init__(list(pairs.values()), transforms)

    def files(self, index: int) -> tuple[Path, ...]:
        return (*super().files(index), self._source)

    def load_target(self, index: int) -> Tensor:
        mask, row = self.mask_path(index), self._rows[index]
        mine = slice(self._ends[row], self._ends[row + 1])
        segments = dict(zip(self._ids[mine].tolist(), self._labels[mine].tolist(), strict=True))
        ids = segment_ids(mask)
        height, width = self._sizes[row].tolist()
        if ids.shape != (height, width):
            raise DataError(
                f"{mask}: is {ids.shape[1]} x {ids.shape[0]} pixels, but its image {width} x {height} in {self._source}"
            )
        labels = LabelMap({0: self.ignore_index} | segments, text=str)(ids, mask)
        lost = [number for number in segments if not (ids == number).any()]
        if lost:
            raise DataError(
                f"{mask}: has no pixel of the segment {lost[0]} ({len(lost)} of {len(segments)} are not there), which "
                f"{self._source} describes"
            )
        return labels


def segment_ids(path: Path) -> Any:
    """The number of the segment of each pixel, (H, W) int32."""
    colors = read_colors(path)
    return colors >> 16 | colors & 0xFF00 | (colors & 0xFF) << 16


def _segments(path: Path, folder: str) -> tuple[list[str], Array, Array, Array, Array]:
    """What a JSON file says about its masks, checked, in the order of their names.

    It gives the names of the images, which lie in `folder`, and their sizes (N, 2) as height and width; the numbers and
    the labels of all segments; and where the segments of each image begin and end.
    """
    file = CocoFile(path, "images", "annotations", "categories")
    known = file.categories({number: [name] for number, name in zip(CATEGORY_IDS, CLASSES, strict=True)}, PANOPTIC)
    images = file.images(folder)
    found: dict[int, tuple[str, CocoImage, list[tuple[int, int]]]] = {}
    for i, annotation in enumerate(file.contents["annotations"]):
        number = file.listed(f"annotations[{i}]", annotation, "image_id", images, "images")
        place = f"the annotation of image {number}"
        if number in found:
            file.refuse(f"the image {number} has two annotations; each has one, with all of its segments")
        name = file.stem(place, annotation, f"panoptic_{folder}")
        if normal(name) != normal(images[number].name):
            file.refuse(f"{place}: its file_name is {shown(name)}, but that of the image {shown(images[number].name)}")
        found[number] = annotation["file_name"], images[number], _segments_of(file, place, annotation, known)
    if not found:
        file.refuse("its list 'annotations' is empty")
    if left := [str(number) for number in images if number not in found]:
        counted = f"{len(left)} of {len(images)} images"
        log.warning("%s: %s have no annotation, and are left out: %s", path, counted, listed(left, limit=10))
    rows = sorted(found.values(), key=lambda row: row[0])
    segments = [segment for *_, inner in rows for segment in inner]
    ids = np.array([number for number, _ in segments], dtype=np.int32)
    labels = np.array([LABELS[category] for _, category in segments], dtype=np.uint8)
    sizes = np.array([(image.height, image.width) for _, image, _ in rows], dtype=np.int64).reshape(-1, 2)
    return [image.name for _, image, _ in rows], sizes, ids, labels, np.cumsum([0, *(len(inner) for *_, inner in rows)])


def _segments_of(file: CocoFile, place: str, annotation: dict[str, Any], known: set[int]) -> list[tuple[int, int]]:
    """The number and the category of each segment of a mask. Raises: `DataError`."""
    described = file.value(place, annotation, "segments_info")
    if not isinstance(described, list):
        file.refuse(f"{place}: its segments_info is {in_words(described)}; expected a list")
    found: dict[int, int] = {}
    for i, segment in enumerate(described):
        number = file.number(f"{place}: segments_info[{i}]", segment, "id")
        if not 0 < number < 2**24:
            file.refuse(f"{place}: its segment {number} is no colour; accepted: 1 to {2**24 - 1}, as 0 is void")
        if number in found:
            file.refuse(f"{place}: its segment {number} comes twice")
        found[number] = file.listed(f"{place}: its segment {number}", segment, "category_id", known, "categories")
    return list(found.items())
