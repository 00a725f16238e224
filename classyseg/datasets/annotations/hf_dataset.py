"""Data sets of Hugging Face's `datasets` with a column of images and one of masks, from the disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch import Tensor

from classyseg.config import MAX_CHANNELS, listed, unknown
from classyseg.console import MAX_NAME, printable, shown
from classyseg.datasets.annotations.class_labels import Classes, ClassLabels
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.annotations.image_files import ImageFiles
from classyseg.datasets.annotations.named_masks import NamedMasks
from classyseg.datasets.classy_dataset import Palette
from classyseg.datasets.files.hf_tables import Rows, Tables, features_of, require_pyarrow, schema_of, splits_of
from classyseg.datasets.files.images import Bits, read_image, read_mask_values
from classyseg.datasets.files.json_file import in_words, read_json
from classyseg.datasets.label_map import UnknownValueError
from classyseg.datasets.recognition.roles import not_taken, one_of_each, part_named
from classyseg.datasets.splits import Split, SplitConfig, indices_of_part, name_key, named_split
from classyseg.errors import ConfigError, DataError, within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig
from classyseg.structures import Sample

NAMES = "id2label.json"
IMAGES = ("image", "images", "pixel_values", "img")
MASKS = (
    "label",
    "mask",
    "labels",
    "masks",
    "annotation",
    "segmentation_mask",
    "semantic_mask",
    "segmentation",
    "seg_map",
)
"""Columns that are taken where the config names none: the first one that is there and holds images, or masks."""
MAX_LABELS = 65_536
MAX_KIND = 60
"""The most characters of a column's type in a message."""


@DATASETS.register("hf_dataset")
class HfDataset(NamedMasks):
    """A data set of Hugging Face's `datasets`: a folder of `save_to_disk`, or of Parquet files. Read by pyarrow.

    It needs `pip install 'classyseg[hf]'`. One column holds images, another masks of whole numbers: as image files, or
    as lists of rows. The numbers stand for the names in `id2label.json`, which lies in the folder, or those of the mask
    column's `ClassLabel`, or else the `classes` of the config in their order.

    Args:
        root: The folder.
        split: The name of a split, such as `train`; needed where there are several. Or a mapping that takes a part of
            the rows, such as `{part: train, val: 0.2, by: file}`, or of one split: `{part: train, val: 0.2, by: file,
            of: train}`; see key `split`. Its groups are made of the names of the images in the table, and of the rows'
            numbers where it has none.
        image_column: The column of images; null: `image`, or another usual name.
        mask_column: The column of masks; null: `label`, `mask`, or another usual name of a column that can be masks.
        classes: Names of the classes, which are also their labels: `[car, road]`. Or the labels of each class:
            `{vehicle: [car, truck], road: [road]}`. Their order is that of the indices. null: the labels of the data
            set.
        ignore_index: The label of ignored pixels; also the number of such pixels in masks, unless it has a name.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        root: str,
        split: Split | None = None,
        image_column: str | None = None,
        mask_column: str | None = None,
        classes: Classes = None,
        ignore: tuple[str, ...] = (),
        ignore_index: int = 255,
        palette: Palette | None = None,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        bits: Bits = 8,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        require_pyarrow()
        with within("root"):
            folder = data_folder(root)
        tables = _chosen(splits_of(folder), split, folder)
        self._image_column = _column("image_column", image_column, IMAGES, _is_file, tables.files[0])
        self._mask_column = _column("mask_column", mask_column, MASKS, _is_mask, tables.files[0])
        named = _names(folder, tables, self._mask_column) or _names_of(classes, folder)
        self._rows = Rows(tables.files, (self._image_column, self._mask_column))
        self._images = ImageFiles(tables.folder)
        self._indices: list[int] | range = range(len(self._rows))
        if isinstance(split, SplitConfig):
            names = [self._name(row) for row in self._indices]
            self._indices = indices_of_part(names, split, folder)
        if not self._indices:
            raise DataError(f"{folder}: it has no rows")
        labels = ClassLabels.of(classes, None, ignore, "file", ignore_index, found=named.values())
        super().__init__((), labels, named, palette, channels, bits, transforms, ignored_too=True)

    def __len__(self) -> int:
        return len(self._indices)

    def files(self, index: int) -> tuple[Path, ...]:
        return (self._rows.place(self._indices[index])[0],)

    def names_of(self, index: int) -> tuple[str, str]:
        return self._place(index, self._image_column), self._place(index, self._mask_column)

    def described(self, index: int) -> str:
        path, row = self._rows.place(self._indices[index])
        return f"sample {index} ({path}, row {row})"

    def load(self, index: int) -> Sample:
        return Sample(self.load_image(index), self.load_target(index), self._place(index, self._mask_column))

    def load_image(self, index: int) -> Tensor:
        with _naming(self._place(index, self._image_column)):
            source = self._source(index, self._image_column)
            return read_image(source, channels=self.channels, bits=self.bits, exif=self.exif)

    def load_target(self, index: int) -> Tensor:
        place = self._place(index, self._mask_column)
        try:
            with _naming(place):
                value = self._rows.value(self._indices[index], self._mask_column)
                if require_pyarrow().types.is_nested(value.type) and not _is_struct(value.type):
                    return self.label_map(_array_of(value), place)
                return self.label_map(read_mask_values(self._source(index, self._mask_column)), place)
        except UnknownValueError as error:
            raise self.explained(error, place) from None

    def _place(self, index: int, column: str) -> str:
        path, row = self._rows.place(self._indices[index])
        return f"{path}, row {row}, {printable(column, MAX_NAME)}"

    def _source(self, index: int, column: str) -> Path | bytes:
        """The content of an image file, or its path in the folder of the table. Raises: `DataError`."""
        value = self._rows.value(self._indices[index], column)
        if not _is_struct(value.type):
            content = value.as_py()
            if isinstance(content, bytes) and content:
                return content
            raise DataError(f"is {_kind(value)}; expected an image as `datasets` stores it: its bytes, or its path")
        content, path = (value[key].as_py() if value.is_valid else None for key in ("bytes", "path"))
        if content:
            return content  # type: ignore[no-any-return]
        if not path:
            raise DataError("is empty: neither bytes nor a path")
        found = self._images.find(path, self._images.root)
        if found is None:
            raise DataError(f"is the file {shown(path, MAX_NAME)}, which is not in {self._images.root}")
        return found

    def _name(self, row: int) -> str:
        """The name of the image of a row, for its group."""
        value = self._rows.value(row, self._image_column)
        path = value["path"].as_py() if _is_struct(value.type) and value.is_valid else None
        return path or f"{row}"


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Puts the row before the sentence of a `DataError` from inside."""
    try:
        yield
    except UnknownValueError:
        raise
    except DataError as error:
        raise type(error)(str(error).removeprefix(": "), file=place) from None


