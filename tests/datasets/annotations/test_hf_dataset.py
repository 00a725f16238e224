"""Data sets of Hugging Face's `datasets`, in files that `datasets` 5.2.0 itself wrote (`goldens/hf_datasets`)."""

from __future__ import annotations

import json
import pickle
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_masks import NAMES, assert_damage_is_told
from PIL import Image

from classyseg.config import ConfigError, DataError
from classyseg.datasets import HfDataset, build_dataset
from classyseg.datasets.annotations.hf_dataset import found_in

GOLDENS = Path(__file__).parents[2] / "goldens" / "hf_datasets"
FORMS = [
    ("saved", None, (0, 1, 2, 3)),
    ("splits", "train", (3, 1, 2)),
    ("splits", "validation", (0,)),
    ("parquet", "train", (0, 1, 2, 3)),
    ("parquet", "test", (2,)),
    ("lists", None, (0, 1, 2, 3)),
]
"""Folder, split, and the numbers of its rows in `arrays`."""


def arrays() -> tuple[list[npt.NDArray[np.uint8]], list[npt.NDArray[np.uint8]]]:
    """The images and masks that the goldens were made of."""
    numbers = np.random.default_rng(0)
    images = [numbers.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(4)]
    return images, [numbers.integers(0, 3, (5, 7), dtype=np.uint8) for _ in range(4)]


def copy(tmp_path: Path, form: str, *, names: bool = True) -> Path:
    root = tmp_path / form
    shutil.copytree(GOLDENS / form, root)
    if names and form != "lists":
        (root / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    return root


def png(pixels: npt.NDArray[Any]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def table(root: Path, masks: list[Any], images: list[Any] | None = None) -> dict[str, Any]:
    """A Parquet file with these cells of masks, and the config of its data set."""
    cells = images or [{"bytes": png(np.zeros((5, 7, 3), np.uint8)), "path": f"{i}_x.png"} for i in range(len(masks))]
    root.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": cells, "mask": masks}), root / "data.parquet")
    return {"name": "hf_dataset", "root": str(root), "classes": ["a", "b"]}


@pytest.mark.parametrize(("form", "split", "rows"), FORMS)
def test_what_datasets_wrote_is_read_pixel_for_pixel(
    tmp_path: Path, form: str, split: str | None, rows: tuple[int, ...]
) -> None:
    images, masks = arrays()
    data = build_dataset({"name": "hf_dataset", "root": str(copy(tmp_path, form)), "split": split})
    assert data.classes == NAMES
    assert len(data) == len(rows)
    for i, row in enumerate(rows):
        sample = data.load(i)
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), images[row])
        np.testing.assert_array_equal(sample.target.numpy(), masks[row])


def test_the_numbers_stand_for_the_classes_of_the_config_where_no_file_names_them(tmp_path: Path) -> None:
    root = copy(tmp_path, "saved", names=False)
    with pytest.raises(ConfigError, match=r"classes: found none, and .* does not say which labels its numbers stand"):
        HfDataset(root=str(root))
    assert HfDataset(root=str(root), classes=("a", "b", "c")).load(1).target.tolist() == arrays()[1][1].tolist()


def test_labels_become_classes_by_the_keys_of_all_readers(tmp_path: Path) -> None:
    root = copy(tmp_path, "saved")
    data = HfDataset(root=str(root), classes={"driven": ("road", "car wheel")}, ignore=("background",))
    np.testing.assert_array_equal(data.load(0).target.numpy(), np.array([255, 0, 0])[arrays()[1][0]])
    data = HfDataset(root=str(root), classes=("background", "road"))
    with pytest.raises(DataError, match=r"\.arrow, row 0, label: its mask holds the label 'car wheel' \(\d+ pixels\)"):
        data.load(0)


