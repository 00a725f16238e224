"""A folder of images and a folder of masks, matched by name or by a table: what most people have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from torch import Tensor

from classyseg.config import MAX_CHANNELS
from classyseg.console import shown
from classyseg.datasets.classy_dataset import Color, Palette, check_palette, color_from, color_of
from classyseg.datasets.facts import DataFacts
from classyseg.datasets.files.flag_masks import CLASS, MaskPlace, mask_places, read_flags
from classyseg.datasets.files.images import MASK_SUFFIXES, Bits, read_colors
from classyseg.datasets.files.lists import has_column
from classyseg.datasets.files.masks import MaskFiles
from classyseg.datasets.files.pairs import ImageAndMask, chosen_pairs, images_alone, matched_pairs, tabled_pairs
from classyseg.datasets.files.rasters import Window, read_colors_window
from classyseg.datasets.files.tiles import TilesConfig
from classyseg.datasets.label_map import LabelMap, color_text, labels_of
from classyseg.datasets.splits import Split, SplitConfig, named_split, refuse_of, take_part
from classyseg.errors import ConfigError, within
from classyseg.io import data_folder, data_path
from classyseg.registry import DATASETS, TransformConfig


@DATASETS.register("folder")
class Folder(MaskFiles):
    """Images of one folder with masks of another; the values of a mask are indices into `classes`.

    The folders are under the data root, or absolute.

    `NAME.jpg` in one folder goes with `NAME.png` in the other. Images: jpg, png, bmp, tif, webp, and npy of any number
    of channels. Masks: png, bmp, tif, gif of one channel or with a palette (then its indices are the labels), or of
    colours with a `color_map`; JPEG is refused.

    With `multi_label: true` a pixel may have several classes. Then each class has a mask of its own: 1 where a pixel
    has the class, 0 where not, `ignore_index` where nobody knows. Masks lie in one file with a channel for each class
    in the order of `classes` (PNG of up to four channels, TIFF, `.npy` of (H, W, classes)), or in a file for each
    class. With a single class, an ordinary mask is such a file: binary segmentation with one logit. See
    several_classes.md.

    Args:
        images: Folder of images.
        masks: Folder of masks, another than that of the images (unless a `table` names the pairs, or `mask_suffix` and
            `image_suffix` tell them apart). Every image needs one, and every mask an image. `null` for images alone: to
            be predicted from Python, or as `dataset.unlabelled`. With `multi_label` and a file for each class, the
            folder of each: a mapping such as `{road: masks/road, marking: masks/marking}`, or `masks/{class}`.
        classes: Names of the classes, for the labels 0, 1, ...; to learn anything, two at least: name the background,
            too. Images alone need none as `dataset.unlabelled`. With `multi_label`, one is enough, and the background
            is none; where `masks` is a mapping, they are its keys.
        mask_suffix: `_mask` for masks called `NAME_mask.png`; other files are passed over. With `multi_label`,
            `_{class}` for the masks of all classes in one folder.
        image_suffix: `_sat` for images called `NAME_sat.jpg`; other files are passed over. With `mask_suffix`, images
            and masks may lie in one folder.
        nested: Search subfolders, which must be the same under both folders.
        list: Text file, under the data root, with the names of the images that are taken, one a line, in its order;
            other files are left alone.
        table: CSV file, under the data root, with the columns `image` and `mask`, paths under the two folders: the
            pairs, in its order.
        split: With a `table`, take the rows whose column `split` holds this; required where it has that column. Else a
            mapping that takes a part of the files, such as `{part: train, val: 0.2}`: see key `split`.
        label_map: Values in the files to labels, such as `{255: 1}`; applied at once (no value is mapped twice), others
            stay.
        color_map: For masks of colours: colours to labels, such as `{"#804080": 0}`; a colour that is not in it is an
            error.
        ignore_index: The label, after the map, of pixels that count neither in the loss nor in the meters.
        multi_label: A pixel may have several classes, each with a mask of its own.
        ignore_masks: With `multi_label`, a folder of masks that are not 0 where every class is ignored, called as the
            images.
        palette: The colour in which each class is shown, such as `["#000000", "#ff0000"]` (in quotes, as `#` begins a
            comment) or `[[0, 0, 0], [255, 0, 0]]`; without it the colours of `color_map`, or Pascal VOC's.
        channels: Of the images: 3 (everything becomes RGB), 1 (grey), or any number of bands as they are stored: RGBA,
            `.npy`, TIFF (`classyseg[tiff]`). The model's `in_channels` and `normalize` must fit.
        bits: Of a channel; 16 for grey images of 16 bits, TIFF of any bands of 16 bits (`classyseg[tiff]`), and `.npy`
            of uint16; 32 for measured numbers, with signs or in floating point, of TIFF and `.npy`, which stay as they
            are.
        tiles: Large images as samples of tiles: `{size: [512, 512], overlap: 64}`; see key `tiles`.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        images: str,
        masks: str | dict[str, str] | None,
        classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None,
        mask_suffix: str = "",
        image_suffix: str = "",
        nested: bool = False,
        list: str | None = None,
        table: str | None = None,
        split: Split | None = None,
        label_map: dict[int, int] | None = None,
        color_map: dict[str, int] | None = None,
        ignore_index: int = 255,
        multi_label: bool = False,
        ignore_masks: str | None = None,
        palette: Palette | None = None,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        bits: Bits = 8,
        tiles: TilesConfig | None = None,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        if tiles is not None:
            tiles.check()
        self.classes = _known_classes(classes, masks)
        _check_labels(self.classes, ignore_index, palette, label_map, color_map, multi_label)
        named = _Named(mask_suffix, image_suffix, nested, list, table, split)
        named.check(masks)
        _check_flag_masks(masks, named, self.classes, multi_label, ignore_masks, tiles)
        self.ignore_index, self.multi_label = ignore_index, multi_label
        self.channels = channels
        self.bits = bits
        self.color_map = None if color_map is None else _color_label_map(color_map)
        self.label_map = LabelMap(label_map or {}, others_stay=True)
        self.palette = _colors_of_map(color_map or {}, self.num_classes)
        if palette is not None:
            self.palette = tuple(map(color_from, palette))
        self.flag_files: Sequence[FlagFiles] = ()
        """With `multi_label`: each image with its masks, and the one of ignored pixels."""
        if multi_label and masks is not None:
            self.flag_files = _flag_files(images, masks, named, self.classes, ignore_masks)
            pairs: Sequence[ImageAndMask] = [(image, own[0]) for image, own, _ in self.flag_files]
        else:
            pairs = _pairs(images, masks, named)  # type: ignore[arg-type]  # a mapping is refused above
        super().__init__(pairs, transforms, tiles)

    @classmethod
    def facts_of(cls, config: Any) -> DataFacts:
        facts = super().facts_of(config)
        masks = getattr(config, "masks", "")  # a subclass may not have this option
        if isinstance(masks, Mapping) and facts.classes is None:
            facts = replace(facts, classes=tuple(masks))
        if masks is not None:
            return facts
        return replace(facts, has_masks=False, classes=() if facts.classes is None else facts.classes)

    @classmethod
    def check_config(cls, config: Any) -> None:
        if cls.__init__ is not Folder.__init__:  # a subclass with options of its own
            return
        if config.tiles is not None:
            config.tiles.check()
        classes = _known_classes(config.classes, config.masks)
        several = config.multi_label
        _check_labels(classes, config.ignore_index, config.palette, config.label_map, config.color_map, several)
        named = _Named(*(getattr(config, key) for key in _Named._fields))
        named.check(config.masks)
        _check_flag_masks(config.masks, named, classes, several, config.ignore_masks, config.tiles)

    def files(self, index: int) -> tuple[Path, ...]:
        if not self.flag_files:
            return super().files(index)
        image, masks, ignored = self.flag_files[index]
        return (image, *masks, *([] if ignored is None else [ignored]))

    def load_target(self, index: int) -> Tensor:
        if not self.flag_files:
            return super().load_target(index)
        _, masks, ignored = self.flag_files[index]
        return read_flags(masks, self.classes, self.label_map, self.ignore_index, ignored=ignored)

    def read_labels(self, path: Path) -> Tensor:
        return super().read_labels(path) if self.color_map is None else self.color_map(read_colors(path), path)

    def read_label_window(self, path: Path, window: Window) -> Tensor:
        if self.color_map is None:
            return super().read_label_window(path, window)
        return self.color_map(read_colors_window(path, window), path)

    def _label_hint(self, values: list[int]) -> str:
        if self.label_map.labels or self.color_map:
            return ""
        if self.multi_label:
            return "; for masks of 0 and 255, set label_map: {255: 1}" if values == [255] else ""
        if self.num_classes == 2 and values == [255]:
            return "; for masks of 0 and 255, set label_map: {255: 1}"
        return "; a label_map: {found: class} in the data set's config maps values to classes"