def _is_struct(kind: Any) -> bool:
    """Whether a column is of images as `datasets` stores them."""
    return require_pyarrow().types.is_struct(kind) and {field.name for field in kind} >= {"bytes", "path"}  # type: ignore[no-any-return]


def _is_list(kind: Any) -> bool:
    types = require_pyarrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_file(kind: Any) -> bool:
    """Whether a column can be image files: as `datasets` stores them, or as their bytes alone."""
    types = require_pyarrow().types
    return _is_struct(kind) or bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    )


def _is_mask(kind: Any) -> bool:
    """Whether a column can be masks: image files, or lists of rows of whole numbers."""
    if not (_is_list(kind) and _is_list(kind.value_type)):
        return _is_file(kind)
    return bool(require_pyarrow().types.is_integer(kind.value_type.value_type))


def _kind(value: Any) -> str:
    return "empty" if not value.is_valid else f"a value of the type {value.type}"


def _array_of(value: Any) -> Any:
    """A mask that is a list of rows, as an array. Raises: `DataError` where it is none."""
    if not (_is_list(value.type) and _is_list(value.type.value_type)):
        raise DataError(f"is {_kind(value)}; expected an image as `datasets` stores it, or a list of rows of numbers")
    rows: Any = value.values if value.is_valid else None
    if rows is None or not len(rows):
        raise DataError("is empty; expected a mask")
    lengths = {len(row.values) if row.is_valid else 0 for row in rows}
    numbers = rows.flatten()
    if (
        not require_pyarrow().types.is_integer(numbers.type)
        or numbers.null_count
        or len(lengths) != 1
        or lengths == {0}
    ):
        raise DataError("is a list of lists, but no rows of one length of whole numbers")
    array = numbers.to_numpy(zero_copy_only=False).reshape(len(rows), -1)
    return array if array.dtype != np.uint64 else array.astype(np.int64)


def _chosen(splits: Mapping[str, Tables], split: Split | None, folder: Path) -> Tables:
    """Raises: `ConfigError` for a split that is not there, and where one must be named."""
    name, key = named_split(split), name_key(split)
    if name is None and len(splits) == 1:
        return next(iter(splits.values()))
    if name is None:
        raise ConfigError(key, f"missing; {folder} has the splits {listed(list(splits))}: name one")
    if name not in splits:
        if "" in splits:
            raise ConfigError(key, f"found {shown(name)}, but {folder} is a data set without splits; leave it out")
        raise ConfigError(key, unknown("split", name, splits))
    return splits[name]