def test_the_ignored_number_is_ignored_and_another_one_is_told_with_its_row(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 255]], np.uint8)
    config = table(tmp_path / "t", [{"bytes": png(mask), "path": None}, {"bytes": png(mask + 7), "path": None}])
    data = build_dataset(config)
    assert data.load_target(0).tolist() == mask.tolist()
    with pytest.raises(DataError, match=r"data\.parquet, row 1, mask: its mask holds the values 6, 7, 8"):
        data.load_target(1)


def test_a_part_is_made_of_the_names_of_the_images(tmp_path: Path) -> None:
    masks = [{"bytes": png(np.zeros((5, 7), np.uint8)), "path": None}] * 12
    images = [
        {"bytes": png(np.full((5, 7, 3), n, np.uint8)), "path": f"{word}_{n}.png"}
        for word in ("ulm", "bonn", "kiel", "hof")
        for n in range(3)
    ]
    config = table(tmp_path / "t", masks, images)
    sizes = [len(build_dataset({**config, "split": {"part": part, "val": 0.5}})) for part in ("train", "val")]
    assert sum(sizes) == 12
    assert all(size % 3 == 0 for size in sizes)


def test_an_image_may_lie_in_the_folder_and_never_outside(tmp_path: Path) -> None:
    config = table(tmp_path / "t", [{"bytes": None, "path": "m/a.png"}, {"bytes": None, "path": "../secret.png"}])
    (tmp_path / "t" / "m").mkdir()
    for path in (tmp_path / "t" / "m" / "a.png", tmp_path / "secret.png"):
        Image.fromarray(np.eye(5, 7, dtype=np.uint8)).save(path)
    data = build_dataset(config)
    assert data.load_target(0).tolist() == np.eye(5, 7).tolist()
    with pytest.raises(DataError, match=r"row 1, mask: .*leads out of"):
        data.load_target(1)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ({"bytes": b"no image", "path": None}, "row 0, mask"),
        ({"bytes": None, "path": None}, "row 0, mask: is empty: neither bytes nor a path"),
        ({"bytes": None, "path": "gone.png"}, "row 0, mask: is the file 'gone.png', which is not in"),
        (None, "row 0, mask: is empty"),
    ],
)
def test_a_wrong_cell_is_told_with_its_file_and_row(tmp_path: Path, cell: Any, told: str) -> None:
    good = {"bytes": png(np.zeros((5, 7), np.uint8)), "path": None}
    with pytest.raises(DataError, match=rf"data\.parquet, {told}"):
        build_dataset(table(tmp_path / "t", [cell, good])).load_target(0)


@pytest.mark.parametrize("rows", [[[0, 1], [0]], [[]], [], [[0, None]]])
def test_lists_that_are_no_mask_are_told(tmp_path: Path, rows: list[Any]) -> None:
    with pytest.raises(DataError, match=r"data\.parquet, row 0, mask: is "):
        build_dataset(table(tmp_path / "t", [rows, [[0, 1]]])).load_target(0)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [(1, "int64"), ("a.png", "string"), ([0, 1], "list<.*int64>"), ([[0.5, 1.0]], "list<.*list<.*double>>")],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_column_that_cannot_be_masks_is_told_with_the_types_of_all(
    tmp_path: Path, cell: Any, kind: str, named: bool
) -> None:
    config = table(tmp_path / "t", [cell])
    told = "found 'mask'" if named else "missing"
    with pytest.raises(ConfigError, match=rf"mask_column: {told}.*data\.parquet .*: image \(images\), mask \({kind}\)"):
        build_dataset({**config, **({"mask_column": "mask"} if named else {})})