def _known_classes(classes: tuple[str, ...] | None, masks: str | Mapping[str, str] | None) -> tuple[str, ...]:
    """Raises: `ConfigError` for masks without names of their classes."""
    if classes is None and isinstance(masks, Mapping) and masks:
        return tuple(masks)
    if classes is None and masks is not None:
        raise ConfigError("classes", "missing; name the class of each label in the masks: 0, 1, ...")
    return tuple(classes or ())


def _check_labels(
    classes: tuple[str, ...],
    ignore_index: int,
    palette: Palette | None,
    label_map: dict[int, int] | None,
    color_map: dict[str, int] | None,
    multi_label: bool = False,
) -> None:
    """Raises: `ConfigError` for options that do not fit the classes, or each other."""
    if multi_label and ignore_index in (0, 1):
        raise ConfigError(
            "ignore_index", f"found {ignore_index}, which with multi_label says whether a pixel has a class"
        )
    if 0 <= ignore_index < len(classes):
        raise ConfigError("ignore_index", f"found {ignore_index}, which is the class {shown(classes[ignore_index])}")
    if palette is not None:
        check_palette(palette, classes)
    labels_of(classes)  # it refuses a name that comes twice
    if label_map and color_map:
        raise ConfigError("color_map", "masks hold either values, for label_map, or colours, for color_map")
    if color_map is not None:
        _color_label_map(color_map)
    if multi_label and color_map is not None:
        raise ConfigError("color_map", "a pixel of a mask has one colour, but with multi_label any number of classes")
    if multi_label:
        _check_targets("label_map", label_map or {}, 2, ignore_index)
    elif len(classes) > 1:  # a single class is another problem: see `check_min_classes` of tasks, and the doctor
        _check_targets("label_map", label_map or {}, len(classes), ignore_index)
        _check_targets("color_map", color_map or {}, len(classes), ignore_index)


