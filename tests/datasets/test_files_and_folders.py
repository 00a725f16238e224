"""Folders of images and masks: what is read, and what is refused with its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classyseg.config import ConfigError, DataError
from classyseg.datasets import CamVid, Folder, SyntheticShapes, build_dataset

REAL = Path(os.environ.get("CLASSYSEG_DATA") or Path(__file__).parents[2] / "../shared/data")


def put(folder: Path, name: str, array: Any, **options: Any) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.asarray(array)).save(folder / name, **options)
    return folder / name


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two images with masks of the labels 0, 1 and 255."""
    mask = np.zeros((6, 8), np.uint8)
    mask[0], mask[1] = 1, 255
    for name in ("a", "b"):
        put(tmp_path / "images", f"{name}.jpg", np.full((6, 8, 3), 100, np.uint8))
        put(tmp_path / "masks", f"{name}.png", mask)
    return tmp_path


def folder(tree: Path, **options: Any) -> Folder:
    found = build_dataset(
        {
            "name": "folder",
            "images": str(tree / "images"),
            "masks": str(tree / "masks"),
            "classes": ["no", "yes"],
            **options,
        }
    )
    assert isinstance(found, Folder)
    return found


def test_images_go_with_the_masks_of_their_name(tree: Path) -> None:
    dataset = folder(tree)
    assert len(dataset) == 2
    assert dataset.num_classes == 2
    sample = dataset[1]
    assert tuple(sample.image.shape) == (3, 6, 8)
    assert sample.target.unique().tolist() == [0, 1, 255]
    assert sample.name == str(tree / "masks" / "b.png")


def test_a_suffix_of_masks_is_taken_off(tree: Path) -> None:
    for name in ("a", "b"):
        (tree / "masks" / f"{name}.png").rename(tree / "masks" / f"{name}_label.png")
    assert len(folder(tree, mask_suffix="_label")) == 2
    with pytest.raises(DataError, match=r"no mask for 2 of 2 images: .*a.jpg"):
        folder(tree)


def test_a_mask_without_an_image_is_named(tree: Path) -> None:
    (tree / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"no image for 1 of 2 masks: .*a.png"):
        folder(tree)


def test_two_images_of_one_name_are_named(tree: Path) -> None:
    put(tree / "images", "a.png", np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"two image files of one name: a.jpg and a.png"):
        folder(tree)


def test_a_missing_folder_says_where_it_was_looked_for(tree: Path) -> None:
    with pytest.raises(ConfigError, match=r"imags: no such folder; did you mean 'images'.*--data-root"):
        folder(tree, images=str(tree / "imags"))


def test_masks_of_0_and_255_get_the_line_that_mends_them(tree: Path) -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[0] = 255
    put(tree / "masks", "a.png", mask)
    with pytest.raises(DataError, match=r"a.png: .*labels 255 \(8 pixels\).*set label_map: \{255: 1\}"):
        folder(tree, ignore_index=254)[0]
    assert folder(tree, ignore_index=254, label_map={255: 1})[0].target.unique().tolist() == [0, 1]


def test_an_ignored_label_that_is_a_class_is_refused(tree: Path) -> None:
    with pytest.raises(ConfigError, match="ignore_index: found 1, which is the class 'yes'"):
        folder(tree, ignore_index=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no image that Pillow knows; 0 bytes"),
        (b"this is text", "no image that Pillow knows; 12 bytes"),
        (None, r"cannot be read \(.*; 200 bytes\)"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_an_unreadable_image_is_named(tree: Path, content: bytes | None, message: str) -> None:
    path = put(tree / "images", "a.jpg", np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(DataError, match=rf"a.jpg: .*{message}"):
        folder(tree)[0]


def test_masks_are_never_rescaled(tree: Path) -> None:
    wide = np.zeros((6, 8), np.uint16)
    wide[0] = 300
    put(tree / "masks", "a.png", wide)
    with pytest.raises(DataError, match=r"labels 300 \(8 pixels\)"):
        folder(tree)[0]
    assert folder(tree, label_map={300: 1})[0].target[0].unique().tolist() == [1]


def test_a_palette_mask_gives_its_indices(tree: Path) -> None:
    mask = Image.fromarray(np.eye(6, 8, dtype=np.uint8)).convert("P")
    mask.putpalette([7, 8, 9, 200, 100, 50])
    mask.save(tree / "masks" / "a.png")
    assert folder(tree)[0].target.sum() == 6


@pytest.mark.parametrize("kind", ["colour", "jpeg"])
def test_a_mask_that_cannot_hold_labels_is_refused(tree: Path, kind: str) -> None:
    if kind == "colour":
        put(tree / "masks", "a.png", np.zeros((6, 8, 3), np.uint8))
    else:
        put(tree / "masks", "a.png", np.zeros((6, 8), np.uint8), format="JPEG")
    expected = "mode RGB; accepted are images of one channel" if kind == "colour" else "stored as JPEG"
    with pytest.raises(DataError, match=rf"a.png: a mask .*{expected}"):
        folder(tree)[0]


def test_camvid_reads_its_layout(tmp_path: Path) -> None:
    put(tmp_path / "camvid/val", "0001.jpg", np.zeros((6, 8, 3), np.uint8))
    put(tmp_path / "camvid/valannot", "0001.png", np.full((6, 8), 11, np.uint8))
    dataset = CamVid(split="val", root=str(tmp_path / "camvid"))
    assert (dataset.num_classes, dataset.ignore_index, len(dataset.palette)) == (11, 11, 11)
    assert dataset[0].target.unique().tolist() == [11]


@pytest.mark.skipif(not (REAL / "camvid").is_dir(), reason="the real CamVid is not there")
@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101), ("test", 233)])
def test_the_real_camvid_is_whole(split: Any, count: int) -> None:
    dataset = CamVid(split=split, root=str((REAL / "camvid").resolve()))
    assert len(dataset) == count
    for index in range(0, count, 25):
        assert tuple(dataset[index].image.shape) == (3, 360, 480)


@pytest.mark.skipif(not (REAL / "nuclei_dsb2018").is_dir(), reason="the real nuclei are not there")
def test_real_images_of_varying_size_are_read_by_folder() -> None:
    root = (REAL / "nuclei_dsb2018").resolve()
    options = {"images": str(root / "images/val"), "masks": str(root / "annotations/val")}
    dataset = build_dataset({"name": "folder", "classes": ["background", "nucleus"], **options})
    assert len(dataset) == 42
    assert len({tuple(dataset[i].target.shape) for i in range(0, 42, 3)}) > 1


def test_synthetic_shapes_are_the_same_each_time_and_differ_by_split() -> None:
    train, again = (SyntheticShapes(split="train", num_samples=20) for _ in range(2))
    test = SyntheticShapes(split="test", num_samples=20)
    for i in range(20):
        assert np.array_equal(train[i].image, again[i].image)
        assert not np.array_equal(train[i].image, test[i].image)
    labels = {label for i in range(20) for label in train[i].target.unique().tolist()}
    assert labels == {0, 1, 2, 3, 255}
