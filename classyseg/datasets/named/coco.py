"""COCO with the 21 classes of Pascal VOC, drawn from its instances."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field
from tqdm import tqdm

from classyseg.config import listed
from classyseg.console import shown
from classyseg.datasets.files.coco_file import CocoFile
from classyseg.datasets.files.json_file import finite, in_words
from classyseg.datasets.files.outlines import Drawn, Outline, annotation_mask, area, extent, is_flat, refuse_outside
from classyseg.datasets.files.pairs import listed_pairs
from classyseg.datasets.label_map import label_table
from classyseg.datasets.named.pascal_voc import CLASSES, VOCMasks
from classyseg.errors import ConfigError, DataError, within
from classyseg.io import data_folder, data_path, sha256_of
from classyseg.locks import alone
from classyseg.registry import DATASETS, TransformConfig
from classyseg.structures import Sample

CATEGORY_IDS = (0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
"""COCO's category of each of Pascal's classes; 0, the background, is none."""
CLASS_OF_CATEGORY = {category: label for label, category in enumerate(CATEGORY_IDS) if category}
NAMES = {number: [name] for number, name in zip(*label_table("coco_panoptic")[:2], strict=True) if number <= 90}
for _category, _label in CLASS_OF_CATEGORY.items():
    NAMES[_category].append(CLASSES[_label])  # Pascal's word for it
"""What a file may call each of COCO's 80 categories."""
INDEX = "index.json"
RULES = 2
"""Raised whenever the rules of drawing change: masks that were drawn by other rules are not read."""

log = logging.getLogger(__name__)


@DATASETS.register("coco")
class Coco(VOCMasks):
    """COCO 2017 as Pascal VOC: `root/train2017`, `root/annotations/instances_train2017.json`, and so for `val`.

    Other categories are background. Where instances overlap, the first one in the file has the pixel. Masks are drawn
    once, into `cache`. Images with fewer than `min_pixels` pixels of the 20 classes are left out.

    Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; the classes and the choice of images are
    PyTorch-Encoding's.

    Args:
        split: `train` or `val`.
        crowd: `label`: a crowd has the class of its members; `ignore`: it is ignored.
        min_pixels: Leave out images with fewer pixels of the 20 classes.
        cache: Where masks are drawn, once.
        root: The folder.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        split: Literal["train", "val"],
        crowd: Literal["label", "ignore"] = "label",
        min_pixels: Annotated[int, Field(ge=0)] = 1001,
        cache: str = "coco/voc_masks",
        root: str = "coco",
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder, images = coco_folders(root, f"{split}2017")
            annotations = folder / "annotations" / f"instances_{split}2017.json"
        masks = prepared_masks(annotations, data_path(cache) / f"{split}2017_crowd_{crowd}", crowd)
        pixels = _read_index(masks, annotations)
        if not pixels:
            raise DataError(f"{annotations}: its list 'images' is empty")
        names = sorted(name for name, count in pixels.items() if count >= min_pixels)
        if not names:
            raise ConfigError("min_pixels", f"found {min_pixels}; no image of {annotations} has so many")
        self._source = annotations
        super().__init__(listed_pairs(names, images, masks), transforms)

    def load(self, index: int) -> Sample:
        sample = super().load(index)
        (height, width), expected = sample.image.shape[-2:], tuple(sample.target.shape)
        if (height, width) != expected:
            raise DataError(
                f"{self.pairs[index][0]}: the image is {width} x {height} pixels, but {expected[1]} x {expected[0]} in "
                f"{self._source}; they must be of one size"
            )
        return sample


def coco_folders(root: str, *parts: str) -> tuple[Path, ...]:
    """The `root` of COCO's files, and the folders `parts` in it. Raises: `ConfigError` if one is missing."""
    folder = data_folder(root)
    return folder, *(data_folder(str(folder / part)) for part in parts)


def prepared_masks(annotations: Path, folder: Path, crowd: str) -> Path:
    """`folder` with a mask for each image. The first process that asks draws them, the others wait.

    Raises: `ConfigError` where nothing may be written; `DataError` for wrong annotations.
    """
    if (folder / INDEX).is_file():
        return folder
    try:
        with alone(folder.with_name(f".{folder.name}.lock")):
            if not (folder / INDEX).is_file():
                log.info("drawing the masks of %s into %s, once", annotations, folder)
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
                    _draw_all(annotations, Path(temporary) / "masks", crowd)
                    os.replace(Path(temporary) / "masks", folder)
    except OSError as error:
        raise ConfigError(
            "cache", f"{error.filename or folder}: cannot be written ({error.strerror}); set cache to a folder that can"
        ) from None
    return folder