def _check_targets(key: str, labels: Mapping[Any, int], num_classes: int, ignore_index: int) -> None:
    """Raises: `ConfigError` for a map to a number that is no class."""
    for value, label in labels.items():
        if not 0 <= label < num_classes and label != ignore_index:
            raise ConfigError(
                key,
                f"maps {value} to {label}, which is no class; accepted: 0 to {num_classes - 1}, and "
                f"{ignore_index} to ignore a value",
            )


class _Named(NamedTuple):
    """The options of `Folder` that say which files it takes."""

    mask_suffix: str
    image_suffix: str
    nested: bool
    list: str | None
    table: str | None
    split: str | SplitConfig | None

    def check(self, masks: str | Mapping[str, str] | None) -> None:
        """Raises: `ConfigError` for options that exclude each other."""
        if self.table is not None and (self.mask_suffix or self.image_suffix or self.nested):
            raise ConfigError(
                "table", "names the pairs itself; mask_suffix, image_suffix and nested are for folders without one"
            )
        if self.list is not None and self.table is not None:
            raise ConfigError("list", "names images, and so does table; leave one of them out")
        if self.list is not None and self.image_suffix:
            raise ConfigError("image_suffix", "found together with list, whose lines are whole names; leave it out")
        if self.image_suffix and self.image_suffix == self.mask_suffix:
            raise ConfigError("image_suffix", f"found {shown(self.image_suffix)}, which is the mask_suffix, too")
        if isinstance(self.split, str) and self.table is None:
            raise ConfigError(
                "split",
                f"found {shown(self.split)}, but only a table has splits with names; {{part: "
                f"{_likely_part(self.split)}, val: 0.2}} takes a part of a folder",
            )
        if isinstance(self.split, SplitConfig) and self.table is None:
            refuse_of(self.split)
        if masks is None and (self.table is not None or self.mask_suffix):
            raise ConfigError(
                "masks", "found null together with table or mask_suffix, which are about masks; leave them out"
            )


FlagFiles = tuple[Path, tuple[Path, ...], Path | None]
FLAG_SUFFIXES = (*MASK_SUFFIXES, ".npy")


def _check_flag_masks(
    masks: str | Mapping[str, str] | None,
    named: _Named,
    classes: Sequence[str],
    multi_label: bool,
    ignore_masks: str | None,
    tiles: TilesConfig | None,
) -> None:
    """Raises: `ConfigError` for options of masks of each class that do not fit each other."""
    if multi_label and tiles is not None:
        raise ConfigError("tiles", "found together with multi_label, whose masks are read whole; cut the files first")
    if multi_label:
        one_each = masks is not None and mask_places(masks, named.mask_suffix, classes)[1]
        if named.table is not None and one_each:
            raise ConfigError("table", "names one mask of each image, but each class has its own: leave the table out")
        return
    if ignore_masks is not None:
        raise ConfigError("ignore_masks", "is for multi_label: true; other masks hold ignore_index themselves")
    if isinstance(masks, Mapping) or CLASS in f"{masks}{named.mask_suffix}":
        raise ConfigError(
            "masks", "found a place of its own for each class, where a pixel may have several: add multi_label: true"
        )


