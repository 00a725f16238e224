"""A folder of images and a folder of index masks, matched by name: what most people have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from classyseg.config import ConfigError, DataError, within
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.files import IMAGE_SUFFIXES, MASK_SUFFIXES, read_image, read_mask
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig
from classyseg.structures import Sample


def matched_pairs(images: Path, masks: Path, mask_suffix: str = "") -> list[tuple[Path, Path]]:
    """The image files of a folder with their masks, in the order of their names.

    `NAME.jpg` goes with `NAME{mask_suffix}.png`. Raises: `DataError` for an empty folder, an image without a mask, a
    mask without an image, two files of one name, and a folder that may not be read.
    """
    by_name = _files_by_stem(images, IMAGE_SUFFIXES, "image")
    masks_by_name = _files_by_stem(masks, MASK_SUFFIXES, "mask")
    wanted = {name + mask_suffix: name for name in by_name}
    alone = [str(by_name[name]) for stem, name in wanted.items() if stem not in masks_by_name]
    if alone:
        raise DataError(
            f"{masks}: no mask for {len(alone)} of {len(by_name)} images: {_some(alone)}; the mask of NAME.jpg is "
            f"NAME{mask_suffix}.png (or another lossless format)"
        )
    unused = [str(path) for stem, path in masks_by_name.items() if stem not in wanted]
    if unused:
        raise DataError(f"{images}: no image for {len(unused)} of {len(masks_by_name)} masks: {_some(unused)}")
    return [(path, masks_by_name[name + mask_suffix]) for name, path in by_name.items()]


def _files_by_stem(folder: Path, suffixes: tuple[str, ...], what: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    for path in paths:
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(f"{folder}: two {what} files of one name: {found[path.stem].name} and {path.name}")
        found[path.stem] = path
    if not found:
        raise DataError(f"{folder}: found no {what} file; accepted: {', '.join(suffixes)}")
    return found


def _some(paths: list[str], limit: int = 5) -> str:
    return ", ".join(paths[:limit]) + (", ..." if len(paths) > limit else "")


@DATASETS.register("folder")
class Folder(ClassyDataset):
    """Images of one folder with masks of another; the values of a mask are indices into `classes`.

    `images` and `masks` are folders under the data root, or absolute. `label_map` replaces mask values before they are
    checked, such as {255: 1} for masks of 0 and 255; `ignore_index` marks pixels without a label.
    """

    def __init__(
        self,
        *,
        images: str,
        masks: str,
        classes: Annotated[tuple[str, ...], Field(min_length=1)],
        mask_suffix: str = "",
        label_map: dict[int, int] | None = None,
        ignore_index: int = 255,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        if 0 <= ignore_index < len(classes):
            raise ConfigError(f"ignore_index: found {ignore_index}, which is the class '{classes[ignore_index]}'")
        if len(set(classes)) != len(classes):
            raise ConfigError(f"classes: found one name twice in {list(classes)}")
        self.classes = tuple(classes)
        self.ignore_index = ignore_index
        self.label_map = dict(label_map or {})
        super().__init__(transforms)
        with within("images"):
            image_folder = data_folder(images)
        with within("masks"):
            mask_folder = data_folder(masks)
        self.pairs = matched_pairs(image_folder, mask_folder, mask_suffix)

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> Sample:
        image, mask = self.pairs[index]
        target = read_mask(mask)
        if self.label_map:
            original = target
            for value, label in self.label_map.items():
                target = torch.where(original == value, label, target)
        return Sample(read_image(image), target, str(mask))

    def _label_hint(self, values: list[int]) -> str:
        if self.label_map:
            return ""
        if self.num_classes == 2 and values == [255]:
            return "; for masks of 0 and 255, set label_map: {255: 1}"
        return "; a label_map: {found: class} in the data set's config maps values to classes"
