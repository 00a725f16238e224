"""COCO's JSON files: every id, name and size is checked before anything is drawn, so nothing is lost in silence."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from classyseg.console import shown
from classyseg.datasets.files.json_file import JsonFile, in_words

MAX_PIXELS = 178_956_970
"""What an image may have, as in reading images."""
MAX_NAME = 240
"""Bytes of a file's name, which gets a suffix of ours."""


class CocoImage(NamedTuple):
    """An image of the list `images`: its number, the stem of its file's name, and its size in pixels."""

    id: int
    name: str
    height: int
    width: int


class CocoFile(JsonFile):
    """The lists of a JSON file, and errors that name an entry by its id. All of `keys` must be there.

    Raises: `DataError` for a file that is missing or broken, that names a key twice, or lacks one of `keys`.
    """

    def __init__(self, path: Path, *keys: str, constants: bool = False) -> None:
        super().__init__(path, constants=constants)
        missing = [key for key in keys if not isinstance(self.contents, dict) or key not in self.contents]
        if missing:
            self.refuse(f"no annotations of COCO: it has no list '{missing[0]}'")
        for key in keys:
            if not isinstance(self.contents[key], list):
                self.refuse(f"no annotations of COCO: its '{key}' is {in_words(self.contents[key])}, not a list")

    def entries(self, key: str, noun: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The entries of the list `key`, each with what messages call it: `noun` and its `id`, which comes once."""
        seen: set[int] = set()
        for i, entry in enumerate(self.contents[key]):
            number = self.number(f"{key}[{i}]", entry, "id")
            if number in seen:
                self.refuse(f"the id {number} comes twice among its {key}; each {noun} has one of its own")
            seen.add(number)
            yield f"{noun} {number}", entry

    def images(self, folder: str) -> dict[int, CocoImage]:
        """The list `images` by id; their files lie in `folder`. Raises: `DataError`.

        The error is for ids and file names that come twice, impossible sizes, and files in other folders.
        """
        found: dict[int, CocoImage] = {}
        numbers: dict[str, int] = {}
        for place, entry in self.entries("images", "image"):
            name = self.stem(place, entry, folder)
            height, width = self.size(place, entry)
            if name in numbers:
                self.refuse(
                    f"the images {numbers[name]} and {entry['id']} have one file, {shown(entry['file_name'])}; names "
                    "must differ in more than their suffix, as masks are named like images"
                )
            numbers[name] = entry["id"]
            found[entry["id"]] = CocoImage(entry["id"], name, height, width)
        return found

    def stem(self, place: str, entry: Any, folder: str) -> str:
        """The name of an entry's file without its suffix. Raises: `DataError` for a file outside of `folder`."""
        written = self.text(place, entry, "file_name")
        path = Path(written)
        if str(path.parent) not in (".", folder) or "\\" in written or not path.suffix:
            self.refuse(
                f"{place}: its file_name is {shown(written)}; expected a name with its suffix, of a file "
                f"right in the folder {folder}"
            )
        try:
            long = len(os.fsencode(path.stem)) > MAX_NAME
        except UnicodeEncodeError:
            long = True
        if long or "\0" in written:
            self.refuse(f"{place}: its file_name is {shown(written)}, which no file can be called")
        return path.stem

    def size(self, place: str, entry: Any) -> tuple[int, int]:
        """The height and the width of an image. Raises: `DataError` for one that no image has."""
        height, width = (self._side(place, entry, key) for key in ("height", "width"))
        if height * width > MAX_PIXELS:
            self.refuse(f"{place}: its size is {width} x {height}; up to {MAX_PIXELS:,} pixels are read")
        return height, width

    def _side(self, place: str, entry: Any, key: str) -> int:
        value = self.number(place, entry, key)
        if value < 1:
            self.refuse(f"{place}: its {key} is {value}; an image has one pixel or more")
        return value

    def categories(self, known: Mapping[int, Iterable[str]], reader: str) -> set[int]:
        """The ids of the list `categories`, whose names must be those that `known` gives the id.

        Raises: `DataError` for categories that are others than those of the `reader`, and for ids and names that come
        twice.
        """
        found: set[int] = set()
        names: dict[str, int] = {}
        for place, entry in self.entries("categories", "category"):
            name = self.text(place, entry, "name")
            accepted = list(known.get(entry["id"], ()))
            if name.strip().casefold() not in [text.casefold() for text in accepted]:
                theirs = f"'{accepted[0]}'" if accepted else "none"
                self.refuse(
                    f"{place} is {shown(name)} in the file, but {theirs} in COCO, whose categories '{reader}' reads; "
                    "read categories of your own with 'coco_json'"
                )
            if name in names:
                self.refuse(f"the categories {names[name]} and {entry['id']} are both called {shown(name)}")
            names[name] = entry["id"]
            found.add(entry["id"])
        return found

    def listed(self, place: str, entry: Any, key: str, known: Container[int], where: str) -> int:
        """A number of an entry that is one of `known`, the ids of the list `where`. Raises: `DataError`."""
        number = self.number(place, entry, key)
        if number not in known:
            self.refuse(f"{place}: its {key} is {number}, which is none of the ids of '{where}'")
        return number
