"""Images with their classes from a list: a table, a text file, or the config itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from classyseg.config import listed
from classyseg.console import MAX_NAME, printable, shown
from classyseg.datasets.classification_dataset import LabelledFiles
from classyseg.datasets.files.lists import BLANKS, cell, lines_of, normal, read_table, words_of
from classyseg.datasets.files.pairs import existing_files
from classyseg.datasets.label_map import labels_of
from classyseg.errors import ConfigError, DataError, within
from classyseg.io import data_folder, data_path
from classyseg.registry import DATASETS, TransformConfig

Row = tuple[str, str, str]
"""The place of a row in messages, and the path and the class of an image, as written."""


@DATASETS.register("image_paths")
class ImagePaths(LabelledFiles):
    """Files of the folder `images`, in the order of a list that gives the name or number of each one's class.

    The list is `paths` with `labels`, or a file `table`: a .csv or .tsv with a column for each of the two, or any other
    text file of lines such as `birds/0001.jpg 12`.

    With `multi_label` an image has any number of classes: `a.jpg,cat;dog` in a table, `a.jpg 0;1` in a text file, where
    an image without a class has nothing there, and lists in `labels`.

    Args:
        images: The folder that the paths start from.
        classes: Names of the classes, for the labels 0, 1, ...
        table: The list: a `.csv` or `.tsv` file, or another text file whose lines are a path, a space and a class.
        image_column: The column of the paths, in a CSV file.
        label_column: The column of the classes, in a CSV file: names or numbers.
        paths: The list itself, instead of `table`.
        labels: The class of each of `paths`: names or numbers. With `multi_label`, a list of them for each.
        multi_label: Images have several classes each.
        separator: Between the classes of an image in the list.
        transforms: Transforms.
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
        labels: tuple[str | int | tuple[str | int, ...], ...] = (),
        multi_label: bool = False,
        separator: Annotated[str, Field(min_length=1)] = ";",
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        if (table is None) == (not paths):
            raise ConfigError("give one of 'table' and 'paths'")
        if len(paths) != len(labels):
            raise ConfigError("labels", f"found {len(labels)} for {len(paths)} paths; expected one each")
        self.classes = tuple(classes)
        self.multi_label = multi_label
        known = {normal(name): label for name, label in labels_of(self.classes).items()}
        with within("images"):
            folder = data_folder(images)
        if table is None:
            place = "paths"
            rows = [(place, path, _written(label, separator)) for path, label in zip(paths, labels, strict=True)]
            if not multi_label and any(isinstance(label, tuple) for label in labels):
                raise ConfigError("labels", "found a list of classes of one image; set multi_label: true")
        else:
            place = str(data_path(table))
            is_table = place.lower().endswith((".csv", ".tsv"))
            rows = (
                _read_table(Path(place), image_column, label_column, may_lack=multi_label)
                if is_table
                else _read_lines(Path(place), may_lack=multi_label)
            )
        labelled: list[tuple[str, Any]] = [(row[1], _label(row, folder, known)) for row in rows if not multi_label]
        for row in rows if multi_label else ():
            words = [word for word in row[2].split(separator) if word.strip(BLANKS)]
            labelled.append((row[1], tuple(_label((*row[:2], word), folder, known) for word in words)))
        super().__init__(existing_files(place, folder, labelled), transforms)


def _read_table(table: Path, image_column: str, label_column: str, *, may_lack: bool) -> list[Row]:
    rows = read_table(table, [image_column, label_column], " (see image_column and label_column)")
    found = []
    for row in rows:
        label = row[1].get(label_column, "") if may_lack else cell(table, row, label_column)
        found.append((f"{table}, line {row[0]}", cell(table, row, image_column), label))
    return found


def _written(label: str | int | tuple[str | int, ...], separator: str) -> str:
    return separator.join(map(str, label)) if isinstance(label, tuple) else str(label)


def _read_lines(table: Path, *, may_lack: bool) -> list[Row]:
    rows = []
    for number, line in lines_of(table):
        place = f"{table}, line {number}"
        words = words_of(line)
        if len(words) == 1 and may_lack:
            rows.append((place, words[0], ""))
            continue
        if len(words) == 1:
            raise DataError(f"{place}: holds one word; expected a path, a space and a class")
        path = line.strip(BLANKS).removesuffix(words[-1]).rstrip(BLANKS)
        rows.append((place, path, words[-1]))
    if not rows:
        raise DataError(f"{table}: an empty list; expected lines of a path, a space and a class")
    return rows


def _label(row: Row, folder: Path, known: dict[str, int]) -> int:
    place, path, written = row
    text = normal(written.strip(BLANKS))
    if text in known:
        return known[text]
    if text.isdecimal() and int(text) < len(known):
        return int(text)
    # A table may be any file of the machine: its text is shown only if the line names an image that exists.
    is_there = (folder / path.strip(BLANKS)).is_file()
    found = f"of {printable(path, MAX_NAME, exact=True)} is {shown(written)}" if is_there else "is none"
    raise DataError(f"{place}: the class {found}; accepted: 0 to {len(known) - 1}, or {listed([*known], limit=10)}")
