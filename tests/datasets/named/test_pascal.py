"""Pascal VOC, its extension by SBD, and Pascal-Context: no list is read in the place of another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from goldens import goldens
from label_trees import image, mask, names, real, rows

from classyseg.config import ConfigError, DataError
from classyseg.datasets import PascalAug, PascalContext, PascalVOC, build_dataset
from classyseg.datasets.label_map import label_table

SETS = {"train": ["a", "b"], "val": ["c"]}


def voc(root: Path, **values: tuple[int, ...]) -> Path:
    """A VOC folder with the images of `SETS`; masks hold 0, 20 and 255 unless `values` says otherwise."""
    lists = root / "ImageSets" / "Segmentation"
    for split, members in SETS.items():
        names(lists / f"{split}.txt", *members)
        for name in members:
            image(root / "JPEGImages" / f"{name}.jpg")
            mask(root / "SegmentationClass" / f"{name}.png", *values.get(name, (0, 20, 255)))
    names(lists / "trainval.txt", *SETS["train"], *SETS["val"])
    image(root / "JPEGImages" / "unlabelled.jpg")
    return root


def stems(data: Any) -> list[str]:
    return [pair[0].stem for pair in data.pairs]


@pytest.mark.parametrize(("split", "expected"), [("train", "ab"), ("val", "c"), ("trainval", "abc")])
def test_a_split_of_voc_is_the_list_of_its_name(tmp_path: Path, split: Any, expected: str) -> None:
    data = PascalVOC(split=split, root=str(voc(tmp_path)))
    assert "".join(stems(data)) == expected
    assert rows(data[0].target)[:3] == [0, 20, 255]
    assert data.num_classes == 21
    assert data.palette[15] == (192, 128, 128)


def test_a_made_list_of_augmented_names_has_its_own_masks(tmp_path: Path) -> None:
    root = voc(tmp_path)
    names(root / "ImageSets" / "Segmentation" / "trainaug.txt", "a")
    mask(root / "SegmentationClassAug" / "a.png", 5)
    assert PascalVOC(split="trainaug", root=str(root))[0].target.unique().tolist() == [5]


def test_a_value_that_voc_does_not_have_is_named(tmp_path: Path) -> None:
    data = PascalVOC(split="train", root=str(voc(tmp_path, a=(0, 21))))
    with pytest.raises(DataError, match=r"SegmentationClass/a.png.*values 21 .*0 to 20, 255"):
        data[0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"train.txt: an empty list"),
        (["a", "a"], r"train.txt: names a more than once"),
        (["a", "x"], r"JPEGImages: no image for 1 of the 2 names: x"),
        (["a", "unlabelled"], r"SegmentationClass: no mask for 1 of the 2 names: unlabelled"),
    ],
    ids=["empty", "twice", "no image", "no mask"],
)
def test_a_wrong_list_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    names(voc(tmp_path) / "ImageSets" / "Segmentation" / "train.txt", *lines)
    with pytest.raises(DataError, match=rf"^root: .*{message}"):
        PascalVOC(split="train", root=str(tmp_path))


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    (voc(tmp_path) / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(DataError, match=r"Segmentation/val.txt.*no such"):
        PascalVOC(split="val", root=str(tmp_path))


def test_real_images_in_the_layout_of_voc_are_read() -> None:
    data = PascalVOC(split="val", root=str(real("pets_voc_layout")))
    counts = np.zeros(256, int)
    for i in range(len(data)):
        counts += np.bincount(data[i].target.flatten(), minlength=256)
    assert len(data) == 26
    assert {value: int(count) for value, count in enumerate(counts) if count} == {
        0: 2777811,
        1: 943755,
        2: 292646,
        255: 576949,
    }


def sbd(root: Path, suffix: str = ".png") -> Path:
    """SBD, whose `train.txt` holds an image of VOC's train (b) and one of its val (c), as the real one does."""
    names(root / "train.txt", "b", "c", "d")
    names(root / "val.txt", "e")
    for name in "bcde":
        image(root / "img" / f"{name}.jpg")
        path = mask(root / "cls" / f"{name}.png", 7)
        if suffix == ".mat":
            path.unlink()
            save_mat(path.with_suffix(".mat"), {"GTcls": {"Segmentation": np.full((6, 8), 7, np.uint8)}})
    return root


def save_mat(path: Path, contents: dict[str, Any]) -> None:
    pytest.importorskip("scipy", reason="scipy, of the extra [mat], is not installed")
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, contents, do_compression=True)


def aug(root: Path, split: str, suffix: str = ".png") -> PascalAug:
    options = {"root": str(sbd(root / "sbd", suffix)), "voc_root": str(voc(root / "voc"))}
    return build_dataset({"name": "pascal_aug", "split": split, **options})


