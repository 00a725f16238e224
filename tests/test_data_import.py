"""`classyseg data import`: what a folder is, how sure that is, and a data part that reads to the same masks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import label_trees
import numpy as np
import pytest
from annotation_trees import RECORDED_TREES, cvat_polygon, cvat_tree, sly_object, sly_tree
from PIL import Image

from classyseg.cli.main import main
from classyseg.config import load_config, parse_config
from classyseg.datasets import build_dataset

SIZE = (12, 16)
Save = Callable[[Path, Any], None]


def labels_of(i: int) -> Any:
    """The truth: three classes, all of them in every mask, another mask for each number."""
    mask = np.zeros(SIZE, np.uint8)
    mask[2:6, i % 5 : i % 5 + 4] = 1
    mask[8:, : 3 + i % 7] = 2
    return mask


def image_of(i: int, suffix: str = ".jpg", bands: int = 3) -> Callable[[Path], None]:
    pixels = np.random.default_rng(i).integers(0, 256, (*SIZE, bands), dtype=np.uint8)
    return lambda path: Image.fromarray(pixels if bands > 1 else pixels[..., 0]).save(path)


def write(path: Path, array: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_image(path: Path, i: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image_of(i)(path)


def in_two_folders(images: str, masks: str) -> Callable[[Path], None]:
    """`images` and `masks` are patterns of files, of the part and the number."""

    def make(root: Path) -> None:
        for part, numbers in (("train", range(8)), ("val", range(8, 12))):
            for i in numbers:
                write_image(root / images.format(part=part, i=f"{i:02}"), i)
                write(root / masks.format(part=part, i=f"{i:02}"), labels_of(i))

    return make


PLAIN = {
    "images_and_masks_by_part": ("images/{part}/s{i}.jpg", "masks/{part}/s{i}.png"),
    "parts_with_imgs_and_labels": ("{part}/imgs/s{i}.jpg", "{part}/labels/s{i}.png"),
    "segnet": ("{part}/s{i}.png", "{part}annot/s{i}.png"),
    "words_joined": ("{part}_images/s{i}.jpg", "{part}_masks/s{i}_mask.png"),
    "keras_segmentation": ("images_prepped_{part}/s{i}.png", "annotations_prepped_{part}/s{i}.png"),
    "a_folder_deeper": ("my_data/v2/{part}/Images/s{i}.jpg", "my_data/v2/{part}/GT/s{i}.png"),
    "cities": ("img/{part}/ulm{i}/s{i}.jpg", "gt/{part}/ulm{i}/s{i}.png"),
    "one_folder": ("{part}/s{i}.jpg", "{part}/s{i}_mask.png"),
    "two_endings": ("{part}/s{i}_sat.jpg", "{part}/s{i}_mask.png"),
}


def imported(folder: Path, *options: str) -> dict[str, Any]:
    """The data sets of the file that the command writes, by part."""
    output = folder.parent / "data.yaml"
    assert main(["data", "import", str(folder), "--output", str(output), *options]) == 0
    values = load_config(output).values
    assert list(values) == ["dataset"]
    return dict(values["dataset"])


def truth(data: Any, index: int) -> Any:
    """The mask that was drawn for the image of a sample."""
    return labels_of(int("".join(c for c in data.files(index)[0].stem.split("_")[0] if c.isdigit())))


@pytest.mark.parametrize("name", PLAIN)
def test_plain_folders_read_to_the_masks_that_they_were_made_of(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    in_two_folders(*PLAIN[name])(root)
    sets = imported(root)
    built = {part: build_dataset(values) for part, values in sets.items()}
    assert {part: len(data) for part, data in built.items()} == {"train": 8, "val": 4}
    for data in built.values():
        assert data.classes == ("class_0", "class_1", "class_2")
        for index in range(len(data)):
            assert np.array_equal(data.load_target(index), truth(data, index))


def one_pair_of_folders(root: Path, masks: Callable[[Any], Any], count: int = 12, stem: str = "s{i:02}") -> None:
    for i in range(count):
        write_image(root / "images" / f"{stem.format(i=i)}.jpg", i)
        write(root / "masks" / f"{stem.format(i=i)}.png", masks(labels_of(i)))


COLORS = np.array([[0, 0, 0], [200, 10, 30], [20, 250, 60]], np.uint8)
VALUES: dict[str, tuple[Callable[[Any], Any], list[int], list[str]]] = {
    "0_and_255": (lambda m: np.where(m == 1, 255, 0).astype(np.uint8), [0, 1, 0], ["background", "foreground"]),
    "0_and_1": (lambda m: (m == 1).astype(np.uint8), [0, 1, 0], ["background", "foreground"]),
    "255_is_ignored": (lambda m: np.where(m == 2, 255, m).astype(np.uint8), [0, 1, 255], ["background", "foreground"]),
    "from_1": (lambda m: m + np.uint8(1), [0, 1, 2], ["class_1", "class_2", "class_3"]),
    "gaps": (lambda m: np.array([0, 7, 11], np.uint8)[m], [0, 1, 2], ["class_0", "class_7", "class_11"]),
    # Colours count in the order of their numbers: black, green-ish 14fa3c, red-ish c80a1e.
    "colors": (lambda m: COLORS[m], [0, 2, 1], ["class_0", "class_1", "class_2"]),
    "16_bits": (lambda m: m.astype(np.uint16), [0, 1, 2], ["class_0", "class_1", "class_2"]),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_in_masks_become_classes(name: str, tmp_path: Path) -> None:
    written, expected, classes = VALUES[name]
    one_pair_of_folders(tmp_path / "data", written)
    sets = imported(tmp_path / "data")
    train, val = (build_dataset(sets[part]) for part in ("train", "val"))
    assert list(train.classes) == list(val.classes) == classes
    assert {*train.files(0)}
    assert len(train) + len(val) == 12
    for data in (train, val):
        for index in range(len(data)):
            assert np.array_equal(data.load_target(index), np.array(expected)[truth(data, index)])


def test_what_is_held_out_keeps_scenes_together_and_both_parts_have_all_classes(tmp_path: Path) -> None:
    for scene in range(8):
        for frame in range(4):
            i = scene * 4 + frame
            write_image(tmp_path / "data/images" / f"road{chr(97 + scene)}_{frame:04}.jpg", i)
            mask = labels_of(i)
            mask[mask == 2] = 0 if scene not in (2, 5) else 2  # a class that two scenes have
            write(tmp_path / "data/masks" / f"road{chr(97 + scene)}_{frame:04}.png", mask)
    sets = imported(tmp_path / "data")
    train, val = (build_dataset(sets[part]) for part in ("train", "val"))
    scenes = [{data.files(i)[0].name[:5] for i in range(len(data))} for data in (train, val)]
    assert not scenes[0] & scenes[1]
    assert 0.1 <= len(val) / 32 <= 0.35
    assert all({2} <= {*np.unique([data.load_target(i) for i in range(len(data))])} for data in (train, val))


def test_names_of_classes_are_taken_from_a_file_and_from_the_command(tmp_path: Path) -> None:
    one_pair_of_folders(tmp_path / "data", lambda m: m)
    assert imported(tmp_path / "data", "--classes", "sky, road ,car")["train"]["classes"] == ["sky", "road", "car"]
    (tmp_path / "data" / "codes.txt").write_text("Sky\nRoad\nCar\nVoid\n", encoding="utf-8")
    assert imported(tmp_path / "data")["train"]["classes"] == ["Sky", "Road", "Car", "Void"]
    colored = tmp_path / "colored"
    one_pair_of_folders(colored, lambda m: COLORS[m])
    rows = ["name,r,g,b", *(f"{name},{','.join(map(str, c))}" for name, c in zip("abc", COLORS.tolist(), strict=True))]
    (colored / "class_dict.csv").write_text("\n".join(rows), encoding="utf-8")
    data = build_dataset(imported(colored)["train"])
    assert data.classes == ("a", "b", "c")
    assert np.array_equal(data.load_target(0), truth(data, 0))


def test_a_wrong_number_of_names_is_an_error_that_tells_the_right_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_pair_of_folders(tmp_path / "data", lambda m: m)
    assert main(["data", "import", str(tmp_path / "data"), "--classes", "sky,road"]) == 2
    assert "3 classes" in capsys.readouterr().err


def test_lists_of_names_divide_one_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for i in range(12):
        write_image(root / "JPEGImages" / f"p{i:02}.jpg", i)
        write(root / "SegmentationClass" / f"p{i:02}.png", labels_of(i))
    label_trees.names(root / "ImageSets/Segmentation/train.txt", *(f"p{i:02}" for i in range(7)))
    label_trees.names(root / "ImageSets/Segmentation/val.txt", *(f"p{i:02}" for i in range(7, 12)))
    built = {part: build_dataset(values) for part, values in imported(root).items()}
    assert {part: len(data) for part, data in built.items()} == {"train": 7, "val": 5}
    assert np.array_equal(built["val"].load_target(0), labels_of(7))


@pytest.mark.parametrize(
    ("name", "format", "parts"),
    [("camvid", "camvid", {"train": 367, "val": 101, "test": 233}), ("nuclei_dsb2018", "folder", None)],
)
def test_real_data_are_recognised(name: str, format: str, parts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "import", str(label_trees.real(name))]) == 0
    values = parse_config(capsys.readouterr().out, source="out").values["dataset"]
    assert {each["name"] for each in values.values()} == {format}
    expected = parts or {"train": 278, "val": 42, "test": 79}
    assert {part: len(build_dataset(each)) for part, each in values.items()} == expected


def test_folders_of_classes_are_images_with_one_class(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("valid", 2)):
        for name in ("cat", "dog", "eel"):
            for i in range(count):
                write_image(tmp_path / "data" / part / name / f"{i}.jpg", i)
    sets = imported(tmp_path / "data")
    assert {part: (each["name"], len(build_dataset(each))) for part, each in sets.items()} == {
        "train": ("image_folder", 15),
        "val": ("image_folder", 6),
    }
    assert build_dataset(sets["val"]).classes == ("cat", "dog", "eel")


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("places", ["{kind}", "{part}/{kind}", "{kind}/{part}"])
def test_a_folder_of_masks_for_each_class_is_several_classes_of_a_pixel(
    places: str, value: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: dict[str, Any] = {}
    for part, count in (("train", 6), ("val", 3)):
        for i in range(count):
            name, where = f"{part}{i}", tmp_path / "data"
            write_image(where / places.format(part=part, kind="images") / f"{name}.jpg", i)
            flags[name] = np.random.default_rng(i).random((2, *labels_of(i).shape)) < 0.3
            for own, kind in zip(flags[name], ("lane_mask", "wet road"), strict=True):
                folder = where / places.format(part=part, kind="masks")
                write(folder / kind / f"{name}.png", own.astype(np.uint8) * value)
    sets = imported(tmp_path / "data")
    assert sets.keys() == {"train", "val"}
    assert all(each["multi_label"] for each in sets.values())
    for values in sets.values():
        data = build_dataset(values)
        assert data.classes == ("lane_mask", "wet road")
        for i in range(len(data)):
            assert np.array_equal(data.load_target(i), flags[Path(data.files(i)[0]).stem])
    assert sum(len(build_dataset(each)) for each in sets.values()) == 9
    assert main(["data", "import", str(tmp_path / "data"), "--classes", "a,b"]) == 2
    assert "name the classes" in capsys.readouterr().err


FAULTS = {
    "a mask is missing": "has no mask of 1 images",
    "masks of labels": "other values than 0 and 1",
    "one folder": "nobody knows",
    "0 and 1, and 255": "write them alike",
    "annotators": "differ in a number alone",
    "scenes": "several folders of images",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_folders_below_masks_are_no_classes(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("expert1", "expert2") if fault == "annotators" else ("road", "train")
    for i in range(6):
        scene = f"data/scene{i % 2}" if fault == "scenes" else "data"
        write_image(tmp_path / scene / "images" / f"{i}.png", i)
        for kind in names[: 1 if fault == "one folder" else 2]:
            value = 255 if (fault, kind) == ("0 and 1, and 255", "train") else 3 if fault == "masks of labels" else 1
            mask = (np.arange(labels_of(i).size).reshape(labels_of(i).shape) % 2 * value).astype(np.uint8)
            if (fault, kind, i) != ("a mask is missing", "train", 4):
                write(tmp_path / scene / "masks" / kind / f"{i}.png", mask)
    assert main(["data", "import", str(tmp_path / "data")]) == 2
    assert FAULTS[fault] in capsys.readouterr().err


def test_a_second_folder_of_a_part_is_told_not_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, count in (("train", 4), ("valid", 1), ("val", 2), ("train_extra", 3)):
        for name in ("cat", "dog"):
            for i in range(count):
                write_image(tmp_path / "data" / part / name / f"{i}.jpg", i)
    sets = imported(tmp_path / "data")
    assert {part: len(build_dataset(each)) for part, each in sets.items()} == {"train": 8, "val": 4}
    assert main(["data", "import", str(tmp_path / "data")]) == 0
    assert re.search(r"not taken: '?train_extra'?, '?valid", capsys.readouterr().err)


def test_the_exports_of_tools_go_before_plain_folders_and_keep_their_parts(tmp_path: Path) -> None:
    for part, numbers in (("train", range(6)), ("valid", range(6, 9))):
        folder = tmp_path / "data" / part
        for i in numbers:
            write_image(folder / f"s{i:02}.jpg", i)
            write(folder / f"s{i:02}_mask.png", labels_of(i))
        label_trees.names(folder / "_classes.csv", "Pixel Value, Class", "0, background", "1, road", "2, car")
    sets = imported(tmp_path / "data")
    assert {part: each["name"] for part, each in sets.items()} == {"train": "roboflow_masks", "val": "roboflow_masks"}
    built = {part: build_dataset(each) for part, each in sets.items()}
    assert {part: len(data) for part, data in built.items()} == {"train": 6, "val": 3}
    assert np.array_equal(built["val"].load_target(0), labels_of(6))


SQUARE = [(1, 1), (6, 1), (6, 5), (1, 5)]


def supervisely(root: Path) -> dict[str, Any]:
    one = (8, 9, [sly_object("car", "polygon", SQUARE)])
    return sly_tree(root, dict.fromkeys(("train/a.png", "train/b.png", "val/c.png"), one))


def cvat_xml(root: Path) -> dict[str, Any]:
    return cvat_tree(root, {f"{name}.png": (8, 9, [cvat_polygon("car", SQUARE)]) for name in "abc"})


TOOLS = {**RECORDED_TREES, "supervisely": supervisely, "cvat_xml": cvat_xml}


@pytest.mark.parametrize("name", TOOLS)
def test_the_exports_of_tools_are_recognised(name: str, tmp_path: Path) -> None:
    read = build_dataset(TOOLS[name](tmp_path / "data"))
    sets = imported(tmp_path / "data")
    inner = [each.get("dataset", each) for each in sets.values()]  # held out by `subset`, if it must be
    assert {each["name"] for each in inner} == {name}
    masks = {read.files(i)[0]: read.load_target(i) for i in range(len(read))}
    for data in map(build_dataset, sets.values()):
        assert data.classes == read.classes
        for i in range(len(data)):
            path = (data if not data.parts else data.parts[0]).files(data.locate(i)[1] if data.parts else i)[0]
            assert np.array_equal(data[i].target, masks[path])


def test_what_it_writes_passes_the_doctor_and_no_other_file_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_pair_of_folders(tmp_path / "data", lambda m: m, stem="s{i}x")
    before = sorted((tmp_path / "data").rglob("*"))
    imported(tmp_path / "data")
    assert sorted((tmp_path / "data").rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.yaml"]
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "data.yaml"), "--workers", "0"]) == 0
    assert capsys.readouterr().out.endswith("0 faults, 0 warnings\n")


def jpeg_masks(root: Path) -> None:
    for i in range(4):
        write_image(root / "images" / f"{i}.jpg", i)
        write(root / "masks" / f"{i}.jpg", labels_of(i))


def objects(root: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(8):
        write_image(root / "images" / f"{i}.jpg", i)
        write(root / "masks" / f"{i}.png", np.resize(np.arange(rng.integers(9, 40)), SIZE).astype(np.uint8))


def soft_edges(root: Path) -> None:
    for i in range(4):
        write_image(root / "images" / f"{i}.jpg", i)
        mask = np.where(np.kron(labels_of(i) == 1, np.ones((9, 9), bool)), 255, 0).astype(np.uint8)
        mask[::9, ::9] = np.random.default_rng(i).integers(0, 256, mask[::9, ::9].shape)
        write(root / "masks" / f"{i}.png", mask)


def texts(root: Path) -> None:
    root.mkdir()
    (root / "notes.txt").write_text("nothing\n", encoding="utf-8")


REFUSED = {
    "masks_of_jpeg": (jpeg_masks, "JPEG"),
    "numbers_of_objects": (objects, "numbers of objects"),
    "soft_edges": (soft_edges, "soft edges"),
    "no_images": (texts, "1 of .txt"),
    "nothing": (lambda root: root.mkdir(), "no files"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_nobody_knows_is_an_error_that_tells_what_was_seen(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, word = REFUSED[name]
    make(tmp_path / "data")
    assert main(["data", "import", str(tmp_path / "data")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert word in captured.err
    assert "Needed are" in captured.err


def test_two_formats_that_are_as_sure_must_be_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    for i in range(6):  # both exports of one task, unpacked into one folder
        write_image(root / f"s{i:02}.jpg", i)
        write(root / f"s{i:02}_mask.png", labels_of(i))
        write_image(root / "JPEGImages" / f"s{i:02}.jpg", i)
        write(root / "SegmentationClass" / f"s{i:02}.png", COLORS[labels_of(i)])
    label_trees.names(root / "_classes.csv", "Pixel Value, Class", "0, background", "1, road", "2, car")
    label_trees.names(root / "labelmap.txt", "background:0,0,0::", "road:200,10,30::", "car:20,250,60::")
    assert main(["data", "import", str(root)]) == 2
    said = capsys.readouterr().err
    assert "cvat_masks" in said
    assert "roboflow_masks" in said
    assert "--format" in said
    data = build_dataset(imported(root, "--format", "cvat_masks")["train"])
    assert np.array_equal(data.load_target(0), truth(data, 0))


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    one_pair_of_folders(tmp_path / "elsewhere", lambda m: m)
    root = tmp_path / "data"
    one_pair_of_folders(root, lambda m: m, count=6)
    os.symlink(tmp_path / "elsewhere", root / "more")
    os.symlink(tmp_path / "elsewhere/images/s00.jpg", root / "images" / "zz.jpg")
    os.symlink(root / "images" / "s00.jpg", root / "images" / "within.jpg")
    os.symlink(root / "masks" / "s00.png", root / "masks" / "within.png")
    output = tmp_path / "data.yaml"
    assert main(["data", "import", str(root), "--output", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    assert "elsewhere" not in text
    assert "7 images have a mask" in text


@pytest.mark.parametrize("output", ["nowhere/data.yaml", "data.txt"])
def test_an_output_that_cannot_be_written_is_told_before_anything_is_read(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_pair_of_folders(tmp_path / "data", lambda m: m, count=2)
    assert main(["data", "import", str(tmp_path / "data"), "--output", str(tmp_path / output)]) == 2
    assert "--output" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