def test_a_label_of_the_whole_image_is_no_mask_and_the_next_usual_column_is_taken(tmp_path: Path) -> None:
    mask = np.eye(5, 7, dtype=np.uint8)
    config = table(tmp_path, [{"bytes": png(mask), "path": None}])
    columns = pq.read_table(tmp_path / "data.parquet")
    feature = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    labelled = columns.add_column(1, "label", pa.array([1])).replace_schema_metadata(metadata)
    pq.write_table(labelled, tmp_path / "data.parquet")
    assert build_dataset(config).load_target(0).tolist() == mask.tolist()
    found = found_in(tmp_path)
    assert found is not None
    assert "image and mask" in found.why
    assert "classes" not in found.config
    pq.write_table(labelled.drop_columns(["mask"]), tmp_path / "data.parquet")
    found = found_in(tmp_path)
    assert found is not None
    assert found.sure < 0.3
    assert "no column of masks: its columns: image (images), label (int64)" in found.why


def test_images_and_masks_as_bytes_alone_are_read(tmp_path: Path) -> None:
    mask = np.eye(5, 7, dtype=np.uint8)
    config = table(tmp_path, [png(mask)], [png(np.zeros((5, 7, 3), np.uint8))])
    assert build_dataset(config).load(0).target.tolist() == mask.tolist()


def test_splits_and_columns_are_named_or_told(tmp_path: Path) -> None:
    root = copy(tmp_path, "splits")
    with pytest.raises(ConfigError, match=r"split: missing; .* has the splits train, validation"):
        HfDataset(root=str(root))
    with pytest.raises(ConfigError, match=r"split: unknown split; did you mean 'train'"):
        HfDataset(root=str(root), split="trains")
    with pytest.raises(ConfigError, match=r"mask_column: unknown column; did you mean 'label'"):
        HfDataset(root=str(root), split="train", mask_column="labels")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"x": "a"}, "has the key 'x'"),
        ({"0": 1}, "its label of 0 is 1"),
        ({"0": "a", "1": "a"}, "one label for two numbers"),
        ([], "expected a mapping"),
    ],
)
def test_faults_of_the_names_are_told(tmp_path: Path, names: Any, told: str) -> None:
    root = copy(tmp_path, "saved")
    (root / "id2label.json").write_text(json.dumps(names))
    with pytest.raises(DataError, match=rf"id2label\.json.*{told}"):
        HfDataset(root=str(root))


@pytest.mark.parametrize("name", ["../saved/data-00000-of-00001.arrow", "/etc/passwd", "..", "gone.arrow"])
def test_a_state_that_names_other_files_is_refused(tmp_path: Path, name: str) -> None:
    root = copy(tmp_path, "saved")
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match=r"state\.json.*names the file"):
        HfDataset(root=str(root))


def test_a_worker_opens_the_files_for_itself(tmp_path: Path) -> None:
    data = HfDataset(root=str(copy(tmp_path, "parquet")), split="train")
    data.load(0)
    assert pickle.loads(pickle.dumps(data)).load(3).target.tolist() == arrays()[1][3].tolist()


@pytest.mark.parametrize(("form", "split", "rows"), FORMS)
def test_a_data_set_is_recognised(tmp_path: Path, form: str, split: str | None, rows: tuple[int, ...]) -> None:
    found = found_in(copy(tmp_path, form))
    assert found is not None
    assert found.sure > 0.9
    assert found.config["classes"] == list(NAMES)
    assert len(build_dataset({"name": found.format, **found.config})) == found.num_images
    assert [*found.parts] == {"splits": ["train", "val"], "parquet": ["train", "test"]}.get(form, [])
    assert found_in(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("form", "file"), [("saved", "data-00000-of-00001.arrow"), ("parquet", "default/train-00000-of-00001.parquet")]
)
def test_a_damaged_table_gives_data_or_an_error_that_names_it(tmp_path: Path, form: str, file: str) -> None:
    root = copy(tmp_path, form)
    split = "train" if form == "parquet" else None

    def read() -> None:
        data = HfDataset(root=str(root), split=split, classes=("background", "road", "car wheel"))
        for i in range(min(len(data), 4)):
            data.load(i)

    assert_damage_is_told(root / file, read, "_column", "id2label.json")