def _column(key: str, given: str | None, usual: tuple[str, ...], fits: Callable[[Any], bool], path: Path) -> str:
    """The column of a config, or the first usual one of a type that fits. Raises: `ConfigError`."""
    schema = schema_of(path)
    if given is not None and given not in schema.names:
        raise ConfigError(key, unknown("column", given, schema.names))
    looked_for = usual if given is None else (given,)
    found = [field.name for name in looked_for for field in schema if field.name == name and fits(field.type)]
    if found:
        return found[0]
    what = "images" if fits is _is_file else "masks: image files, or lists of rows of whole numbers"
    told = f"its columns: {_told_columns(schema)}"
    if given is not None:
        raise ConfigError(key, f"found {shown(given)}, a column of {path} that cannot be {what}; {told}")
    raise ConfigError(key, f"missing, and {path} has no column {' or '.join(usual[:2])} that can be {what}; {told}")


def _told_columns(schema: Any) -> str:
    """The columns with their types, for messages."""
    kinds = [(each.name, "images" if _is_struct(each.type) else str(each.type)) for each in schema]
    return listed([f"{printable(name, MAX_NAME, exact=True)} ({printable(kind, MAX_KIND)})" for name, kind in kinds])


def _names(folder: Path, tables: Tables, column: str) -> dict[int, str]:
    """The label of each number, as `id2label.json` or the column itself says it. Raises: `DataError`."""
    for place in dict.fromkeys((tables.folder, folder)):
        if (place / NAMES).is_file():
            return read_names(place / NAMES)
    feature: Any = features_of(tables.files[0]).get(column)
    for _ in range(4):
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
            feature = feature.get("feature")
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return dict(enumerate(names))
    return {}


def read_names(path: Path) -> dict[int, str]:
    """The label of each number in an `id2label.json`. Raises: `DataError`."""
    contents = read_json(path, max_bytes=2**24)
    if not isinstance(contents, dict) or not contents or len(contents) > MAX_LABELS:
        raise DataError(f'is {in_words(contents)}; expected a mapping such as {{"0": "road"}}', file=path)
    found: dict[int, str] = {}
    for key, name in contents.items():
        if not re.fullmatch(r"\d{1,9}", key, re.ASCII) or int(key) in found:
            raise DataError(f"has the key {shown(key, MAX_NAME)}; expected whole numbers, each once", file=path)
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"its label of {key} is {in_words(name)}; a text is expected", file=path)
        found[int(key)] = name
    if len({*found.values()}) != len(found):
        raise DataError("has one label for two numbers; give each its own", file=path)
    return dict(sorted(found.items()))


def _names_of(classes: Classes, folder: Path) -> dict[int, str]:
    """The classes of the config as the labels of 0, 1, .... Raises: `ConfigError`."""
    if classes is None or isinstance(classes, Mapping):
        raise ConfigError(
            "classes",
            f"found {'none' if classes is None else 'labels of classes'}, and {folder} does not say which labels its "
            f"numbers stand for; name the classes of 0, 1, ... as a list, or write {folder / NAMES}",
        )
    return dict(enumerate(classes))


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as a Hugging Face data set; None if it is none."""
    try:
        saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
        if not saved and next(folder.rglob("*.parquet"), None) is None:
            return None
        splits = splits_of(folder)
    except (DataError, OSError):
        return None
    by_part, rest = one_of_each({name: part_named(name) for name in splits})
    split = next(iter(by_part.values()), next(iter(splits)))
    rest = [name for name in rest if name != split]
    config: dict[str, Any] = {"root": str(folder), **({} if len(splits) == 1 else {"split": split})}
    try:
        rows = sum(_count(path) for path in splits[split].files)
        schema = schema_of(splits[split].files[0])
        if sum(_is_mask(field.type) for field in schema) < 2:  # images can be masks, too
            why = f"it is a Hugging Face data set, but it has no column of masks: its columns: {_told_columns(schema)}"
            return Found("hf_dataset", 0.2, why, config, rows)
        image = _column("image_column", None, IMAGES, _is_file, splits[split].files[0])
        mask = _column("mask_column", None, MASKS, _is_mask, splits[split].files[0])
        names = _names(folder, splits[split], mask)
    except ConfigError as error:
        why = f"it is a Hugging Face data set, but: {error}"
        return Found("hf_dataset", 0.5 if saved else 0.3, why, config, 0)
    if names:
        config["classes"] = list(names.values())
    form = "as save_to_disk writes it" if saved else "in Parquet files"
    why = f"it is a Hugging Face data set {form}, with {rows} rows of {image} and {mask} in {split or 'it'}"
    why += "" if names else f"; which classes the numbers of {mask} stand for, it does not say"
    parts = {part: {"split": each} for part, each in by_part.items() if len(splits) > 1}
    return Found("hf_dataset", 0.95 if names else 0.8, why, config, rows, parts, not_taken(rest))


def _count(path: Path) -> int:
    return len(Rows([path], ()))
