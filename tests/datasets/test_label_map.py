"""Values in files become labels in one place; what a map does not know is named with its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from classyseg.config import ConfigError, DataError
from classyseg.datasets import Folder, LabelMap, SyntheticShapes, build_dataset
from classyseg.datasets.label_map import color_text, label_table, spans

MAP = {0: 255, 3: 0, 7: 1, 300: 2}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_every_type_of_mask_is_mapped_alike(dtype: Any) -> None:
    values = np.array([[0, 3], [7, 3]], dtype)
    labels = LabelMap(MAP)(values, "a.png")
    assert labels.dtype == (torch.uint8 if dtype == np.uint8 else torch.int64)
    assert labels.tolist() == [[255, 0], [1, 0]]


def test_every_byte_may_have_a_label_and_labels_may_be_no_bytes() -> None:
    every_byte = np.arange(256, dtype=np.uint8).reshape(16, 16)
    turned = LabelMap({value: 255 - value for value in range(256)})
    assert turned(every_byte, "a.png").tolist() == (255 - every_byte).tolist()
    assert turned(every_byte[:, ::2], "a.png").tolist() == (255 - every_byte[:, ::2]).tolist()
    for label in (-1, 256):
        assert LabelMap({0: label}, others_stay=True)(every_byte, "a.png").flatten()[:2].tolist() == [label, 1]


def test_values_above_255_are_values_like_others() -> None:
    assert LabelMap(MAP)(np.array([[300]], np.uint16), "a.png").item() == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_unknown_values_are_named_with_the_place_and_what_is_known(dtype: Any) -> None:
    values = np.array([[0, 3, 9], [9, 8, 7]], dtype)
    with pytest.raises(DataError, match=r"^x/a.png.*8, 9 \(3 pixels\).*0, 3, 7, 300$"):
        LabelMap(MAP)(values, "x/a.png")


def test_negative_values_are_unknown_and_no_index_from_the_end() -> None:
    with pytest.raises(DataError, match=r"values -1 \(1 pixels\)"):
        LabelMap({0: 0, 255: 255})(np.array([[-1, 0]], np.int32), "a.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_values_stay_where_the_map_lets_them(dtype: Any) -> None:
    assert LabelMap({1: 0, 0: 1}, others_stay=True)(np.array([[0, 1, 9]], dtype), "a.png").tolist() == [[1, 0, 9]]
    assert LabelMap({}, others_stay=True)(np.array([[0, 9]], dtype), "a.png").tolist() == [[0, 9]]


def test_many_unknown_values_are_cut_short_and_written_as_asked() -> None:
    with pytest.raises(DataError, match=r"values #000001, .*#00000a, \.\.\. \(20 pixels\).*; known: #804080$"):
        LabelMap({0x804080: 0}, text=color_text)(np.arange(1, 21, dtype=np.int32)[None], "a.png")


def test_numbers_are_listed_as_spans() -> None:
    assert spans([7, 0, 1, 2, 9, 10]) == "0 to 2, 7, 9 to 10"


@pytest.mark.parametrize(
    ("name", "count", "values", "colored"),
    [
        ("ade20k", 150, (1, 150), True),
        ("cityscapes", 19, (7, 33), True),
        ("coco_panoptic", 133, (1, 200), True),
        ("coco_stuff", 171, (1, 182), False),
        ("pascal_context", 59, (2, 458), False),
        ("pascal_voc", 21, (0, 20), False),
    ],
)
def test_a_table_has_a_row_for_each_class(name: str, count: int, values: tuple[int, int], colored: bool) -> None:
    found, classes, palette = label_table(name)
    assert (len(classes), len(set(classes)), len(palette)) == (count, count, count if colored else 0)
    assert (found[0], found[-1]) == values
    assert list(found) == sorted(set(found))


def test_a_prediction_that_is_no_class_is_refused() -> None:
    data = SyntheticShapes(split="test")
    assert data.submission(torch.tensor([[0, 3]])).tolist() == [[0, 3]]
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=rf"prediction.*{wrong}.*0 to 3"):
            data.submission(torch.tensor([[0, wrong]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_map": {255: 2}}, r"^label_map: maps 255 to 2, which is no class; accepted: 0 to 1, and 255 to ignore"),
        ({"label_map": {3: -1}}, r"^label_map: maps 3 to -1, which is no class"),
        ({"color_map": {"#000000": 0, "#ff0000": 9}}, r"^color_map: maps #ff0000 to 9, which is no class"),
    ],
)
def test_a_map_to_a_number_that_is_no_class_is_refused_before_a_file_is_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Folder(images=str(tmp_path / "none"), masks=str(tmp_path / "none"), classes=("a", "b"), **options)


@pytest.mark.parametrize("classes", [[], "road"])
def test_what_is_no_list_of_classes_is_told_in_the_words_of_a_config(classes: object) -> None:
    with pytest.raises(ConfigError, match=r"classes.*(at least 1 item|valid list)"):
        build_dataset({"name": "folder", "images": "a", "masks": "b", "classes": classes})


@pytest.mark.parametrize("name", ["", " "])
def test_a_class_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^classes.*empty.*\['road', ' ?'\]"):
        Folder(images="none", masks="none", classes=("road", name))
