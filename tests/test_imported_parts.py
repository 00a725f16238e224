"""What `classyseg data import` makes of parts: no image is in two, none is lost in silence, promises are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from part_trees import TREES, Parts

from classyseg.datasets import build_dataset
from classyseg.datasets.recognition.recognise import DataPart, candidates, chosen, data_part

WORDS = ("ulm", "bonn", "kiel", "trier", "jena", "gera", "hof", "celle", "essen", "köln")
NAMED_PARTS = sorted({*TREES} - {"label_studio"})


def names(count: int, start: str = "") -> list[str]:
    return [f"{start}{word}_a" for word in WORDS[:count]]


def imported(root: Path, name: str, parts: Parts) -> DataPart:
    TREES[name](root, parts)
    return read(root, name)


def read(root: Path, name: str) -> DataPart:
    return data_part(chosen(root, candidates(root), name.split()[0]))


def images(part: DataPart) -> dict[str, list[str]]:
    """The names of the images of each part, as the built data sets have them."""
    built = {name: build_dataset(config) for name, config in part.sets.items()}
    return {name: [data.names_of(index)[0] for index in range(len(data))] for name, data in built.items()}


def assert_promised(part: DataPart) -> None:
    """The numbers of a note about what is held out are those of the built data sets."""
    found = images(part)
    (told,) = re.findall(r"(\d+) of (\d+) images are held out", " ".join(part.notes))
    assert (len(found["val"]), len(found["train"]) + len(found["val"])) == tuple(map(int, told))


@pytest.mark.parametrize("name", NAMED_PARTS)
def test_val_is_held_out_of_train_alone_where_the_files_name_train_and_test(name: str, tmp_path: Path) -> None:
    part = imported(tmp_path / "data", name, {"train": names(10), "test": names(4, "t")})
    found = images(part)
    assert [*part.sets] == ["train", "val", "test"]
    assert len(found["train"]) + len(found["val"]) == 10
    assert len(found["test"]) == 4
    every = [image for each in found.values() for image in each]
    assert len({*every}) == len(every) == 14
    assert_promised(part)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("count", [4, 10])
def test_the_note_promises_what_the_data_sets_have(name: str, count: int, tmp_path: Path) -> None:
    part = imported(tmp_path / "data", name, {"": names(count)})
    assert [*part.sets] == ["train", "val"]
    assert_promised(part)
    found = images(part)
    assert not {*found["train"]} & {*found["val"]}


def test_the_rows_of_a_table_are_divided_by_their_names_and_without_names_one_by_one(tmp_path: Path) -> None:
    frames = [f"{word}_{i}" for word in WORDS for i in range(3)]
    part = imported(tmp_path / "frames", "hf_dataset", {"": frames})
    scenes = {name: {int(re.findall(r"row (\d+)", row)[0]) // 3 for row in rows} for name, rows in images(part).items()}
    assert not scenes["train"] & scenes["val"]
    part = imported(tmp_path / "rows", "hf_dataset", {"": [*map(str, range(12))]})
    assert_promised(part)
    assert "of one scene, write split.by" in part.notes[-1]