def _draw_all(path: Path, folder: Path, crowd: str) -> None:
    file = CocoFile(path, "images", "annotations", "categories")
    known = file.categories(NAMES, "coco")
    images = file.images(path.stem.removeprefix("instances_"))
    wanted: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for place, annotation in file.entries("annotations", "annotation"):
        number = file.listed(place, annotation, "image_id", images, "images")
        category = file.listed(place, annotation, "category_id", known, "categories")
        if annotation.get("iscrowd", 0) not in (0, 1):
            file.refuse(f"{place}: its iscrowd is {in_words(annotation['iscrowd'])}; accepted: 0 and 1")
        if category in CLASS_OF_CATEGORY:
            wanted[number].append(annotation)
    file.contents.clear()
    folder.mkdir()
    pixels, empty = {}, []
    for image in tqdm(images.values(), desc=f"masks of {path.name}", unit="image", disable=None):
        mask = np.zeros((image.height, image.width), dtype=np.uint8)
        for outlined in wanted.pop(image.id, ()):
            try:
                drew = draw(mask, outlined, crowd)
            except DataError as error:
                file.refuse(f"image {image.id}, {shown(image.name)}: annotation {outlined['id']}: {error}")
            empty += [] if drew else [outlined["id"]]
        Image.fromarray(mask).save(folder / f"{image.name}.png")
        pixels[image.name] = int(((mask > 0) & (mask < len(CLASSES))).sum())
    if empty:
        log.warning(
            "%s: cover no pixel, as their own area says: the annotations %s", path, listed([*map(str, empty)], limit=10)
        )
    index = {"rules": RULES, "annotations": {**_state(path), "sha256": sha256_of(path)}, "pixels": pixels}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def draw(mask: npt.NDArray[np.uint8], annotation: Mapping[str, Any], crowd: str) -> bool:
    """Draws an annotation into the mask (height, width) of its image, under earlier ones; returns if it covers a pixel.

    Raises: `DataError` for a wrong segmentation, or one that covers no pixel though its area says otherwise.
    """
    height, width = mask.shape
    if "segmentation" not in annotation:
        raise DataError("it has no segmentation; draw its outline, or take the annotation out")
    drawn = annotation_mask(annotation["segmentation"], height, width)
    if not drawn.polygons and not drawn.mask.any() and annotation.get("area") != 0:
        raise DataError("its run lengths cover no pixel, which its area denies; mend it, or take the annotation out")
    _check_outlines(annotation, drawn, height, width)
    ignored = crowd == "ignore" and annotation.get("iscrowd")
    mask[drawn.mask & (mask == 0)] = VOCMasks.ignore_index if ignored else CLASS_OF_CATEGORY[annotation["category_id"]]
    return bool(drawn.mask.any())


def _check_outlines(annotation: Mapping[str, Any], drawn: Drawn, height: int, width: int) -> None:
    """Raises: `DataError` for an outline that would be lost: outside the image, flat, or covering no pixel.

    COCO's own files hold some with an area of 0 (annotations 918 and 2206849), and say so. They are accepted if `area`
    and `bbox` are exactly those of the outlines, which end at most a pixel outside of the image.
    """
    for i, points in enumerate(drawn.polygons):
        left, top, wide, high = extent(points)
        refuse_outside(f"its polygon {i}", points, height, width)
        flat = area(points) < 1 and is_flat(points)
        if not flat and i not in drawn.missed:
            continue
        inside = min(left, top) >= -1 and left + wide <= width + 1 and top + high <= height + 1
        if not inside or not _knows_its_outlines(annotation, drawn.polygons):
            what = "is flat: its points lie on one line" if flat else "covers no pixel of the image"
            raise DataError(f"its polygon {i} {what}; mend it, or take it out")


def _knows_its_outlines(annotation: Mapping[str, Any], parts: Sequence[Outline]) -> bool:
    """Whether `area` and `bbox` of an annotation are those of its outlines, as in COCO's files."""
    stated, box = annotation.get("area"), annotation.get("bbox")
    if not finite(stated) or not isinstance(box, list) or len(box) != 4 or not all(map(finite, box)):
        return False
    return np.allclose([*box, stated], [*extent(np.concatenate(parts)), sum(map(area, parts))], rtol=1e-6, atol=0.02)


def _state(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "time": status.st_mtime_ns}


def _read_index(folder: Path, annotations: Path) -> dict[str, int]:
    """How many pixels of the 20 classes each image has.

    Raises: `ConfigError` when the annotations are not the same, or were drawn by other rules than today's.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        rules, drawn_from = index.get("rules"), index["annotations"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("cache", f"{folder / INDEX}: damaged ({type(error).__name__}); delete that folder") from None
    if rules != RULES:
        raise ConfigError(
            "cache",
            f"{folder} was drawn by an earlier version, which left out what it could not draw; delete that "
            "folder, and it is drawn again",
        )
    looks_other = annotations.is_file() and bool(_state(annotations).items() - drawn_from.items())
    # A copy of the file has another time and the same content: only then is it hashed.
    if looks_other and sha256_of(annotations) != drawn_from["sha256"]:
        raise ConfigError("cache", f"{folder} was drawn from another {annotations.name}; delete that folder")
    return index["pixels"]
