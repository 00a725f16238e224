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
from classyseg.datasets.files.images import Bits, read_colors
from classyseg.datasets.files.lists import has_column
from classyseg.datasets.files.masks import MaskFiles
from classyseg.datasets.files.pairs import ImageAndMask, chosen_pairs, images_alone, matched_pairs, tabled_pairs
from classyseg.datasets.files.rasters import Window, read_colors_window
from classyseg.datasets.files.tiles import TilesConfig
from classyseg.datasets.label_map import LabelMap, color_text, labels_of
from classyseg.datasets.splits import Split, SplitConfig, take_part
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

    Args:
        images: Folder of images.
        masks: Folder of masks, another than that of the images (unless a `table` names the pairs, or `mask_suffix` and
            `image_suffix` tell them apart). Every image needs one, and every mask an image. `null` for images alone: to
            be predicted from Python, or as `dataset.unlabelled`.
        classes: Names of the classes, for the labels 0, 1, ...; to learn anything, two at least: name the background,
            too. Images alone need none as `dataset.unlabelled`.
        mask_suffix: `_mask` for masks called `NAME_mask.png`; other files are passed over.
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
        masks: str | None,
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
        palette: Palette | None = None,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        bits: Bits = 8,
        tiles: TilesConfig | None = None,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        if tiles is not None:
            tiles.check()
        self.classes = _known_classes(classes, masks)
        _check_labels(self.classes, ignore_index, palette, label_map, color_map)
        named = _Named(mask_suffix, image_suffix, nested, list, table, split)
        named.check(masks)
        self.ignore_index = ignore_index
        self.channels = channels
        self.bits = bits
        self.color_map = None if color_map is None else _color_label_map(color_map)
        self.label_map = LabelMap(label_map or {}, others_stay=True)
        self.palette = _colors_of_map(color_map or {}, self.num_classes)
        if palette is not None:
            self.palette = tuple(map(color_from, palette))
        super().__init__(_pairs(images, masks, named), transforms, tiles)

    @classmethod
    def facts_of(cls, config: Any) -> DataFacts:
        facts = super().facts_of(config)
        if getattr(config, "masks", "") is not None:  # a subclass may not have this option
            return facts
        return replace(facts, has_masks=False, classes=() if facts.classes is None else facts.classes)

    @classmethod
    def check_config(cls, config: Any) -> None:
        if cls.__init__ is not Folder.__init__:  # a subclass with options of its own
            return
        if config.tiles is not None:
            config.tiles.check()
        classes = _known_classes(config.classes, config.masks)
        _check_labels(classes, config.ignore_index, config.palette, config.label_map, config.color_map)
        _Named(*(getattr(config, key) for key in _Named._fields)).check(config.masks)

    def read_labels(self, path: Path) -> Tensor:
        return super().read_labels(path) if self.color_map is None else self.color_map(read_colors(path), path)

    def read_label_window(self, path: Path, window: Window) -> Tensor:
        if self.color_map is None:
            return super().read_label_window(path, window)
        return self.color_map(read_colors_window(path, window), path)

    def _label_hint(self, values: list[int]) -> str:
        if self.label_map.labels or self.color_map:
            return ""
        if self.num_classes == 2 and values == [255]:
            return "; for masks of 0 and 255, set label_map: {255: 1}"
        return "; a label_map: {found: class} in the data set's config maps values to classes"


def _known_classes(classes: tuple[str, ...] | None, masks: str | None) -> tuple[str, ...]:
    """Raises: `ConfigError` for masks without names of their classes."""
    if classes is None and masks is not None:
        raise ConfigError("classes", "missing; name the class of each label in the masks: 0, 1, ...")
    return tuple(classes or ())


def _check_labels(
    classes: tuple[str, ...],
    ignore_index: int,
    palette: Palette | None,
    label_map: dict[int, int] | None,
    color_map: dict[str, int] | None,
) -> None:
    """Raises: `ConfigError` for options that do not fit the classes, or each other."""
    if 0 <= ignore_index < len(classes):
        raise ConfigError("ignore_index", f"found {ignore_index}, which is the class {shown(classes[ignore_index])}")
    if palette is not None:
        check_palette(palette, classes)
    labels_of(classes)  # it refuses a name that comes twice
    if label_map and color_map:
        raise ConfigError("color_map", "masks hold either values, for label_map, or colours, for color_map")
    if color_map is not None:
        _color_label_map(color_map)
    if len(classes) > 1:  # a single class is another problem: see `check_min_classes` of tasks, and the doctor
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

    def check(self, masks: str | None) -> None:
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
        if masks is None and (self.table is not None or self.mask_suffix):
            raise ConfigError(
                "masks", "found null together with table or mask_suffix, which are about masks; leave them out"
            )


def _pairs(images: str, masks: str | None, named: _Named) -> Sequence[ImageAndMask]:
    """The files that these options of `Folder` name."""
    with within("images"):
        image_folder = data_folder(images)
    with within("masks"):
        mask_folder = None if masks is None else data_folder(masks)
    if named.table is None and image_folder == mask_folder and not named.mask_suffix:
        raise ConfigError(  # each mask would be an image, too, and perhaps its own mask
            "masks",
            f"found {mask_folder}, which is the folder of the images; put the masks into another one, name the pairs "
            "in a table, or write mask_suffix: _mask if they are called NAME_mask.png",
        )
    taken = _all_pairs(image_folder, mask_folder, named)
    if isinstance(named.split, SplitConfig):
        return take_part(taken, [image for image, _ in taken], named.split, image_folder)
    return taken


def _all_pairs(images: Path, masks: Path | None, named: _Named) -> Sequence[ImageAndMask]:
    table, split = named.table, named.split
    if named.list is not None:
        return chosen_pairs(data_path(named.list), images, masks, named.mask_suffix, nested=named.nested)
    if masks is None:
        return images_alone(images, image_suffix=named.image_suffix, nested=named.nested)
    if table is None:
        return matched_pairs(images, masks, named.mask_suffix, image_suffix=named.image_suffix, nested=named.nested)
    if isinstance(split, SplitConfig):
        if has_column(data_path(table), "split"):
            raise ConfigError(
                "split",
                f"found a mapping, but {data_path(table)} has a column 'split' of its own; name one of its splits",
            )
        return tabled_pairs(data_path(table), images, masks, None)
    return tabled_pairs(data_path(table), images, masks, split)


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
