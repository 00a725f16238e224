"""Large images as samples of tiles: every pixel counts once where a model is measured, training draws its tiles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from classyseg.config import ConfigError, DataError
from classyseg.datasets import build_dataset
from classyseg.doctor import check_data

HEIGHT, WIDTH = 150, 211
CLASSES = ["water", "land", "road"]
IGNORED = 255
RANDOM = np.random.default_rng(7)
IMAGE = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
MASK = RANDOM.integers(0, 3, (HEIGHT, WIDTH), np.uint8)
MASK[10:30, 20:190] = IGNORED


def write_tiff(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"compression": "deflate", "tile": (64, 48), **options}
    if array.ndim == 3:
        options.setdefault("photometric", "rgb" if array.shape[2] == 3 else "minisblack")
    tifffile.imwrite(path, array, metadata=None, **options)
    return path


def write_pair(root: Path, name: str = "a", image: Any = IMAGE, mask: Any = MASK, **options: Any) -> None:
    write_tiff(root / "images" / f"{name}.tif", image, **options)
    write_tiff(root / "masks" / f"{name}.tif", mask)


def config(
    root: Path, *, size: Any = (64, 80), overlap: int = 11, nodata: Any = None, **options: Any
) -> dict[str, Any]:
    tiles = {"size": size, "overlap": overlap, "nodata": nodata}
    folders = {"images": str(root / "images"), "masks": str(root / "masks")}
    return {"name": "folder", **folders, "classes": CLASSES, "tiles": tiles, **options}


def place_of(sample: Any) -> tuple[int, int, int, int]:
    """The first and the last row, and the first and the last column, of the tile that a sample names."""
    found = re.search(r"\(rows (\d+) to (\d+), columns (\d+) to (\d+)\)$", sample.name)
    assert found is not None
    first_row, last_row, first_column, last_column = map(int, found.groups())
    return first_row, last_row, first_column, last_column


def counts_of(dataset: Any) -> np.ndarray:
    """How many pixels of each label all samples have, by a plain loop."""
    total = np.zeros(256, np.int64)
    for index in range(len(dataset)):
        total += np.bincount(dataset[index].target.numpy().ravel(), minlength=256)
    return total


@pytest.mark.parametrize("size", [16, [24, 30], [40, 51], [41, 80], [39, 20]])
@pytest.mark.parametrize("overlap", [0, 1, 7])
def test_every_pixel_counts_in_exactly_one_tile(tmp_path: Path, size: Any, overlap: int) -> None:
    places = np.arange(40 * 51).reshape(40, 51).astype(np.int32)
    write_pair(tmp_path, image=IMAGE[:40, :51], mask=places)
    names = [f"c{i}" for i in range(places.size)]
    dataset = build_dataset(config(tmp_path, size=size, overlap=overlap, classes=names, ignore_index=-1))
    found = torch.cat([dataset[index].target.flatten() for index in range(len(dataset))])
    assert torch.equal(found[found >= 0].sort().values, torch.arange(places.size))


def test_a_tile_has_context_around_all_that_counts_but_at_the_ends_of_the_image(tmp_path: Path) -> None:
    overlap = 11
    write_pair(tmp_path, mask=np.zeros_like(MASK))
    dataset = build_dataset(config(tmp_path, overlap=overlap))
    for index in range(len(dataset)):
        sample = dataset[index]
        (top, bottom), (left, right) = (
            (axis.min().item(), axis.max().item()) for axis in (sample.target == 0).nonzero(as_tuple=True)
        )
        height, width = sample.target.shape
        assert (height, width) == (64, 80)
        first_row, last_row, first_column, last_column = place_of(sample)
        assert top == 0 if first_row == 0 else top >= overlap
        assert left == 0 if first_column == 0 else left >= overlap
        assert bottom == height - 1 if last_row == HEIGHT - 1 else height - 1 - bottom >= overlap
        assert right == width - 1 if last_column == WIDTH - 1 else width - 1 - right >= overlap


def test_tiles_show_the_pixels_of_the_image_at_their_place(tmp_path: Path) -> None:
    position = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), -1).astype(np.uint8)
    write_pair(tmp_path, image=np.concatenate([position, IMAGE[..., :1]], 2))
    dataset = build_dataset(config(tmp_path))
    for index in range(len(dataset)):
        image = dataset[index].image
        left, top = image[0, 0, 0].item(), image[1, 0, 0].item()
        expected = IMAGE[top : top + 64, left : left + 80, 0]
        assert np.array_equal(image[2].numpy(), expected)


def test_labels_of_all_tiles_are_as_many_as_in_the_masks(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    write_pair(tmp_path, "b", IMAGE[:40, :50], MASK[:40, :50])
    expected = np.bincount(MASK.ravel(), minlength=256) + np.bincount(MASK[:40, :50].ravel(), minlength=256)
    assert counts_of(build_dataset(config(tmp_path)))[:3].tolist() == expected[:3].tolist()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".npy"])
def test_other_formats_give_the_same_tiles(tmp_path: Path, suffix: str) -> None:
    write_pair(tmp_path / "tiff")
    for folder in ("images", "masks"):
        (tmp_path / "other" / folder).mkdir(parents=True)
    image = tmp_path / "other" / "images" / f"a{suffix}"
    np.save(image, IMAGE) if suffix == ".npy" else Image.fromarray(IMAGE).save(image)
    Image.fromarray(MASK).save(tmp_path / "other" / "masks" / "a.png")
    first, second = (build_dataset(config(tmp_path / name)) for name in ("tiff", "other"))
    assert len(first) == len(second)
    for index in range(len(first)):
        assert torch.equal(first[index].image, second[index].image)
        assert torch.equal(first[index].target, second[index].target)


def test_masks_of_colours_and_of_other_values_come_in_tiles_too(tmp_path: Path) -> None:
    colors = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 0]], np.uint8)[np.minimum(MASK, 2)]
    write_pair(tmp_path / "colors", mask=colors)
    write_pair(tmp_path / "values", mask=np.minimum(MASK, 2) * np.uint8(100))
    plain = np.bincount(np.minimum(MASK, 2).ravel()).tolist()
    color_map = {"#0000ff": 0, "#00ff00": 1, "#ff0000": 2}
    assert counts_of(build_dataset(config(tmp_path / "colors", color_map=color_map)))[:3].tolist() == plain
    label_map = {100: 1, 200: 2}
    assert counts_of(build_dataset(config(tmp_path / "values", label_map=label_map)))[:3].tolist() == plain


def test_training_draws_other_tiles_in_each_epoch_and_all_of_their_pixels_count(tmp_path: Path) -> None:
    mask = np.minimum(MASK, 2)
    write_pair(tmp_path, mask=mask)
    dataset, twin = build_dataset(config(tmp_path)), build_dataset(config(tmp_path))
    dataset.for_training = twin.for_training = True
    seen = np.zeros((HEIGHT, WIDTH), bool)
    names = set()
    for epoch in range(8):
        for index in range(len(dataset)):
            sample, again = dataset.sample(index, epoch), twin.sample(index, epoch)
            assert sample.name == again.name
            assert torch.equal(sample.image, again.image)
            assert not (sample.target == IGNORED).any()
            names.add(sample.name)
            top, _, left, _ = place_of(sample)
            assert np.array_equal(sample.target.numpy(), mask[top : top + 64, left : left + 80])
            seen[top : top + 64, left : left + 80] = True
    assert seen.all()
    assert len(names) > 4 * len(dataset)
    twin.seed = 1
    assert [dataset.sample(i, 0).name for i in range(4)] != [twin.sample(i, 0).name for i in range(4)]


def test_pixels_without_data_are_ignored_if_the_config_says_so(tmp_path: Path) -> None:
    image = np.maximum(IMAGE, 1)
    image[:50, 100:] = 0
    image[60, 60] = (0, 7, 0)  # one band alone is a colour
    tag = (42113, 2, 0, "0", True)
    write_pair(tmp_path, image=image, mask=np.minimum(MASK, 2), extratags=[tag])
    expected = np.minimum(MASK, 2)[(image != 0).any(2)]
    for nodata in ("file", 0):
        found = counts_of(build_dataset(config(tmp_path, nodata=nodata)))
        assert found[:3].tolist() == np.bincount(expected).tolist()
    assert counts_of(build_dataset(config(tmp_path)))[:3].sum() == MASK.size
    (summary,) = check_data({"train": config(tmp_path, nodata="file")}).summaries
    assert [summary.pixels[label] for label in range(3)] == np.bincount(expected).tolist()
    assert summary.pixels[IGNORED] == MASK.size - len(expected)


@pytest.mark.parametrize(("number", "tag"), [(np.nan, "nan"), (-9999, "-9999")])
def test_measured_numbers_without_data_become_the_mean_of_the_tile(tmp_path: Path, number: float, tag: str) -> None:
    image = IMAGE.astype(np.float32) / 7
    image[:64, :70, 1] = number
    write_pair(tmp_path, image=image, mask=np.minimum(MASK, 2), extratags=[(42113, 2, 0, tag, True)])
    options = {"bits": 32, "channels": 3}
    dataset = build_dataset(config(tmp_path, nodata="file", **options))
    assert counts_of(dataset)[:3].sum() == MASK.size - 64 * 70
    first = dataset[0].image.numpy()
    mean = image[:64, 70:80].reshape(-1, 3).mean(0)
    assert np.allclose(first[:, :, :70], mean[:, None, None])
    assert np.array_equal(first[:, :, 70:], image[:64, 70:80].transpose(2, 0, 1))
    if np.isnan(number):
        with pytest.raises(DataError, match="NaN"):
            build_dataset(config(tmp_path, **options))[0]


def test_the_doctor_counts_each_pixel_once_and_speaks_of_images(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    write_pair(tmp_path, "b", np.full((90, 90, 3), 8, np.uint8), np.ones((90, 90), np.uint8))
    (summary,) = (diagnosis := check_data({"train": config(tmp_path)})).summaries
    (plain,) = (without := check_data({"train": {**config(tmp_path), "tiles": None}})).summaries
    assert summary.pixels == plain.pixels
    assert summary.masks == plain.masks
    assert summary.sizes == plain.sizes
    assert summary.mean == plain.mean
    assert summary.std == plain.std
    assert [finding.kind for finding in diagnosis.findings] == [finding.kind for finding in without.findings]
    assert {"blank_image", "blank_mask"} <= {finding.kind for finding in diagnosis.findings}


def test_a_part_of_the_data_set_splits_no_image(tmp_path: Path) -> None:
    for name in "abc":
        write_pair(tmp_path, name)
    part = build_dataset({"name": "subset", "every": 2, "dataset": config(tmp_path)})
    assert {Path(part.names_of(index)[0]).stem for index in range(len(part))} == {"a", "c"}


def test_decoded_images_are_kept_where_windows_cannot_be_read(tmp_path: Path) -> None:
    for folder, array in (("images", IMAGE), ("masks", MASK)):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "a.png")
    options = config(tmp_path, cache_samples=str(tmp_path / "cache"))
    first = [build_dataset(options)[0], build_dataset(config(tmp_path))[0]]
    assert torch.equal(first[0].image, first[1].image)
    assert list((tmp_path / "cache").glob("*/*.safetensors"))
    dataset = build_dataset(options)
    assert torch.equal(dataset[0].image, first[0].image)
    dataset.for_training = True
    assert not torch.equal(dataset.sample(0, 1).image, dataset.sample(0, 2).image)


# -- faults


def test_a_tile_of_context_alone_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"tiles.overlap: found 32.*up to 31"):
        build_dataset(config(Path("/nowhere"), size=64, overlap=32))


def test_a_mask_of_another_size_is_named_before_anything_is_read(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    write_pair(tmp_path, "b", mask=MASK[:-1])
    with pytest.raises(DataError, match=r"b.tif: the mask is 211 x 149 pixels, its image .*b.tif 211 x 150"):
        build_dataset(config(tmp_path))
    diagnosis = check_data({"train": config(tmp_path)})
    assert [(finding.kind, len(finding.files)) for finding in diagnosis.faults] == [("size_mismatch", 1)]
    assert diagnosis.summaries[0].num_samples == 1


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    write_pair(tmp_path, "b")
    (tmp_path / "images" / "b.tif").write_text("nothing")
    with pytest.raises(DataError, match=r"images/b.tif.*cannot be read"):
        build_dataset(config(tmp_path))
    assert [finding.kind for finding in check_data({"train": config(tmp_path)}).faults] == ["image_unreadable"]


@pytest.mark.parametrize("compression", ["deflate", "lzw", "zstd", "packbits"])
def test_a_torn_tile_is_named_by_its_file(tmp_path: Path, compression: str) -> None:
    write_pair(tmp_path, compression=compression)
    path = tmp_path / "images" / "a.tif"
    with tifffile.TiffFile(path) as file:
        offset, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = bytes(size)
    path.write_bytes(content)
    dataset = build_dataset(config(tmp_path))
    with pytest.raises(DataError, match=r"images/a.tif.*tile 0 is damaged"):
        dataset[0]
    assert dataset[len(dataset) - 1].image.shape == (3, 64, 80)
    (fault,) = check_data({"train": config(tmp_path)}).faults
    assert (fault.kind, fault.count) == ("image_unreadable", 1)
