"""The colours of classes: those of a config, and what a sheet makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classyseg.config import ConfigError
from classyseg.datasets import Folder, SyntheticShapes, build_dataset
from classyseg.doctor.sheet import CELL, LINE, MARGIN, contact_sheet


def one_pair(root: Path, mask: Any, light: int = 90) -> dict[str, Any]:
    """The config of a folder of one grey image and its mask."""
    mask = np.array(mask, np.uint8)
    for name, values in (("images", np.full((*mask.shape, 3), light, np.uint8)), ("masks", mask)):
        (root / name).mkdir()
        Image.fromarray(values).save(root / name / "a.png")
    return {"name": "folder", "images": str(root / "images"), "masks": str(root / "masks"), "classes": ["a", "b"]}


@pytest.mark.parametrize(
    "palette", [["#0A0b0c", "#ffffff"], [[10, 11, 12], "#FFFFFF"], ((10, 11, 12), (255, 255, 255))]
)
def test_classes_have_the_colours_of_the_palette(palette: Any, tmp_path: Path) -> None:
    config = one_pair(tmp_path, [[0, 1]])
    colors = ((10, 11, 12), (255, 255, 255))
    data = build_dataset({**config, "palette": palette})
    assert data.palette == colors
    assert build_dataset({"name": "concat", "datasets": [{**config, "palette": palette}]}).palette == colors
    assert build_dataset({**config, "palette": palette, "color_map": {"#ff0000": 0, "#0000ff": 1}}).palette == colors
    assert Folder(images=config["images"], masks=config["masks"], classes=("a", "b"), palette=palette).palette == colors
    assert data[0].target.unique().tolist() == build_dataset(config)[0].target.unique().tolist()


@pytest.mark.parametrize(
    ("palette", "message"),
    [
        (["#000000"], r"^palette: found 1 colours for 2 classes; expected one for each$"),
        (["#000000"] * 3, r"^palette: found 3 colours for 2 classes"),
        ([], r"^palette: found 0 colours for 2 classes"),
        (["#000000", "red"], r"palette\[1\]: found 'red'; accepted are \"#ff0000\", in quotes, and \[255, 0, 0\]"),
        (["#000000", "ff0000"], r"palette\[1\]: found 'ff0000'"),
        (["#000000", "#f00"], r"palette\[1\]: found '#f00'"),
        ([[0, 0, 0], [0, 256, 0]], r"palette\[1\]: found \[0, 256, 0\]"),
        ([[0, 0, 0], [0, -1, 0]], r"palette\[1\]: found \[0, -1, 0\]"),
        ([[0, 0, 0], [0, 1]], r"palette\[1\]: found \[0, 1\]"),
        ([[0, 0, 0], [0.5, 0, 0]], r"palette\[1\]: found \[0.5, 0, 0\]"),
        ([[0, 0, 0], [True, 0, 0]], r"palette\[1\]: found \[True, 0, 0\]"),
        ([0, 1], r"palette\[0\]: found 0"),
        ("#000000", r"palette: found '#000000'"),
    ],
)
def test_a_palette_that_is_none_is_an_error_of_its_place(palette: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build_dataset({**one_pair(tmp_path, [[0, 1]]), "palette": palette})


def test_a_palette_of_a_plugins_data_set_has_a_colour_for_each_class() -> None:
    class Short(SyntheticShapes):
        palette = ((0, 0, 0),)

    with pytest.raises(ConfigError, match=r"palette.*1 colours for 4 classes"):
        Short(split="train")


@pytest.mark.parametrize(
    ("light", "colors"),
    [
        (0, None),
        (255, None),
        (0, ["#000000", "#ffffff"]),
        (0, [[20, 0, 0], [0, 0, 20]]),
        (0, [[255, 0, 255], [140, 140, 140]]),
    ],
)
def test_every_label_can_be_told_on_a_sheet_from_the_others_and_from_the_image(
    light: int, colors: Any, tmp_path: Path
) -> None:
    """Black, as class 0 is by default, vanishes on a dark image; a white class looks as if it were ignored."""
    mask = np.tile(np.repeat([0, 1, 255, 3], 8), (8, 1))
    dataset = build_dataset({**one_pair(tmp_path, mask, light), "palette": colors})
    sheet = np.asarray(contact_sheet(dataset, [0])).astype(int)
    row = sheet[MARGIN + LINE + 30, 2 * MARGIN + CELL + 30 :: CELL // 4][:4]  # the classes, ignored, and 3
    shown = [*row.tolist(), [light] * 3]
    if light:
        del shown[2]  # white, as the image: what is ignored may look as if nothing were there
    pairs_of = [(a, b) for i, a in enumerate(shown) for b in shown[:i]]
    assert min(max(abs(x - y) for x, y in zip(a, b, strict=True)) for a, b in pairs_of) >= 10
