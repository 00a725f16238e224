"""Roboflow's "Semantic Segmentation Masks": images and masks in one folder, and a table of the values in masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from classyseg.config import MAX_CHANNELS, listed, unknown
from classyseg.console import MAX_NAME, printable, shown
from classyseg.datasets.annotations.annotated_images import no_labels
from classyseg.datasets.annotations.class_labels import BACKGROUND, Classes
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.annotations.named_masks import NamedMasks, class_labels, foreground
from classyseg.datasets.classy_dataset import Palette
from classyseg.datasets.files.images import IMAGE_SUFFIXES, MASK_SUFFIXES, Bits
from classyseg.datasets.files.lists import cell, read_table
from classyseg.datasets.files.pairs import Pair, files_by_name, report_fault
from classyseg.datasets.recognition.roles import not_taken, one_of_each, part_named
from classyseg.datasets.splits import Split, SplitConfig, name_key, named_split, take_part
from classyseg.errors import ConfigError, DataError, within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig

TABLE = "_classes.csv"
COLUMNS = ("Pixel Value", "Class")
ENDING = "_mask"


@DATASETS.register("roboflow_masks")
class RoboflowMasks(NamedMasks):
    """Roboflow's export "Semantic Segmentation Masks": `NAME.jpg`, `NAME_mask.png` and `_classes.csv` in one folder.

    The labels, and the value of each in masks, are those of `_classes.csv`.

    Args:
        root: The folder of the export, unpacked.
        split: The subfolder, such as `train`, `valid` or `test`; null: `root` itself has the images. Or a mapping that
            takes a part of the files in `root`, such as `{part: train, val: 0.2}`, or in a subfolder: `{part: train,
            val: 0.2, of: train}`; see key `split`.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        root: str,
        split: Split | None = None,
        classes: Classes = None,
        background: str | None = BACKGROUND,
        ignore: tuple[str, ...] = (),
        ignore_index: int = 255,
        palette: Palette | None = None,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        bits: Bits = 8,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(root)
        folder = _part(folder, split)
        named = read_values(folder / TABLE)
        labels = class_labels(classes, background, ignore, ignore_index, named.values())
        if classes is None and not foreground(named.values()):
            raise no_labels(folder / TABLE)
        pairs = _pairs(folder)
        if isinstance(split, SplitConfig):
            pairs = take_part(pairs, [image for image, _ in pairs], split, folder)
        super().__init__(pairs, labels, named, palette, channels, bits, transforms)


def _parts(folder: Path) -> list[str]:
    """The subfolders with a table."""
    return [path.name for path in sorted(folder.iterdir()) if (path / TABLE).is_file()]


def _part(folder: Path, split: Split | None) -> Path:
    """The folder that holds the table. Raises: `ConfigError`."""
    parts, name = _parts(folder), named_split(split)
    if name is not None:
        if name not in parts:
            raise ConfigError(name_key(split), f"{unknown('subfolder', name, parts)} Each has a {TABLE} of its own")
        return folder / name
    if not (folder / TABLE).is_file() and parts:
        raise ConfigError(name_key(split), f"missing; {folder} has the subfolders {listed(parts)}: name one")
    return folder


def read_values(path: Path) -> dict[int, str]:
    """The label of each value in masks. Raises: `DataError` for another kind of table, naming the line."""
    found: dict[int, str] = {}
    lines: dict[str, int] = {}
    for row in read_table(path, COLUMNS):
        number = row[0]
        value, name = (cell(path, row, column).strip() for column in COLUMNS)
        if not (value.isascii() and value.isdecimal() and len(value) < 6 and int(value) < 65_536):
            raise DataError(f"{path}, line {number}: the value is {shown(value, MAX_NAME)}; accepted: 0 to 65535")
        if int(value) in found:
            raise DataError(
                f"{path}, line {number}: the value {int(value)} has the label {shown(found[int(value)])}, too"
            )
        if name in lines:
            raise DataError(f"{path}, line {number}: the label {shown(name)} stands in line {lines[name]}, too")
        found[int(value)] = name
        lines[name] = number
    return found


def _pairs(folder: Path) -> list[Pair]:
    """The images of a folder with their masks. Raises: `DataError` for one without the other."""
    files = files_by_name(folder, IMAGE_SUFFIXES, "image")

    def is_mask(name: str) -> bool:
        return name.endswith(ENDING) and files[name].suffix.lower() in MASK_SUFFIXES and f"{name}{ENDING}" not in files

    images = [name for name in files if not is_mask(name)]
    owners = {*images}
    lost = [files[name].name for name in files if is_mask(name) and name.removesuffix(ENDING) not in owners]
    alone = [files[name].name for name in images if f"{name}{ENDING}" not in files]
    for kind, what, names, total in (
        ("missing_image", "image", lost, len(files) - len(images)),
        ("missing_mask", "mask", alone, len(images)),
    ):
        if names:
            some = listed([printable(name, MAX_NAME, exact=True) for name in names], limit=5)
            other = "masks" if what == "image" else "images"
            rule = "the mask of NAME.jpg is NAME_mask.png"
            told = f"{folder}: no {what} for {len(names)} of {total} {other}: {some}; {rule}"
            report_fault(kind, told, [str(folder / name) for name in names])
    return [(files[name], files[f"{name}{ENDING}"]) for name in images if f"{name}{ENDING}" in files]


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as an export of Roboflow's masks; None if it is none."""
    parts = _parts(folder)
    if not (folder / TABLE).is_file() and not parts:
        return None
    by_part, rest = one_of_each({name: part_named(name) for name in parts})
    part = folder / next(iter(by_part.values()), parts[0]) if not (folder / TABLE).is_file() else folder
    if part == folder:
        by_part, rest = {}, parts
    config = {"root": str(folder), **({} if part == folder else {"split": part.name})}
    try:
        names = foreground(read_values(part / TABLE).values())
        num_images = len(_pairs(part))
    except DataError as error:  # Roboflow's tables of whole images have this name, too
        return Found("roboflow_masks", 0.2, f"it has a {TABLE} as Roboflow writes it, but: {error}", config, 0)
    why = (
        f"{part.name}/{TABLE} names {len(names)} labels by values, and {num_images} images have a mask NAME{ENDING}.png"
    )
    rest = [name for name in rest if name != config.get("split")]
    splits = {own: {"split": name} for own, name in by_part.items()}
    return Found("roboflow_masks", 0.95, why, {**config, "classes": names}, num_images, splits, not_taken(rest))
