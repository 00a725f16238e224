"""COCO with the 21 classes of Pascal VOC, drawn from its instances."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field
from tqdm import tqdm

from classyseg.config import ConfigError, DataError, within
from classyseg.datasets.coco_masks import annotation_mask
from classyseg.datasets.pairs import listed_pairs
from classyseg.datasets.pascal_voc import CLASSES, VOCMasks
from classyseg.io import data_folder, data_path, sha256_of
from classyseg.locks import alone
from classyseg.registry import DATASETS, TransformConfig

CATEGORY_IDS = (0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
"""COCO's category of each of Pascal's classes; 0, the background, is none."""
CLASS_OF_CATEGORY = {category: label for label, category in enumerate(CATEGORY_IDS) if category}
INDEX = "index.json"

log = logging.getLogger(__name__)


@DATASETS.register("coco")
class Coco(VOCMasks):
    """COCO 2017 as Pascal VOC: `root/train2017`, `root/annotations/instances_train2017.json`, and so for `val`.

    Other categories are background; where instances overlap, the one that comes first in the file has the pixel. Masks
    are drawn once, into `cache`. Images with fewer than `min_pixels` pixels of the 20 classes are left out.

    Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; the classes and the choice of images are
    PyTorch-Encoding's.
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
        names = sorted(name for name, count in pixels.items() if count >= min_pixels)
        if not names:
            raise ConfigError(f"min_pixels: found {min_pixels}; no image of {annotations} has so many")
        super().__init__(listed_pairs(names, images, masks), transforms)


def coco_folders(root: str, *parts: str) -> tuple[Path, ...]:
    """The `root` of COCO's files, and the folders `parts` in it. Raises: `ConfigError` for one that is missing."""
    folder = data_folder(root)
    return folder, *(data_folder(str(folder / part)) for part in parts)


def read_annotations(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON file of COCO's annotations. Raises: `DataError` for a file that is missing, broken, or lacks `keys`."""
    try:
        contents = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    missing = [key for key in keys if not isinstance(contents, dict) or not isinstance(contents.get(key), list)]
    if missing:
        raise DataError(f"{path}: no annotations of COCO: it has no list '{missing[0]}'")
    return contents


@contextmanager
def entries_of(path: Path) -> Iterator[None]:
    """Names the file whose entries, read inside, lack a key or have one of another kind. Raises: `DataError`."""
    try:
        yield
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: an entry is not as COCO's are ({type(error).__name__}: {error})") from None


def prepared_masks(annotations: Path, folder: Path, crowd: str) -> Path:
    """`folder` with a mask for each image, drawn by the first process that asks while the others wait.

    Raises: `ConfigError` where nothing may be written; `DataError` for wrong annotations.
    """
    if (folder / INDEX).is_file():
        return folder
    try:
        with alone(folder.with_name(f".{folder.name}.lock")):
            if not (folder / INDEX).is_file():
                log.info("drawing the masks of %s into %s, once", annotations, folder)
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
                    with entries_of(annotations):
                        _draw_all(annotations, Path(temporary) / "masks", crowd)
                    os.replace(Path(temporary) / "masks", folder)
    except OSError as error:
        raise ConfigError(
            f"cache: {error.filename or folder}: cannot be written ({error.strerror}); set cache to a folder that can"
        ) from None
    return folder


def _draw_all(annotations: Path, folder: Path, crowd: str) -> None:
    contents = read_annotations(annotations, "images", "annotations")
    wanted: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in contents.pop("annotations"):
        if annotation["category_id"] in CLASS_OF_CATEGORY:
            wanted[annotation["image_id"]].append(annotation)
    folder.mkdir()
    pixels = {}
    for image in tqdm(contents["images"], desc=f"masks of {annotations.name}", unit="image", disable=None):
        try:
            mask = draw(wanted[image["id"]], image["height"], image["width"], crowd)
        except DataError as error:
            raise DataError(f"{annotations}: {image['file_name']}: {error}") from None
        name = Path(image["file_name"]).stem
        Image.fromarray(mask).save(folder / f"{name}.png")
        pixels[name] = int(((mask > 0) & (mask < len(CLASSES))).sum())
    index = {"annotations": {**_state(annotations), "sha256": sha256_of(annotations)}, "pixels": pixels}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def draw(annotations: list[Mapping[str, Any]], height: int, width: int, crowd: str) -> npt.NDArray[np.uint8]:
    """The mask (height, width) of one image's annotations, the first on top."""
    mask = np.zeros((height, width), dtype=np.uint8)
    for annotation in annotations:
        try:
            region = annotation_mask(annotation["segmentation"], height, width)
        except DataError as error:
            raise DataError(f"annotation {annotation.get('id')}: {error}") from None
        ignored = crowd == "ignore" and annotation.get("iscrowd")
        mask[region & (mask == 0)] = VOCMasks.ignore_index if ignored else CLASS_OF_CATEGORY[annotation["category_id"]]
    return mask


def _state(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "time": status.st_mtime_ns}


def _read_index(folder: Path, annotations: Path) -> dict[str, int]:
    """How many pixels of the 20 classes each image has. Raises: `ConfigError` when the annotations are not the same."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    drawn_from = index["annotations"]
    looks_other = annotations.is_file() and bool(_state(annotations).items() - drawn_from.items())
    if looks_other and sha256_of(annotations) != drawn_from["sha256"]:  # and is no copy with a time of its own
        raise ConfigError(f"cache: {folder} was drawn from another {annotations.name}; delete that folder")
    return index["pixels"]
