"""Roboflow's "Semantic Segmentation Masks": image and mask in one folder, and `_classes.csv`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_masks import NAMES, Truth, assert_damage_is_told, assert_same, read_back, save, truth

from classyseg.config import ConfigError, DataError
from classyseg.datasets import RoboflowMasks, build_dataset
from classyseg.datasets.annotations.roboflow_masks import found_in

TABLE = "Pixel Value, Class\n0, background\n1, road\n2, car wheel\n"


def write(folder: Path, data: Truth) -> dict[str, Any]:
    for name, image in data.images.items():
        save(folder / f"{name}.png", image)
        save(folder / f"{name}_mask.png", data.masks[name])
    (folder / "_classes.csv").write_text(TABLE)
    return {"name": "roboflow_masks", "root": str(folder)}


def test_masks_are_read_pixel_for_pixel(tmp_path: Path) -> None:
    data = truth("a_jpg.rf.0f1e2d", "b_jpg.rf.99aa")
    config = write(tmp_path, data)
    assert_same(read_back(config), data)
    assert build_dataset(config).classes == NAMES


def test_a_subfolder_is_a_split(tmp_path: Path) -> None:
    parts = {name: truth(f"{name}/a", seed=i) for i, name in enumerate(("train", "valid"))}
    for name, data in parts.items():
        write(tmp_path, data)
        (tmp_path / "_classes.csv").rename(tmp_path / name / "_classes.csv")
    config = {"name": "roboflow_masks", "root": str(tmp_path)}
    for name, data in parts.items():
        found = read_back({**config, "split": name})
        np.testing.assert_array_equal(found.masks["a"], data.masks[f"{name}/a"])
    with pytest.raises(ConfigError, match=r"split: missing; .* has the subfolders train, valid"):
        build_dataset(config)
    with pytest.raises(ConfigError, match=r"split: unknown subfolder; did you mean 'valid'"):
        build_dataset({**config, "split": "val"})
    found = found_in(tmp_path)
    assert found is not None
    assert (found.config["split"], found.num_images) == ("train", 1)


def test_copies_of_one_image_are_in_one_part(tmp_path: Path) -> None:
    names = [f"{word}_jpg.rf.{copy}{copy}" for word in ("ulm", "bonn", "kiel", "hof", "celle") for copy in "abc"]
    config = write(tmp_path, truth(*names))
    train, val = (
        {name.split("_")[0] for name in read_back({**config, "split": {"part": part, "val": 0.5}}).masks}
        for part in ("train", "val")
    )
    assert train | val == {"ulm", "bonn", "kiel", "hof", "celle"}
    assert not train & val


def test_labels_become_classes_by_the_keys_of_all_readers(tmp_path: Path) -> None:
    data = truth("a")
    config = write(tmp_path, data)
    found = read_back({**config, "classes": ["car wheel"], "ignore": ["road"], "background": None})
    np.testing.assert_array_equal(found.masks["a"], np.array([255, 255, 0])[data.masks["a"]])
    dataset = build_dataset({**config, "classes": ["road"]})
    with pytest.raises(DataError, match=r"a_mask\.png: its mask holds the label 'car wheel' \(\d+ pixels\), unknown"):
        dataset.load(0)


def test_an_image_whose_own_name_ends_with_mask_is_an_image(tmp_path: Path) -> None:
    data = truth("face_mask", "face")
    del data.images["face"], data.masks["face"]
    assert_same(read_back(write(tmp_path, data)), data)


def test_an_image_without_a_mask_and_a_mask_without_an_image_are_told(tmp_path: Path) -> None:
    config = write(tmp_path, truth("a", "b", "c"))
    (tmp_path / "a_mask.png").unlink()
    with pytest.raises(DataError, match=r"no mask for 1 of 3 images: a\.png; the mask of NAME\.jpg is NAME_mask\.png"):
        build_dataset(config)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    with pytest.raises(DataError, match=r"no image for 1 of 2 masks: b_mask\.png"):
        build_dataset(config)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("Pixel Value,Class\n0,background\n0,road\n", "line 3: the value 0 has the label 'background'"),
        ("Pixel Value,Class\n0,road\n1,road\n", "line 3: the label 'road' stands in line 2"),
        ("Pixel Value,Class\n-1,road\n", "line 2: the value is '-1'"),
        ("Pixel Value,Class\n1,\n", "line 2: the cell of Class is empty"),
        ("filename,car,road\na.jpg,1,0\n", "must name the columns Pixel Value, Class"),
    ],
)
def test_faults_of_the_table_name_its_line(tmp_path: Path, table: str, told: str) -> None:
    config = write(tmp_path, truth("a"))
    (tmp_path / "_classes.csv").write_text(table)
    with pytest.raises(DataError, match=rf"_classes\.csv.*{told}"):
        build_dataset(config)


def test_an_export_is_recognised_and_its_suggestion_reads_it(tmp_path: Path) -> None:
    data = truth("a", "b")
    write(tmp_path, data)
    found = found_in(tmp_path)
    assert found is not None
    assert found.sure > 0.9
    assert_same(read_back({"name": found.format, **found.config}), data)
    (tmp_path / "_classes.csv").write_text("filename,car,road\na.jpg,1,0\n")  # Roboflow's table of whole images
    found = found_in(tmp_path)
    assert found is not None
    assert found.sure < 0.5


def test_a_damaged_table_gives_data_or_an_error_that_names_it(tmp_path: Path) -> None:
    config = write(tmp_path, truth("a"))
    assert_damage_is_told(tmp_path / "_classes.csv", lambda: RoboflowMasks(root=config["root"])[0], "a_mask.png")
