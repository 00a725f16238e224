"""CVAT's "Segmentation mask 1.1": images, masks of colours, and a text file that says which label a colour is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from classyseg.config import MAX_CHANNELS, listed, unknown
from classyseg.console import MAX_NAME, printable, shown
from classyseg.datasets.annotations.annotated_images import no_labels
from classyseg.datasets.annotations.class_labels import BACKGROUND, Classes
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.annotations.named_masks import Empty, NamedMasks, class_labels, foreground
from classyseg.datasets.classy_dataset import Palette
from classyseg.datasets.files.images import IMAGE_SUFFIXES, MASK_SUFFIXES, Bits
from classyseg.datasets.files.lists import lines_of, normal, same_names
from classyseg.datasets.files.pairs import ImageAndMask, files_by_name, read_names, report_fault
from classyseg.datasets.recognition.roles import divided_anew, one_of_each, part_named
from classyseg.datasets.splits import Split, SplitConfig, name_key, named_split, take_part
from classyseg.errors import ConfigError, DataError, within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig

LABELS = "labelmap.txt"
MASKS = "SegmentationClass"
MAX_LABELS = 65_536


@DATASETS.register("cvat_masks")
class CvatMasks(NamedMasks):
    """CVAT's export "Segmentation mask 1.1": `JPEGImages`, `SegmentationClass`, `labelmap.txt`, lists of names.

    The labels and their colours are those of `labelmap.txt`. The lists in `ImageSets/Segmentation` say which images
    count, others are left alone; without that folder, all do.

    Args:
        root: The folder of the export, unpacked.
        images: The folder of the images in `root`; `JPEGImages` is there if the export was made with images.
        split: The name of one list, such as `default` or `Train`; null: all lists. Or a mapping that takes a part of
            the files, such as `{part: train, val: 0.2}`, or of one list: `{part: train, val: 0.2, of: Train}`; see key
            `split`.
        empty: CVAT writes no mask for an image without an annotation. `error`: name these images. `background`: every
            pixel is background. `skip`: leave them out.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        root: str,
        images: str = "JPEGImages",
        split: Split | None = None,
        classes: Classes = None,
        background: str | None = BACKGROUND,
        ignore: tuple[str, ...] = (),
        empty: Empty = "error",
        ignore_index: int = 255,
        palette: Palette | None = None,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        bits: Bits = 8,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(root)
            named = read_label_map(folder / LABELS)
            masks = data_folder(str(folder / MASKS))
        with within("images"):
            image_folder = data_folder(str(folder / images))
        labels = class_labels(classes, background, ignore, ignore_index, named.values())
        if classes is None and not foreground(named.values()):
            raise no_labels(folder / LABELS)
        listed_names = _listed(folder, split)
        pairs = _pairs(image_folder, masks, listed_names, empty)
        if isinstance(split, SplitConfig):
            pairs = take_part(pairs, [image for image, _ in pairs], split, image_folder)
        super().__init__(pairs, labels, named, palette, channels, bits, transforms, of_colors=True)


def read_label_map(path: Path) -> dict[int, str]:
    """The label of each colour, 65536 R + 256 G + B. Black is the background, unless the file gives it a label.

    Raises: `DataError` for another kind of file, naming the line.
    """
    found: dict[int, str] = {}
    lines: dict[str, int] = {}
    for number, name, color in _entries(path):
        if normal(name) in lines:
            raise DataError(f"{path}, line {number}: the label {shown(name)} stands in line {lines[normal(name)]}, too")
        lines[normal(name)] = number
        if color is None:  # a label of boxes alone has no colour
            continue
        if color in found:
            raise DataError(
                f"{path}, line {number}: the labels {shown(found[color])} and {shown(name)} have one colour"
            )
        found[color] = name
        if len(lines) > MAX_LABELS:
            raise DataError(f"{path}: names more than {MAX_LABELS:,} labels")
    if not found:
        raise DataError(f"{path}: names no label; its lines are name:red,green,blue:parts:actions")
    if BACKGROUND not in map(str.casefold, found.values()):
        found.setdefault(0, BACKGROUND)
    return found


