"""Splits without masks: images to be predicted, with every pixel ignored, which no task takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_trees import HEIGHT, WIDTH, image, mask

from classyseg.cli.main import main
from classyseg.config import ConfigError, DataError
from classyseg.datasets import EvalOrder, build_dataset, make_loader
from classyseg.doctor import check_data
from classyseg.doctor.sheet import contact_sheet
from runs import tiny_config, tiny_task


def cityscapes(root: Path) -> dict[str, Any]:
    for name in ("berlin_2", "berlin_1", "bielefeld_1"):
        city = name.partition("_")[0]
        image(root / "leftImg8bit" / "test" / city / f"{name}_leftImg8bit.png")
        mask(root / "gtFine" / "test" / city / f"{name}_gtFine_labelIds.png", 3)  # as published: nothing in it
    return {"name": "cityscapes", "split": "test", "root": str(root)}


def ade20k(root: Path) -> dict[str, Any]:
    for i in (2, 1, 3):
        image(root / "images" / "testing" / f"ADE_test_{i}.jpg")
    return {"name": "ade20k", "split": "test", "root": str(root)}


def folder(root: Path) -> dict[str, Any]:
    for name in ("b/1.png", "a/2.png", "a/1.jpg"):
        image(root / "images" / name)
    return {"name": "folder", "images": str(root / "images"), "masks": None, "classes": ["a", "b"], "nested": True}


SETS: list[Callable[[Path], dict[str, Any]]] = [cityscapes, ade20k, folder]


@pytest.mark.parametrize("make", SETS)
def test_images_alone_come_in_order_with_every_pixel_ignored(make: Any, tmp_path: Path) -> None:
    config = make(tmp_path)
    dataset = build_dataset({**config, "cache_samples": str(tmp_path / "cache")})
    for _ in range(2):  # the second time from the cache
        (batch,) = make_loader(dataset, EvalOrder(len(dataset), 4), workers=0)
        assert batch.image.shape == (3, 3, HEIGHT, WIDTH)
        assert batch.target.shape == (3, HEIGHT, WIDTH)
        assert (batch.target == dataset.ignore_index).all()
        assert [*batch.name] == sorted(batch.name)
        assert all(Path(name).is_file() for name in batch.name)
        assert not any("gtFine" in name for name in batch.name)
    assert dataset.submission(torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)).dtype == np.uint8
    padded = build_dataset({**config, "transforms": [{"name": "pad", "multiple": 16}]})[0]
    assert (padded.target == dataset.ignore_index).all()


@pytest.mark.parametrize("make", SETS)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("composed", [False, True])
def test_no_task_trains_on_images_alone_or_measures_with_them(
    make: Any, split: str, composed: bool, tmp_path: Path
) -> None:
    config = make(tmp_path)
    if composed:
        config = {"name": "concat", "datasets": [{"name": "subset", "first": 2, "dataset": config}]}
    with pytest.raises(ConfigError, match=rf"^dataset\.{split}.*without masks"):
        tiny_task({f"dataset.{split}": config})


@pytest.mark.parametrize("make", SETS)
def test_the_doctor_looks_at_the_images(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make(tmp_path)
    broken = Path(str(build_dataset(config)[1].name))
    broken.write_bytes(b"")
    found = {finding.kind: finding for finding in check_data({"x": config}).findings}
    assert found.keys() == {"image_unreadable", "blank_image", "duplicate"}  # of one colour, all the same
    assert found["image_unreadable"].files[0][0] == str(broken)
    path = tmp_path / "task.json"
    path.write_text(json.dumps(tiny_config({"dataset": {"train": config}})), encoding="utf-8")
    assert main(["data", "stats", str(path), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "normalize: {mean: [0.0392, 0.0784, 0.1176]" in out
    assert "class_weights" not in out
    sheet = np.asarray(contact_sheet(build_dataset(config), [0]))
    assert (sheet[:, 260:] == 255).all()  # no mask beside it


def test_images_with_masks_and_images_alone_do_not_make_one_set(tmp_path: Path) -> None:
    alone = folder(tmp_path)
    for name in ("b/1.png", "a/2.png", "a/1.png"):
        mask(tmp_path / "masks" / name, 0, 1)
    with pytest.raises(ConfigError, match=r"datasets\[1\].*has_masks False.*datasets\[0\].*True"):
        build_dataset({"name": "concat", "datasets": [{**alone, "masks": str(tmp_path / "masks")}, alone]})


@pytest.mark.parametrize("options", [{"mask_suffix": "_mask", "nested": False}, {"table": "t.csv", "nested": False}])
def test_a_folder_without_masks_refuses_what_is_of_masks(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"masks.*null.*table or mask_suffix"):
        build_dataset({**folder(tmp_path), **options})


def test_masks_may_be_null_but_not_forgotten(tmp_path: Path) -> None:
    config = folder(tmp_path)
    del config["masks"]
    with pytest.raises(ConfigError, match=r"masks: missing"):
        build_dataset(config)


def test_an_empty_test_split_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images" / "testing").mkdir(parents=True)
    with pytest.raises(DataError, match=r"testing: found no image file"):
        build_dataset({"name": "ade20k", "split": "test", "root": str(tmp_path)})
