"""What `classyseg data import` makes of parts: no image is in two, none is lost in silence, promises are true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import label_trees
import pytest
from part_trees import HEIGHT, TREES, WIDTH, Parts, write
from PIL import Image

from classyseg.datasets import build_dataset
from classyseg.datasets.recognition.recognise import DataPart, candidates, chosen, data_part
from classyseg.errors import DataError
from classyseg.planning.look import facts_of

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


# -- parts that the files name -----------------------------------------------------------------------------------------


def sizes(part: DataPart) -> dict[str, int]:
    return {name: len(each) for name, each in images(part).items()}


@pytest.mark.parametrize("name", NAMED_PARTS)
def test_without_train_another_part_is_divided_and_no_image_is_in_two(name: str, tmp_path: Path) -> None:
    part = imported(tmp_path / "data", name, {"val": names(10), "test": names(4, "t")})
    found = images(part)
    every = [image for each in found.values() for image in each]
    assert len({*every}) == len(every) == 14
    assert "no part of the folder is for train" in " ".join(part.notes)


@pytest.mark.parametrize("name", sorted({*NAMED_PARTS} - {"folder with lists", "yolo_polygons"}))
def test_images_without_a_part_are_train_or_are_divided_with_all_others(name: str, tmp_path: Path) -> None:
    part = imported(tmp_path / "data", name, {"extra": names(8), "Validation": names(4, "v")})
    found = sizes(part)
    assert sum(found.values()) == 12
    assert found == {"train": 8, "val": 4} or "divided anew" in " ".join(part.notes)


@pytest.mark.parametrize("name", ["cvat_xml", "cvat_masks", "supervisely", "labelme", "coco_json", "hf_dataset"])
def test_what_no_part_takes_is_told_or_divided_with_all_others(name: str, tmp_path: Path) -> None:
    part = imported(tmp_path / "data", name, {"train": names(8), "val": names(4, "v"), "extra": names(3, "e")})
    said = " ".join(part.notes)
    if name in ("cvat_xml", "cvat_masks", "supervisely"):  # one data set can have all of them
        assert sum(sizes(part).values()) == 15
        assert re.search(r"extra, train, val are not one train, .*the images of all are divided anew", said)
    else:
        assert sizes(part) == {"train": 8, "val": 4}
        assert re.search(r"also there, not taken: .*extra", said)


@pytest.mark.parametrize("second", ["job_2", "train_b"])
def test_files_of_coco_that_are_not_taken_are_told(second: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    first = "job_1" if second == "job_2" else "train_a"
    for file, each in ((first, names(6)), (second, names(5, "x"))):
        TREES["coco_json"](root, {file: each})
    part = read(root, "coco_json")
    assert sum(sizes(part).values()) == 6
    assert f"also there, not taken: annotations/instances_{second}.json" in part.notes


def test_lists_of_cvat_that_have_more_images_than_the_parts_are_all_divided(tmp_path: Path) -> None:
    parts = {"Train": names(6), "Validation": names(3, "v"), "default": names(4, "d")}
    part = imported(tmp_path / "data", "cvat_masks", parts)
    assert sum(sizes(part).values()) == 13
    assert "lists Train, Validation, default are not one train" in " ".join(part.notes)
    all_of_them = "".join(f"{name}\n" for name in (*names(6), *names(3, "v")))
    write(tmp_path / "data/ImageSets/Segmentation/default.txt", all_of_them)
    assert sizes(read(tmp_path / "data", "cvat_masks")) == {"train": 6, "val": 3}


# -- parts that share images -------------------------------------------------------------------------------------------


def test_val_that_is_the_folder_of_train_is_held_out_anew_and_such_a_test_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    TREES["yolo_polygons"](root, {"train": names(10)})
    write(root / "data.yaml", "train: images/train\nval: images/train\ntest: images/train\nnames: [car]\n")
    part = read(root, "yolo_polygons")
    found = images(part)
    assert [*found] == ["train", "val"]
    assert not {*found["train"]} & {*found["val"]}
    assert_promised(part)
    assert any("all 10 images of val are in train, too" in note for note in part.notes)
    assert any("all 10 images of test are in train, too" in note for note in part.notes)


def test_images_in_two_parts_are_told(tmp_path: Path) -> None:
    TREES["cvat_masks"](tmp_path / "masks", {"Train": names(6), "Validation": [*names(2), *names(3, "v")]})
    part = read(tmp_path / "masks", "cvat_masks")
    assert sizes(part) == {"train": 6, "val": 5}
    assert any("2 images are in train and in val, such as bonn_a.png" in note for note in part.notes)


def test_a_pair_of_folders_that_says_no_part_is_train_or_told_or_holds_the_others(tmp_path: Path) -> None:
    part = imported(tmp_path / "a", "folder", {"": names(6), "test": names(3, "t")})
    assert {"train", "val", "test"} == {*part.sets}
    assert sizes(part)["test"] == 3
    part = imported(tmp_path / "b", "folder", {"": names(2, "x"), "train": names(6), "val": names(3, "t")})
    assert sizes(part) == {"train": 6, "val": 3}
    assert "also there, not taken: images" in part.notes
    part = imported(tmp_path / "c", "folder", {"ulm": names(4, "x"), "bonn": names(4, "y"), "test": names(3, "t")})
    assert sum(sizes(part).values()) == 11
    assert any("divided anew" in note for note in part.notes)


def test_exports_in_folders_of_parts_are_all_taken_or_told(tmp_path: Path) -> None:
    for name, count in (("train", 6), ("val", 3), ("valid", 2), ("more", 2)):
        TREES["coco_json"](tmp_path / name, {"": names(count, name)})
    part = read(tmp_path, "coco_json")
    assert sizes(part) == {"train": 6, "val": 3}
    assert any(re.search("also there, not taken: (valid, more|more, valid)", note) for note in part.notes)


def test_a_public_data_set_of_val_alone_is_divided(tmp_path: Path) -> None:
    for name in [f"Seq05VD_f{number:05}" for number in range(10)]:
        label_trees.image(tmp_path / "val" / f"{name}.png")
        label_trees.mask(tmp_path / "valannot" / f"{name}.png", 0, 1, 2)
    part = read(tmp_path, "camvid")
    assert sizes(part) == {"train": 8, "val": 2}
    assert any("whether its neighbours are of the same scene or not" in note for note in part.notes)


# -- the kind of the images --------------------------------------------------------------------------------------------


def rewritten(root: Path, *, turned: bool = False, **kind: Any) -> None:
    """Writes all images of a tree again: of another kind, or with an EXIF tag (`turned`: and pixels that it turns)."""
    for path in [*root.rglob("*.png"), *root.rglob("*.jpg")]:
        if "SegmentationClass" in path.parts or path.stem.endswith("_mask"):
            continue
        size = (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT)  # Pillow has the width first
        image = Image.new(kind.get("mode", "RGB"), size, kind.get("color", 9))
        exif = Image.Exif()
        if "mode" not in kind:
            exif[0x0112] = 6
        image.save(path, exif=exif)


READERS = sorted({*TREES} - {"folder", "folder with lists", "hf_dataset"})
SIZED = sorted({*READERS} - {"yolo_polygons"})
"""Those whose files say the sizes of images."""


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("turned", [True, False])
def test_photos_of_phones_are_read_as_the_sizes_of_the_annotations_say(name: str, turned: bool, tmp_path: Path) -> None:
    TREES[name](tmp_path / "data", {"": names(6)})
    rewritten(tmp_path / "data", turned=turned)
    part = read(tmp_path / "data", name)
    assert [values["exif"] for values in part.sets.values()] == ["rotate" if turned else "ignore"] * 2
    for data in map(build_dataset, part.sets.values()):
        for index in range(len(data)):
            sample = data.load(index)
            assert sample.image.shape[-2:] == sample.target.shape == (HEIGHT, WIDTH)


def test_photos_of_phones_are_refused_where_no_file_says_their_sizes(tmp_path: Path) -> None:
    TREES["yolo_polygons"](tmp_path / "data", {"": names(6)})
    rewritten(tmp_path / "data", turned=True)
    part = read(tmp_path / "data", "yolo_polygons")
    assert not any("exif" in values for values in part.sets.values())
    with pytest.raises(DataError, match="EXIF"):
        build_dataset(part.sets["train"]).load(0)
    with pytest.raises(DataError, match=r"no image of \d can be read, the first one because .*EXIF.*data check"):
        facts_of(part.sets, 10, "cpu")


@pytest.mark.parametrize("name", sorted({*READERS} - {"roboflow_masks"}))  # it has JPEG alone
def test_images_of_16_bits_are_read_with_their_channels_and_bits(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path / "data", {"": names(6)})
    rewritten(tmp_path / "data", mode="I;16", color=4000)
    part = read(tmp_path / "data", name)
    assert {(values["channels"], values["bits"]) for values in part.sets.values()} == {(1, 16)}
    assert build_dataset(part.sets["val"]).load_image(0).int().max() == 4000
