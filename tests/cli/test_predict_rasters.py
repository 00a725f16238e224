"""`classyseg predict` on images that are too large to be held: labels are written a part at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from predicted import noise, predict, summary

from classyseg.inference import load

SHAPE = (265, 260)
TAGS = [
    (33550, "d", 3, (0.5, 0.5, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0), True),
    (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32611), True),
    (34737, "s", 0, "WGS 84 / UTM zone 11N|", True),
]
WINDOWS = '{"name": "sliding_window", "size": [64, 96], "overlap": 0.5, "blend": "gaussian"}'


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    path = tmp_path / "field.tif"
    options = {"tile": (64, 64), "compression": "deflate", "metadata": None, "extratags": TAGS}
    tifffile.imwrite(path, noise(*SHAPE), photometric="rgb", **options)
    return path


@pytest.fixture
def nothing_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as many pixels are too many to be read whole."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SHAPE[0] * SHAPE[1] // 4)


def test_labels_of_an_image_in_bands_are_those_of_the_whole_image(
    trained: Path, raster: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert predict(trained, raster, "--protocol", WINDOWS, "--output", tmp_path / "whole") == 0
    request.getfixturevalue("nothing_is_whole")
    assert predict(trained, raster, "--protocol", WINDOWS, "--output", tmp_path / "bands") == 0
    first, second = (tifffile.imread(tmp_path / name / "field.tif") for name in ("whole", "bands"))
    assert np.array_equal(first, second)
    assert len(np.unique(first)) > 1
    told = [summary(tmp_path / name) for name in ("whole", "bands")]
    assert told[0]["files"][0]["pixels"] == told[1]["files"][0]["pixels"]
    assert told[1]["computed_in_windows"] is None


def test_a_label_raster_keeps_the_place_on_the_earth_and_has_the_palette(
    trained: Path, raster: Path, tmp_path: Path, nothing_is_whole: None
) -> None:
    assert predict(trained, raster, "--protocol", WINDOWS, "--output", tmp_path / "out") == 0
    with tifffile.TiffFile(raster) as before, tifffile.TiffFile(tmp_path / "out" / "field.tif") as after:
        found = {code: tag.value for code, tag in after.pages.first.tags.items()}
        for code, *_ in TAGS:
            assert found[code] == before.pages.first.tags[code].value
        assert after.geotiff_metadata == before.geotiff_metadata
        assert after.pages.first.is_tiled
        colors = after.pages.first.colormap[:, :4].T // 257
    palette = load(trained).palette
    assert colors.tolist() == [list(color) for color in palette]


def test_without_a_protocol_windows_of_the_size_of_the_training_are_taken_and_told(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raster = tmp_path / "field.tif"
    tifffile.imwrite(raster, noise(70, 52), photometric="rgb", metadata=None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert predict(trained, raster, "--output", tmp_path / "out") == 0
    told = summary(tmp_path / "out")
    size = list(load(trained).train_size or ())
    assert size
    assert told["files"][0]["windows"] == size
    assert told["computed_in_windows"]["images"] == 1
    named = json.dumps({"name": "sliding_window", "size": size, "overlap": 0.5, "blend": "gaussian"})
    assert predict(trained, raster, "--protocol", named, "--output", tmp_path / "named") == 0
    first, second = (tifffile.imread(tmp_path / name / "field.tif") for name in ("out", "named"))
    assert np.array_equal(first, second)


def test_an_array_of_numpy_becomes_a_tiff_of_labels(trained: Path, tmp_path: Path, nothing_is_whole: None) -> None:
    np.save(tmp_path / "field.npy", noise(*SHAPE))
    assert predict(trained, tmp_path / "field.npy", "--protocol", WINDOWS, "--output", tmp_path / "out") == 0
    assert tifffile.imread(tmp_path / "out" / "field.tif").shape == SHAPE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--overlay"], "--overlay and --scores"),
        (["--protocol", "whole"], "sliding_window"),
        (["--max-memory", "1M"], "max_memory"),
    ],
)
def test_what_needs_the_whole_image_is_told_and_other_files_are_done(
    trained: Path, raster: Path, tmp_path: Path, nothing_is_whole: None, words: list[str], message: str
) -> None:
    other = tmp_path / "small.png"
    Image.fromarray(noise(20, 30)).save(other)
    assert predict(trained, raster, other, *words, "--output", tmp_path / "out") == 1
    (failed,) = (each for each in summary(tmp_path / "out")["failed"] if each["file"].endswith(".tif"))
    assert message in failed["reason"]
    assert not list((tmp_path / "out").glob("*.tif*"))


def test_a_damaged_raster_leaves_no_file(trained: Path, raster: Path, tmp_path: Path, nothing_is_whole: None) -> None:
    with tifffile.TiffFile(raster) as file:
        offset, size = file.pages[0].dataoffsets[-1], file.pages[0].databytecounts[-1]
    content = bytearray(raster.read_bytes())
    content[offset : offset + size] = bytes(size)
    raster.write_bytes(content)
    assert predict(trained, raster, "--protocol", WINDOWS, "--output", tmp_path / "out") == 1
    (failed,) = summary(tmp_path / "out")["failed"]
    assert "is damaged" in failed["reason"]
    assert not list((tmp_path / "out").glob("field*"))


def test_bands_in_python_are_the_labels_of_the_image(trained: Path, raster: Path, request: Any) -> None:
    predictor = load(trained, protocol=json.loads(WINDOWS))
    whole = predictor.predict(raster)
    request.getfixturevalue("nothing_is_whole")
    bands = list(predictor.label_bands(raster))
    assert [first for first, _ in bands] == np.cumsum([0, *(len(labels) for _, labels in bands[:-1])]).tolist()
    assert np.array_equal(np.concatenate([labels for _, labels in bands]), whole)