def test_trainaug_is_all_of_both_sets_without_vocs_val(tmp_path: Path) -> None:
    data = aug(tmp_path, "trainaug")
    assert stems(data) == ["a", "b", "d", "e"]
    assert [data[i].target.max().item() for i in range(4)] == [255, 255, 7, 7]  # VOC's own masks where it has them


@pytest.mark.parametrize(("split", "expected"), [("sbd_train", "bcd"), ("sbd_val", "e")])
def test_sbds_own_lists_are_called_so(tmp_path: Path, split: str, expected: str) -> None:
    assert "".join(stems(aug(tmp_path, split))) == expected


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_could_mean_either_set_is_refused(tmp_path: Path, split: str) -> None:
    with pytest.raises(ConfigError, match=rf"split: found '{split}'"):
        aug(tmp_path, split)


def test_masks_of_sbd_are_read_as_published(tmp_path: Path) -> None:
    assert aug(tmp_path, "sbd_val", ".mat")[0].target.unique().tolist() == [7]


def test_a_matlab_file_without_scipy_is_an_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = sbd(tmp_path)
    (root / "cls" / "e.png").rename(root / "cls" / "e.mat")
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ConfigError, match=r"cls/e.mat.*install classyseg\[mat\]"):
        PascalAug(split="sbd_val", root=str(root))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"x": np.zeros((2, 2))}, r"e.mat: holds x; expected GTcls.Segmentation"),
        ({"GTcls": [{"Segmentation": np.zeros((2, 2))}] * 2}, r"e.mat: holds GTcls; expected GTcls.Segmentation"),
        ({"LabelMap": np.zeros((2, 2))}, r"e.mat: its mask is no matrix of integers"),
        (None, r"e.mat: cannot be read as a MATLAB file"),
    ],
    ids=["other names", "several", "no integers", "broken"],
)
def test_a_wrong_matlab_file_is_named(tmp_path: Path, contents: dict[str, Any] | None, message: str) -> None:
    data = aug(tmp_path, "sbd_val", ".mat")
    path = data.pairs[0][1]
    if contents is None:
        path.write_bytes(path.read_bytes()[:150])
    else:
        save_mat(path, contents)
    with pytest.raises(DataError, match=message):
        data[0]


def context(root: Path, *values: int, **options: Any) -> PascalContext:
    names(root / "ImageSets" / "Main" / "train.txt", "a")
    image(root / "JPEGImages" / "a.jpg")
    if values:
        mask(root / "context" / "a.png", *values, dtype=np.uint16)
    options = {"split": "train", "root": str(root), "masks": "context", "mask_values": "classes", **options}
    return build_dataset({"name": "pascal_context", **options})


@pytest.mark.parametrize(
    ("options", "values", "labels"),
    [
        ({}, (0, 1, 59), [255, 0, 58]),
        ({"with_background": True}, (0, 1, 59), [0, 1, 59]),
        ({"mask_values": "full"}, (1, 2, 9, 458, 459, 431), [255, 0, 1, 58, 255, 255]),
        ({"mask_values": "full", "with_background": True}, (1, 2, 9, 458), [0, 1, 2, 59]),
    ],
)
def test_both_kinds_of_values_become_the_same_classes(
    tmp_path: Path, options: dict[str, Any], values: tuple[int, ...], labels: list[int]
) -> None:
    data = context(tmp_path, *values, **options)
    assert rows(data[0].target)[: len(values)] == labels
    assert data.num_classes == len(data.palette) == (60 if "with_background" in options else 59)


def test_a_context_prediction_is_submitted_as_1_to_59(tmp_path: Path) -> None:
    import torch

    assert context(tmp_path, 1).submission(torch.tensor([0, 58])).tolist() == [1, 59]
    assert context(tmp_path, 1, with_background=True).submission(torch.tensor([0, 59])).tolist() == [0, 59]


def test_full_labels_read_as_classes_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"context/a.png.*values 284 .*0 to 59"):
        context(tmp_path, 2, 284)[0]


def test_context_masks_are_read_as_published(tmp_path: Path) -> None:
    save_mat(tmp_path / "context" / "a.mat", {"LabelMap": np.full((6, 8), 284, np.uint16)})
    data = context(tmp_path, mask_values="full")
    assert [data.classes[i] for i in data[0].target.unique()] == ["person"]


def test_the_59_labels_are_those_of_pytorch_encoding() -> None:
    facts = goldens("float64")["modules_losses_metrics_lr_transforms_eval"]
    assert [0, *label_table("pascal_context")[0]] == facts["pcontext"]["sorted category ids -> 0..59 (then -1)"]
    assert len(label_table("pascal_voc")[1]) == len(facts["voc"]["aug_voc"])
