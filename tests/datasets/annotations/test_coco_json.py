"""COCO's JSON with categories of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classyseg.config import DataError
from classyseg.datasets import CocoJson

LEFT = [[0, 0, 4, 0, 4, 6, 0, 6]]
"""The polygon of the left half of an image of 6 x 8."""


def tree(root: Path, *annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A file of two images of 6 x 8 pixels with two categories, and a data set's config."""
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(root / name)
    entries = [{"id": n, "file_name": f"{name}.png", "height": 6, "width": 8} for n, name in enumerate("ab")]
    numbered = [{"id": n, "image_id": 0, "segmentation": LEFT, **each} for n, each in enumerate(annotations, start=7)]
    named = [{"id": 1, "name": "car"}, {"id": 2, "name": "road"}]
    contents = {"images": entries, "annotations": numbered, "categories": named, **more}
    (root / "all.json").write_text(json.dumps(contents), encoding="utf-8")
    return {"root": str(root), "annotations": "all.json"}


def test_categories_become_classes_and_later_objects_cover_earlier_ones(tmp_path: Path) -> None:
    runs = {"counts": [0, 12, 36], "size": [6, 8]}
    data = CocoJson(**tree(tmp_path, {"category_id": 1}, {"category_id": 2, "segmentation": runs}))
    assert data.classes == ("background", "car", "road")
    assert data[0].target.tolist() == [[2, 2, 1, 1, 0, 0, 0, 0]] * 6
    assert data[1].target.unique().tolist() == [0]


def test_an_unknown_label_names_the_file_and_the_annotation(tmp_path: Path) -> None:
    config = tree(tmp_path, {"category_id": 1}, {"category_id": 2})
    with pytest.raises(
        DataError, match=r"all.json: annotation 8: its label is 'road', unknown .*Known: background, ca"
    ):
        CocoJson(**config, classes=("car",))