def _pairs(images: str, masks: str | None, named: _Named) -> Sequence[ImageAndMask]:
    """The files that these options of `Folder` name."""
    with within("images"):
        image_folder = data_folder(images)
    place = None if masks is None else MaskPlace(masks, named.mask_suffix, "masks")
    taken = _all_pairs(image_folder, place, named)
    if isinstance(named.split, SplitConfig):
        return take_part(taken, [image for image, _ in taken], named.split, image_folder)
    return taken


def _flag_files(
    images: str,
    masks: str | Mapping[str, str],
    named: _Named,
    classes: Sequence[str],
    ignore_masks: str | None,
) -> Sequence[FlagFiles]:
    """The images with the masks of all classes, and the mask of ignored pixels."""
    with within("images"):
        folder = data_folder(images)
    places, one_each = mask_places(masks, named.mask_suffix, classes)
    suffixes = {place.suffix for place in places if one_each}
    found: list[dict[Path, Path]] = []
    for place in [*places, *([] if ignore_masks is None else [MaskPlace(ignore_masks, "", "ignore_masks")])]:
        longer = [other for other in suffixes if other != place.suffix and other.endswith(place.suffix)]
        kinds: dict[str, Any] = {"mask_suffixes": FLAG_SUFFIXES, "longer": longer if place.suffix else ()}
        pairs = _all_pairs(folder, place, named, apart=one_each, **kinds)
        found.append({image: mask for image, mask in pairs if mask is not None})
    # An image that lacks a mask is an error, unless the doctor collects them: then it is left out.
    taken = [image for image in found[0] if all(image in each for each in found)]
    if isinstance(named.split, SplitConfig):
        taken = [*take_part(taken, taken, named.split, folder)]
    count = len(places)
    return [
        (image, tuple(each[image] for each in found[:count]), found[count][image] if found[count:] else None)
        for image in taken
    ]


def _all_pairs(
    images: Path,
    place: MaskPlace | None,
    named: _Named,
    *,
    apart: bool = False,
    mask_suffixes: tuple[str, ...] = MASK_SUFFIXES,
    longer: Sequence[str] = (),
) -> Sequence[ImageAndMask]:
    """The pairs of a folder of masks, which lies `apart` from that of the images, or has names that tell them apart."""
    options: dict[str, Any] = {"nested": named.nested, "mask_suffixes": mask_suffixes, "longer": longer}
    masks, suffix = None, ""
    if place is not None:
        suffix = place.suffix
        with within(place.key):
            masks = data_folder(place.folder)
        if named.table is None and images == masks and (apart or not suffix):
            raise ConfigError(  # each mask would be an image, too, and perhaps its own mask
                place.key,
                f"found {masks}, which is the folder of the images; put the masks into another one"
                + (
                    ""
                    if apart
                    else ", name the pairs in a table, or write mask_suffix: _mask if they are called NAME_mask.png"
                ),
            )
    table, split = named.table, named.split
    if named.list is not None:
        return chosen_pairs(data_path(named.list), images, masks, suffix, **options)
    if masks is None:
        return images_alone(images, image_suffix=named.image_suffix, nested=named.nested)
    if table is None:
        return matched_pairs(images, masks, suffix, image_suffix=named.image_suffix, **options)
    if isinstance(split, SplitConfig) and split.of is None and has_column(data_path(table), "split"):
        raise ConfigError(
            "split",
            f"found a mapping, but {data_path(table)} has a column 'split' of its own; name one of its splits, or "
            "divide one of them: of: train",
        )
    return tabled_pairs(data_path(table), images, masks, named_split(split))


def _likely_part(split: str) -> str:
    return split if split in ("train", "val") else "train"


def _color_label_map(color_map: dict[str, int]) -> LabelMap:
    """Raises: `ConfigError` for keys that are no colours."""
    wrong = [key for key in color_map if not re.fullmatch(r"#[0-9a-fA-F]{6}", key)]
    if wrong or not color_map:
        found = f"'{wrong[0]}'" if wrong else "nothing"
        raise ConfigError("color_map", f"found {found}; accepted are colours such as '#804080'")
    labels = {int(key[1:], 16): label for key, label in color_map.items()}
    if len(labels) < len(color_map):
        raise ConfigError("color_map", "found one colour twice, in small and in capital letters")
    return LabelMap(labels, text=color_text)


def _colors_of_map(color_map: dict[str, int], num_classes: int) -> tuple[Color, ...]:
    """The first colour of each class, if all classes have one."""
    colors = {label: color_of(key[1:]) for key, label in reversed(color_map.items())}
    return tuple(colors[label] for label in range(num_classes)) if all(i in colors for i in range(num_classes)) else ()