def _entries(path: Path) -> Iterator[tuple[int, str, int | None]]:
    """The number of each line that is no comment, its label, and the number of its colour."""
    for number, line in lines_of(path):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, *cells = line.rsplit(":", 3)
        if len(cells) != 3 or not name.strip():
            raise DataError(f"{path}, line {number}: found no name:red,green,blue:parts:actions, as CVAT writes it")
        written = [cell.strip() for cell in cells[0].split(",")]
        if written == [""]:
            yield number, name.strip(), None
            continue
        if len(written) != 3 or not all(
            cell.isascii() and cell.isdecimal() and int(cell[:4]) < 256 for cell in written
        ):
            raise DataError(
                f"{path}, line {number}: the colour of {shown(name, MAX_NAME)} is {shown(cells[0], MAX_NAME)}; "
                "accepted are red, green and blue, 0 to 255 each, such as 250,50,83"
            )
        red, green, blue = map(int, written)
        yield number, name.strip(), red << 16 | green << 8 | blue


def _lists(folder: Path) -> dict[str, Path]:
    """The lists of names of an export, by their own names."""
    return {path.stem: path for path in sorted((folder / "ImageSets" / "Segmentation").glob("*.txt"))}


def _listed(folder: Path, split: Split | None) -> list[str] | None:
    """The names in one list, or in all; None if there is no list. Raises: `ConfigError` for one that is not there."""
    lists, name = _lists(folder), named_split(split)
    if name is not None and name not in lists:
        where = folder / "ImageSets" / "Segmentation"
        raise ConfigError(name_key(split), f"{unknown('list', name, lists)} Lists are looked for as {where}/NAME.txt")
    chosen = lists if name is None else {name: lists[name]}
    names = [name for path in chosen.values() for name in read_names(path)]
    return [*dict.fromkeys(names)] if lists else None


def _pairs(images: Path, masks: Path, names: list[str] | None, empty: Empty) -> list[ImageAndMask]:
    """The images that `names` lists, or all, with their masks. Raises: `DataError` for what is missing."""
    by_name = files_by_name(images, IMAGE_SUFFIXES, "image", nested=True)
    masks_by_name = files_by_name(masks, MASK_SUFFIXES, "mask", nested=True)
    if names is None:
        owners = same_names(masks_by_name, by_name, str(images))
        _report(
            "missing_image", f"{images}: no image", [n for n in masks_by_name if n not in owners], len(masks_by_name)
        )
        names = list(by_name)
    chosen = same_names(names, by_name, str(images))
    _report("missing_image", f"{images}: no image", [name for name in names if name not in chosen], len(names))
    partners = same_names(chosen, masks_by_name, str(masks))
    alone = [name for name in chosen if name not in partners]
    if empty == "error":
        hint = (
            "; CVAT writes none for an image without an annotation. If they have no object, set empty: background; if "
            "nobody has annotated them, empty: skip"
        )
        _report("missing_mask", f"{masks}: no mask", alone, len(chosen), hint)
    found = [(by_name[chosen[n]], masks_by_name[partners[n]] if n in partners else None) for n in chosen]
    return [(image, mask) for image, mask in found if mask is not None or empty == "background"]


def _report(kind: str, told: str, names: list[str], total: int, hint: str = "") -> None:
    if names:
        some = listed([printable(name, MAX_NAME, exact=True) for name in names], limit=5)
        report_fault(kind, f"{told} for {len(names)} of {total} names: {some}{hint}", names)


class _Count(NamedTuple):
    images: int
    without_mask: int


def _counted(folder: Path) -> _Count:
    pairs = _pairs(folder / "JPEGImages", folder / MASKS, _listed(folder, None), "background")
    return _Count(len(pairs), sum(mask is None for _, mask in pairs))


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as an export of CVAT's masks; None if it is none."""
    if not ((folder / LABELS).is_file() and (folder / MASKS).is_dir()):
        return None
    try:
        names = foreground(read_label_map(folder / LABELS).values())
        count = _counted(folder)
    except (ConfigError, DataError) as error:
        why = f"it has {LABELS} and {MASKS} as CVAT writes them, but: {error}"
        return Found("cvat_masks", 0.5, why, {"root": str(folder)}, 0)
    config: dict[str, object] = {"root": str(folder), "classes": names}
    why = f"{LABELS} names {len(names)} labels with colours, and {MASKS} has masks of {count.images} images"
    if count.without_mask:
        config["empty"] = "background"
        why += f"; {count.without_mask} of them have no mask, as CVAT writes none for an image without an annotation"
    lists = {name: {*read_names(path)} for name, path in _lists(folder).items()}
    by_part, rest = one_of_each({name: part_named(name) for name in lists})
    taken = {image for name in by_part.values() for image in lists[name]}
    is_whole = all(lists[name] <= taken for name in rest)
    notes = () if is_whole or not by_part else (divided_anew("lists", [*lists]),)
    parts = {part: {"split": name} for part, name in by_part.items()} if is_whole and len(by_part) > 1 else {}
    return Found("cvat_masks", 0.95, why, config, count.images, parts, notes)
