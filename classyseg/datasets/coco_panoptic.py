"""COCO's panoptic annotations, read as semantic ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from classyseg.config import DataError, within
from classyseg.datasets.coco import coco_folders, entries_of, read_annotations
from classyseg.datasets.files import read_colors
from classyseg.datasets.label_map import LabelMap, label_table
from classyseg.datasets.mask_files import MaskFiles
from classyseg.datasets.pairs import listed_pairs
from classyseg.registry import DATASETS, TransformConfig

CATEGORY_IDS, CLASSES, PALETTE = label_table("coco_panoptic")
LABELS = {category: i for i, category in enumerate(CATEGORY_IDS)}


@DATASETS.register("coco_panoptic")
class CocoPanoptic(MaskFiles):
    """80 things and 53 stuffs: `root/val2017/*.jpg`, `root/annotations/panoptic_val2017/*.png` and the JSON beside it.

    A pixel's colour is the number of its segment, R + 256 G + 65536 B; the JSON gives the category of each segment. 0
    is ignored. Predictions are submitted as category numbers.

    Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019.
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
        with entries_of(source):
            names, self._ids, self._labels, self._ends = _segments(source)
        pairs = listed_pairs(names, images, masks)
        present = {image.stem for image, _ in pairs}
        self._rows = [row for row, name in enumerate(names) if name in present]
        super().__init__(pairs, transforms)

    def files(self, index: int) -> tuple[Path, ...]:
        return (*super().files(index), self._source)

    def labels(self, index: int) -> Tensor:
        mask, row = self.mask_path(index), self._rows[index]
        mine = slice(self._ends[row], self._ends[row + 1])
        segments = dict(zip(self._ids[mine].tolist(), self._labels[mine].tolist(), strict=True))
        label_map = LabelMap({0: self.ignore_index} | segments, text=str)
        return label_map(segment_ids(mask), mask)


def segment_ids(path: Path) -> Any:
    """The number of the segment of each pixel, (H, W) int32."""
    colors = read_colors(path)
    return colors >> 16 | colors & 0xFF00 | (colors & 0xFF) << 16


def _segments(path: Path) -> tuple[list[str], Any, Any, Any]:
    """The names of the images; the numbers and the labels of all segments; where those of each image begin and end."""
    annotations = sorted(read_annotations(path, "annotations")["annotations"], key=lambda item: item["file_name"])
    segments = [segment for annotation in annotations for segment in annotation["segments_info"]]
    strange = sorted({segment["category_id"] for segment in segments} - LABELS.keys())
    if strange:
        raise DataError(f"{path}: holds the category {strange[0]}, which is none of COCO's {len(CLASSES)}")
    names = [Path(annotation["file_name"]).stem for annotation in annotations]
    ids = np.array([segment["id"] for segment in segments], dtype=np.int32)
    labels = np.array([LABELS[segment["category_id"]] for segment in segments], dtype=np.uint8)
    ends = np.cumsum([0, *(len(annotation["segments_info"]) for annotation in annotations)])
    return names, ids, labels, ends
