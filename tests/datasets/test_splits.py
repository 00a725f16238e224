"""Parts of one folder: complements, groups that are never divided, and places that no other file moves."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from part_trees import TREES
from PIL import Image

from classyseg.config import ConfigError, DataError
from classyseg.datasets import build_dataset
from classyseg.datasets.recognition.recognise import candidates
from classyseg.datasets.splits import SplitConfig, indices_of_part

FRAMES = [f"scene{scene}_{frame:04d}.jpg" for scene in range(60) for frame in range(5)]
"""Frames of 60 scenes."""
WORDS = ("ulm", "bonn", "kiel", "trier", "jena", "gera", "hof", "celle")


def part(names: list[str], **options: Any) -> list[str]:
    return [names[i] for i in indices_of_part(names, SplitConfig(**options), "photos")]


def scenes(names: list[str]) -> set[str]:
    return {name.split("_")[0] for name in names}


@pytest.mark.parametrize("sizes", [{"val": 0.2}, {"val": 0.2, "test": 0.3}, {"folds": 5, "fold": 2, "test": 0.2}])
def test_parts_are_exact_complements_in_the_order_of_the_names(sizes: dict[str, Any]) -> None:
    names = ["train", "val", "test"] if sizes.get("test") else ["train", "val"]
    parts = [part(FRAMES, part=name, **sizes) for name in names]
    assert sorted(chain.from_iterable(parts)) == sorted(FRAMES)
    assert sum(map(len, parts)) == len(FRAMES)
    assert all(found == sorted(found, key=FRAMES.index) for found in parts)


def test_frames_of_one_scene_are_in_one_part() -> None:
    train, val, test = (part(FRAMES, part=name, val=0.3, test=0.2) for name in ("train", "val", "test"))
    assert scenes(train) | scenes(val) | scenes(test) == scenes(FRAMES)
    assert not scenes(train) & scenes(val)
    assert not scenes(train) & scenes(test)
    assert not scenes(val) & scenes(test)


def test_fractions_hold_for_many_groups() -> None:
    names = [f"image{i}_a.jpg" for i in range(5000)]
    assert abs(len(part(names, part="val", val=0.2, test=0.1)) - 1000) < 4 * (5000 * 0.2 * 0.8) ** 0.5
    assert abs(len(part(names, part="test", val=0.2, test=0.1)) - 500) < 4 * (5000 * 0.1 * 0.9) ** 0.5


def test_every_file_is_held_out_in_exactly_one_fold_and_trains_in_all_others() -> None:
    held_out = [part(FRAMES, part="val", folds=4, fold=fold) for fold in range(4)]
    assert sorted(chain.from_iterable(held_out)) == sorted(FRAMES)
    for fold, held in enumerate(held_out):
        assert sorted([*part(FRAMES, part="train", folds=4, fold=fold), *held]) == sorted(FRAMES)


def test_a_file_that_is_added_or_lost_moves_no_other_one() -> None:
    before = part(FRAMES, part="val", val=0.4)
    more = [*FRAMES, *(f"new{i}_0001.jpg" for i in range(50))]
    assert [name for name in part(more, part="val", val=0.4) if name in FRAMES] == before
    assert part(FRAMES[::2], part="val", val=0.4) == [name for name in before if name in FRAMES[::2]]


def test_a_larger_val_keeps_what_was_in_the_smaller_one_and_a_seed_draws_anew() -> None:
    assert {*part(FRAMES, part="val", val=0.2)} < {*part(FRAMES, part="val", val=0.5)}
    assert part(FRAMES, part="val", val=0.5) != part(FRAMES, part="val", val=0.5, seed=1)


def test_parts_are_the_same_on_every_machine() -> None:
    # Who changes the rule changes the parts of all configs that people have.
    assert part([f"{word}.png" for word in WORDS], part="val", val=0.5) == [
        "bonn.png",
        "kiel.png",
        "jena.png",
        "gera.png",
        "hof.png",
        "celle.png",
    ]
    composed, two_signs = "k\u00f6ln.png", "ko\u0308ln.png"
    for seed in range(20):
        names = [f"{word}.png" for word in WORDS]
        assert (composed in part([*names, composed], part="train", val=0.5, seed=seed)) == (
            two_signs in part([*names, two_signs], part="train", val=0.5, seed=seed)
        )


@pytest.mark.parametrize(
    ("names", "by"),
    [
        (["ulm_0001.jpg", "ulm_0002.jpg", "ulm-17.png", "ulm.3.jpg", "ulm (4).jpg"], "stem"),
        (["field_0_512.png", "field_512_0.png", "field_x0_y512.png", "field_r1_c2.png", "field_tile7.png"], "stem"),
        (["ulm_0001_jpg.rf.4c1d0e.jpg", "ulm_0001_jpg.rf.99aa00.jpg", "ulm_0002_png.rf.11.jpg", "ulm.jpg"], "stem"),
        (["Seq05VD_f00000.png", "Seq05VD_f05100.png"], "stem"),
        (["frame0001.jpg", "frame0002.jpg"], "stem"),
        (["a/0001.jpg", "a/0002.jpg"], "stem"),
        (["a_jpg.rf.4c1d0e.jpg", "a_jpg.rf.99aa00.jpg", "a.jpg"], "file"),
        (["a/x.jpg", "a/y.jpg"], "folder"),
        (["p1/patient7_left.jpg", "p2/patient7_right.jpg"], r"(patient\d+)_"),
    ],
)
def test_what_belongs_together_is_one_group(names: list[str], by: str) -> None:
    others = [f"other{letter}_z/other{letter}_z-patient{i}_x.jpg" for i, letter in enumerate("abcdefghijklmnop")]
    for seed in range(20):
        found = set(part([*names, *others], part="train", val=0.5, seed=seed, by=by))
        assert found.isdisjoint(names) or found.issuperset(names)


@pytest.mark.parametrize(
    ("names", "by"),
    [
        (["scene1_0001.jpg", "scene2_0001.jpg"], "stem"),
        (["01_0001.jpg", "02_0001.jpg"], "stem"),
        (["a/0001.jpg", "b/0001.jpg"], "stem"),
        (["ulm_left.jpg", "ulm_right.jpg"], "stem"),
        (["IMG_0001.jpg", "IMG_0002.jpg"], "file"),
        (["a/x.jpg", "b/x.jpg"], "folder"),
    ],
)
def test_what_does_not_belong_together_is_several_groups(names: list[str], by: str) -> None:
    several = [*names, *(f"{word}/{word}.jpg" for word in WORDS)]
    found = {tuple(part(several, part="train", val=0.4, seed=seed, by=by)) for seed in range(20)}
    assert any((names[0] in chosen) != (names[1] in chosen) for chosen in found)


@pytest.mark.parametrize(
    ("names", "by", "told"),
    [
        (["IMG_0001.jpg", "IMG_0002.jpg"], "stem", "begin with 'IMG'"),
        (["0001.jpg", "0002.jpg"], "stem", "are numbers"),
        (["a.jpg", "b.jpg"], "folder", "lie in one folder"),
        (["a.jpg", "b.jpg"], "()", "one group for all 2 files"),
    ],
)
def test_files_of_one_group_are_an_error_that_tells_what_to_do(names: list[str], by: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"split.by: .*{told}"):
        part(names, part="train", val=0.5, by=by)


def test_a_part_without_files_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"split: no file for test: of the 60 groups of 300 files in photos"):
        part(FRAMES, part="test", val=0.2, test=1e-9)


def test_a_name_that_the_expression_does_not_fit_is_named() -> None:
    with pytest.raises(DataError, match=r"photos: odd\.jpg does not fit"):
        part([*FRAMES, "odd.jpg"], part="train", val=0.2, by=r"^(scene\d+)_")


@pytest.mark.parametrize(
    ("split", "told"),
    [
        ({"part": "train"}, "neither val nor folds"),
        ({"part": "train", "val": 0.2, "folds": 5, "fold": 0}, "two ways to divide"),
        ({"part": "train", "folds": 5}, "folds and fold belong together"),
        ({"part": "train", "val": 0.2, "fold": 0}, "folds and fold belong together"),
        ({"part": "train", "folds": 5, "fold": 5}, "accepted are 0 to 4"),
        ({"part": "train", "val": 0.5, "test": 0.5}, "nothing is left for train"),
        ({"part": "val", "val": 0.0}, "val: 0 leaves nothing"),
        ({"part": "test", "val": 0.2}, "test: 0 leaves nothing"),
        ({"part": "train", "val": 0.2, "by": "scene_.*"}, "a regular expression with one group"),
        ({"part": "train", "val": 0.2, "by": "(scene"}, "no regular expression"),
        ({"parts": "train", "part": "train", "val": 0.2}, "split.parts: unknown key; did you mean 'part'"),
        ({"part": "training", "val": 0.2}, "split.part: found 'training'"),
        ({"part": "train", "val": 1.5}, "split.val: found 1.5"),
        (3, "split: found 3"),
        ("train", "only a table has splits with names; {part: train, val: 0.2}"),
    ],
)
def test_a_wrong_split_is_one_error_before_a_file_is_opened(split: Any, told: str) -> None:
    config = {"name": "folder", "images": "no", "masks": "none", "classes": ["a", "b"], "split": split}
    with pytest.raises(ConfigError) as caught:
        build_dataset(config)
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# -- with files --------------------------------------------------------------------------------------------------------


def make_folder(root: Path, names: list[str]) -> dict[str, Any]:
    for name in names:
        for folder in ("images", "masks"):
            path = (root / folder / name).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((2, 2), np.uint8)).save(path)
    return {"name": "folder", "images": str(root / "images"), "masks": str(root / "masks"), "classes": ["a", "b"]}


def stems(config: dict[str, Any], **split: Any) -> list[str]:
    data = build_dataset({**config, "split": split})
    return [data.files(i)[0].stem for i in range(len(data))]


def test_a_folder_gives_the_pairs_of_its_part(tmp_path: Path) -> None:
    config = make_folder(tmp_path, FRAMES[:40])
    for name in ("train", "val"):
        expected = [
            Path(frame).stem for frame in part([f"{Path(f).stem}.png" for f in FRAMES[:40]], part=name, val=0.4)
        ]
        assert stems(config, part=name, val=0.4) == expected


def test_subfolders_are_groups_with_nested(tmp_path: Path) -> None:
    config = make_folder(tmp_path, [f"{scene}/{i}.png" for scene in "abcdef" for i in range(2)])
    split = {"val": 0.5, "by": "folder"}
    val, train = (
        build_dataset({**config, "nested": True, "split": {"part": name, **split}}) for name in ("val", "train")
    )
    folders = [{data.files(i)[0].parent.name for i in range(len(data))} for data in (val, train)]
    assert folders[0] | folders[1] == {*"abcdef"}
    assert not folders[0] & folders[1]


def test_a_list_and_images_alone_are_divided_too(tmp_path: Path) -> None:
    config = make_folder(tmp_path, FRAMES[:40])
    (tmp_path / "list.txt").write_text("\n".join(Path(name).stem for name in FRAMES[:20]))
    whole = stems(config, part="val", val=0.5)
    assert stems({**config, "list": str(tmp_path / "list.txt")}, part="val", val=0.5) == [
        name for name in whole if f"{name}.jpg" in FRAMES[:20]
    ]
    assert stems({**config, "masks": None}, part="val", val=0.5) == whole


def test_a_table_with_splits_of_its_own_takes_no_mapping(tmp_path: Path) -> None:
    config = make_folder(tmp_path, FRAMES[:4])
    (tmp_path / "t.csv").write_text("image,mask,split\nscene0_0000.png,scene0_0000.png,train\n")
    with pytest.raises(ConfigError, match=r"split: found a mapping, but .*t\.csv has a column 'split'"):
        stems({**config, "table": str(tmp_path / "t.csv")}, part="val", val=0.5)


@pytest.mark.parametrize("name", ["coco_json", "labelme", "supervisely", "label_studio", "folder"])
def test_files_without_named_parts_refuse_the_name_of_one(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path / "data", {"": [f"{word}_a" for word in WORDS]})
    config = imported_config(tmp_path / "data")
    build_dataset({**config, "split": {"part": "train", "val": 0.3}})
    with pytest.raises(ConfigError, match=r"split\.of: found 'all', but its files name no parts; leave it out"):
        build_dataset({**config, "split": {"part": "train", "val": 0.3, "of": "all"}})


@pytest.mark.parametrize("name", ["yolo_polygons", "cvat_xml", "cvat_masks", "roboflow_masks", "hf_dataset", "table"])
def test_a_named_part_is_divided_and_a_wrong_name_is_told(name: str, tmp_path: Path) -> None:
    if name == "table":
        config = table_of_words(tmp_path / "data")
    else:
        others = [f"{word}_b" for word in WORDS]
        TREES[name](tmp_path / "data", {"train": [f"{word}_a" for word in WORDS], "test": others})
        config = imported_config(tmp_path / "data")
    keys = {"val": 0.3, "of": "train"}
    parts = [build_dataset({**config, "split": {"part": part, **keys}}) for part in ("train", "val")]
    found = [{data.names_of(i)[0] for i in range(len(data))} for data in parts]
    whole = build_dataset({**config, "split": "train"})
    assert not found[0] & found[1]
    assert found[0] | found[1] == {whole.names_of(i)[0] for i in range(len(whole))}
    with pytest.raises(ConfigError, match=r"split.*(train.*test|test.*train|'train'|Known)"):
        build_dataset({**config, "split": {"part": "train", "val": 0.3, "of": "trains"}})


def imported_config(folder: Path) -> dict[str, Any]:
    found = candidates(folder)[0]
    return {"name": found.format, **found.config}


def table_of_words(folder: Path) -> dict[str, Any]:
    TREES["folder"](folder, {"": [f"{word}_{end}" for word in WORDS for end in "ab"]})
    rows = [
        f"{word}_{end}.jpg,{word}_{end}.png,{split}" for word in WORDS for end, split in (("a", "train"), ("b", "x"))
    ]
    (folder / "pairs.csv").write_text("\n".join(["image,mask,split", *rows]), encoding="utf-8")
    return {**imported_config(folder), "table": str(folder / "pairs.csv")}
