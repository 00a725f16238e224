"""Images with their classes from a list: a table, a text file, or the config itself."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

from pydantic import Field

from classyseg.config import ConfigError, DataError, listed, within
from classyseg.datasets.classification_dataset import LabelledFiles
from classyseg.datasets.label_map import labels_of
from classyseg.datasets.pairs import existing_files, read_text
from classyseg.io import data_folder, data_path
from classyseg.registry import DATASETS, TransformConfig

Row = tuple[str, str]
"""The path and the class of an image, as written."""


@DATASETS.register("image_paths")
class ImagePaths(LabelledFiles):
    """Files of the folder `images`, in the order of a list that names each with its class, or the class's number.

    The list is `paths` with `labels`, or a file `table`: a CSV file with a column for each of the two, or any other
    text file of lines such as `birds/0001.jpg 12`.
    """

    def __init__(
        self,
        *,
        images: str,
        classes: Annotated[tuple[str, ...], Field(min_length=1)],
        table: str | None = None,
        image_column: str = "image",
        label_column: str = "label",
        paths: tuple[str, ...] = (),
        labels: tuple[str | int, ...] = (),
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        if (table is None) == (not paths):
            raise ConfigError("give one of 'table' and 'paths'")
        if len(paths) != len(labels):
            raise ConfigError(f"labels: found {len(labels)} for {len(paths)} paths; expected one each")
        self.classes = tuple(classes)
        known = labels_of(self.classes)
        with within("images"):
            folder = data_folder(images)
        if table is None:
            place = "paths"
            rows = [(path, str(label)) for path, label in zip(paths, labels, strict=True)]
        else:
            place = str(data_path(table))
            is_csv = place.lower().endswith(".csv")
            rows = _read_csv(Path(place), image_column, label_column) if is_csv else _read_lines(Path(place))
        labelled = [(path, _label(place, path, text, known)) for path, text in rows]
        super().__init__(existing_files(place, folder, labelled), transforms)


def _read_csv(table: Path, image_column: str, label_column: str) -> list[Row]:
    rows = list(csv.DictReader(read_text(table).splitlines()))
    columns = [column for column in rows[0] if column is not None] if rows else []
    if image_column not in columns or label_column not in columns:
        raise DataError(
            f"{table}: found the columns {listed(columns) or 'none'}; the first line must name {image_column} and "
            f"{label_column} (see image_column and label_column), and rows must follow"
        )
    return [(row[image_column] or "", row[label_column] or "") for row in rows]


def _read_lines(table: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(read_text(table).splitlines(), start=1):
        words = line.rsplit(maxsplit=1)
        if len(words) == 1:
            raise DataError(f"{table}, line {number}: found '{line:.80}'; expected a path, a space and a class")
        if words:
            rows.append((words[0].strip(), words[1]))
    if not rows:
        raise DataError(f"{table}: an empty list; expected lines of a path, a space and a class")
    return rows


def _label(place: str, path: str, text: str, known: dict[str, int]) -> int:
    if text in known:
        return known[text]
    if text.isdecimal() and int(text) < len(known):
        return int(text)
    raise DataError(
        f"{place}: the class of {path} is '{text}'; accepted: 0 to {len(known) - 1}, or {listed([*known], limit=10)}"
    )
