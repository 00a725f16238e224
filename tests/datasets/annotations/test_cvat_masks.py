"""CVAT's "Segmentation mask 1.1", in trees as CVAT's own exporter (datumaro's `voc_segmentation`) writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_masks import COLORS, NAMES, Truth, assert_damage_is_told, assert_same, read_back, save, truth

from classyseg.config import ConfigError, DataError
from classyseg.datasets import CvatMasks, build_dataset
from classyseg.datasets.annotations.cvat_masks import found_in

LABELS = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:250,50,83::\ncar wheel:51,221,255::\n"


def write(root: Path, data: Truth, **lists: list[str]) -> dict[str, Any]:
    """Names may have folders; no mask is written for an image without an annotation."""
    for name, image in data.images.items():
        save(root / "JPEGImages" / f"{name}.png", image)
        if data.masks[name].any():
            save(root / "SegmentationClass" / f"{name}.png", np.array(COLORS, np.uint8)[data.masks[name]])
            save(root / "SegmentationObject" / f"{name}.png", data.images[name])
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for list_name, names in (lists or {"default": [*data.images]}).items():
        text = "".join(f"{name}\n" for name in names)
        (root / "ImageSets" / "Segmentation" / f"{list_name}.txt").write_text(text, encoding="utf-8")
    (root / "labelmap.txt").write_text(LABELS, encoding="utf-8")
    return {"name": "cvat_masks", "root": str(root)}


def test_masks_are_read_pixel_for_pixel_and_labels_are_those_of_the_label_map(tmp_path: Path) -> None:
    data = truth("frame_000000", "sub/frame 1", "sub/übung")
    config = write(tmp_path, data)
    assert_same(read_back(config), data)
    dataset = build_dataset(config)
    assert dataset.classes == NAMES
    assert dataset.palette == COLORS


def test_labels_become_classes_by_the_keys_of_all_readers(tmp_path: Path) -> None:
    data = truth("a", "b")
    config = write(tmp_path, data)
    joined = read_back({**config, "classes": {"vehicle": ["car wheel"], "rest": ["road"]}, "background": "nothing"})
    ignored = read_back({**config, "classes": ["car wheel"], "ignore": ["road"], "background": None})
    for name, mask in data.masks.items():
        np.testing.assert_array_equal(joined.masks[name], np.array([0, 2, 1])[mask])
        np.testing.assert_array_equal(ignored.masks[name], np.array([255, 255, 0])[mask])


def test_a_label_in_a_mask_that_no_key_names_is_told_with_the_file(tmp_path: Path) -> None:
    data = truth("a")
    config = write(tmp_path, data)
    dataset = build_dataset({**config, "classes": ["roads"], "ignore": ["car wheel"]})
    with pytest.raises(DataError, match=r"a\.png: its mask holds the label 'road' \(\d+ pixels\), unknown.*'roads'"):
        dataset.load(0)


def test_a_color_that_the_label_map_does_not_have_is_told_with_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, truth("a"))
    (tmp_path / "labelmap.txt").write_text(LABELS.replace("250", "249"))
    with pytest.raises(DataError, match=r"a\.png: its mask holds the values #fa3253"):
        build_dataset(config).load(0)


def test_a_list_takes_its_images_and_a_mapping_a_part_of_all(tmp_path: Path) -> None:
    data = truth("a_x", "b_x", "c_x", "d_x")
    config = write(tmp_path, data, Train=["a_x", "c_x"], Validation=["b_x"])
    assert [*read_back({**config, "split": "Validation"}).masks] == ["b_x"]
    assert [*read_back(config).masks] == ["a_x", "c_x", "b_x"]
    parts = [{*read_back({**config, "split": {"part": part, "val": 0.5}}).masks} for part in ("train", "val")]
    assert parts[0] | parts[1] == {"a_x", "b_x", "c_x"}
    assert not parts[0] & parts[1]
    with pytest.raises(ConfigError, match=r"split: unknown list; did you mean 'Train'"):
        build_dataset({**config, "split": "train"})


def test_an_image_without_a_mask_is_an_error_background_or_left_out(tmp_path: Path) -> None:
    data = truth("a", "b")
    data.masks["b"][:] = 0
    config = write(tmp_path, data)
    with pytest.raises(DataError, match=r"SegmentationClass: no mask for 1 of 2 names: b; .*empty: background"):
        build_dataset(config)
    assert_same(read_back({**config, "empty": "background"}), data)
    assert [*read_back({**config, "empty": "skip"}).masks] == ["a"]
    found = found_in(tmp_path)
    assert found is not None
    assert found.config["empty"] == "background"


def test_a_listed_image_that_is_not_there_is_told(tmp_path: Path) -> None:
    config = write(tmp_path, truth("a"), default=["a", "../../etc/passwd", "b"])
    with pytest.raises(DataError, match=r"JPEGImages: no image for 2 of 3 names"):
        build_dataset(config)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("road:1,2,3::\nroad:4,5,6::", "line 2: the label 'road' stands in line 1"),
        ("road:1,2,3::\ncar:1,2,3::", "line 2: the labels 'road' and 'car' have one colour"),
        ("road:1,2::", "line 1: the colour of 'road' is '1,2'"),
        ("road:1,2,256::", "line 1: the colour of 'road' is"),
        ("road", "line 1: found no name:red,green,blue"),
        ("# nothing", "names no label"),
    ],
)
def test_faults_of_the_label_map_name_its_line(tmp_path: Path, line: str, told: str) -> None:
    config = write(tmp_path, truth("a"))
    (tmp_path / "labelmap.txt").write_text(line)
    with pytest.raises(DataError, match=rf"labelmap\.txt.*{told}"):
        build_dataset(config)


def test_an_export_is_recognised_and_its_suggestion_reads_it(tmp_path: Path) -> None:
    data = truth("a", "b/c")
    write(tmp_path, data)
    found = found_in(tmp_path)
    assert found is not None
    assert found.sure > 0.9
    assert found.num_images == 2
    assert_same(read_back({"name": found.format, **found.config}), data)
    assert found_in(tmp_path / "JPEGImages") is None


def test_a_damaged_label_map_or_list_gives_data_or_an_error_that_names_it(tmp_path: Path) -> None:
    config = write(tmp_path, truth("a", "b"))

    assert_damage_is_told(tmp_path / "labelmap.txt", lambda: CvatMasks(root=config["root"])[0], "a.png")
