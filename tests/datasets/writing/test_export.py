"""`classyseg data export`: any data set as a folder, COCO's JSON or for Hugging Face, read back to the same pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from label_masks import save
from PIL import Image

from classyseg.cli.main import main
from classyseg.config import ConfigError, DataError
from classyseg.datasets import ClassyDataset, build_dataset
from classyseg.datasets.recognition.recognise import candidates, chosen, data_part
from classyseg.datasets.writing.export import export_data_sets
from classyseg.datasets.writing.regions import coded_counts, regions_of

FORMS = ("folder", "coco_json", "hf")
BACKGROUND = {"classes": ["background", "road", "car"]}
ALL_NAMED = {"classes": ["sky", "road", "car"], "palette": ["#102030", "#405060", "#708090"]}


def folder(root: Path, count: int = 3, *, seed: int = 0, channels: int = 3, **options: Any) -> dict[str, Any]:
    """Random images and masks of three classes and ignored pixels."""
    numbers = np.random.default_rng(seed)
    for i in range(count):
        size = (6 + i, 9)
        pixels = numbers.integers(0, 256, (*size, channels), dtype=np.uint8)
        save(root / "images" / f"scene_{i:04d}.png", pixels[..., 0] if channels == 1 else pixels)
        save(root / "masks" / f"scene_{i:04d}.png", numbers.choice([0, 1, 2, 255], size).astype(np.uint8))
    return {"name": "folder", "images": str(root / "images"), "masks": str(root / "masks"), **BACKGROUND, **options}


def written(config: Any, output: Path, form: Any) -> ClassyDataset:
    """The data set that the written fragment describes."""
    data = config if isinstance(config, ClassyDataset) else build_dataset(config)
    export_data_sets({"train": data}, output, form)
    fragment = yaml.safe_load((output / "dataset.yaml").read_text(encoding="utf-8"))
    return build_dataset(fragment["dataset"]["train"])


def assert_same(found: ClassyDataset, expected: ClassyDataset) -> None:
    assert (found.classes, found.palette, len(found)) == (expected.classes, expected.palette, len(expected))
    for i in range(len(expected)):
        one, two = found.load(i), expected.load(i)
        np.testing.assert_array_equal(one.image.numpy(), two.image.numpy())
        labels = np.where(two.target == expected.ignore_index, found.ignore_index, two.target)
        np.testing.assert_array_equal(one.target.numpy(), labels)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [BACKGROUND, ALL_NAMED, {"ignore_index": -1, "label_map": {255: -1}}], ids=repr)
def test_what_was_written_is_read_back_pixel_for_pixel(tmp_path: Path, form: str, options: dict[str, Any]) -> None:
    expected = build_dataset(folder(tmp_path / "given", **options))
    assert_same(written(expected, tmp_path / "out", form), expected)


def test_coco_that_was_written_is_recognised_with_the_same_classes(tmp_path: Path) -> None:
    """Pixels of the category of ignored ones are ignored, in whichever part there are some."""
    config = folder(tmp_path / "given")
    given = {"train": build_dataset({**config, "label_map": {255: 0}}), "val": build_dataset(config)}
    export_data_sets(given, tmp_path / "out", "coco_json")
    found = data_part(chosen(tmp_path / "out", candidates(tmp_path / "out")))
    assert any("are ignored, as the name says" in note for note in found.notes)
    assert found.sets.keys() == {"train", "val"}
    for part, expected in given.items():
        data = build_dataset(found.sets[part])
        assert data.classes == expected.classes
        for i in range(len(expected)):
            assert torch.equal(data.load_target(i), expected.load_target(i))


@pytest.mark.parametrize("form", FORMS)
def test_grey_images_are_kept(tmp_path: Path, form: str) -> None:
    expected = build_dataset(folder(tmp_path / "given", channels=1))
    found = written(build_dataset(folder(tmp_path / "given", channels=1)), tmp_path / "out", form)
    np.testing.assert_array_equal(found.load(1).image.numpy(), expected.load(1).image.numpy())


@pytest.mark.parametrize("form", ["folder", "coco_json"])
@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 16), (np.float32, 32)])
def test_bands_of_any_number_and_bits_are_kept(tmp_path: Path, form: str, dtype: type, bits: int) -> None:
    config = folder(tmp_path / "given", 2, channels=3)
    for i in range(2):
        path = tmp_path / "given" / "images" / f"scene_{i:04d}.png"
        path.unlink()
        values = np.random.default_rng(i).integers(0, 200, (6 + i, 9, 5)).astype(dtype)
        np.save(path.with_suffix(".npy"), values)
    expected = build_dataset({**config, "channels": 5, "bits": bits})
    assert_same(written(expected, tmp_path / "out", form), expected)


def test_bands_that_no_image_file_of_hugging_face_holds_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    config = folder(tmp_path / "given", 1)
    np.save(tmp_path / "given" / "images" / "scene_0000.npy", np.zeros((6, 9, 5), np.uint8))
    (tmp_path / "given" / "images" / "scene_0000.png").unlink()
    with pytest.raises(ConfigError, match="5 channels of 8 bits"):
        written({**config, "channels": 5}, tmp_path / "out", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


@pytest.mark.parametrize("form", FORMS)
def test_a_drawn_data_set_and_a_part_of_several_are_written_too(tmp_path: Path, form: str) -> None:
    drawn = {"name": "synthetic_shapes", "split": "train", "num_samples": 4, "size": [16, 24]}
    expected = build_dataset({"name": "subset", "first": 5, "dataset": {"name": "concat", "datasets": [drawn, drawn]}})
    assert_same(written(expected, tmp_path / "out", form), expected)


def test_a_turned_photo_is_written_as_it_is_read(tmp_path: Path) -> None:
    config = folder(tmp_path / "given", 1)
    path = tmp_path / "given" / "images" / "scene_0000.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 6, 3), dtype=np.uint8)).save(path, exif=exif)
    expected = build_dataset({**config, "exif": "rotate"})
    assert_same(written(expected, tmp_path / "out", "folder"), expected)


def test_files_keep_their_names_and_bytes_and_get_others_where_two_have_one(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", 2), folder(tmp_path / "two", 1, seed=1)
    found = written({"name": "concat", "datasets": [one, two]}, tmp_path / "out", "folder")
    names = sorted(path.name for path in (tmp_path / "out" / "train" / "images").iterdir())
    assert len(names) == 3
    assert "scene_0001.png" in names
    assert (tmp_path / "out" / "train" / "images" / "scene_0001.png").read_bytes() == (
        tmp_path / "one" / "images" / "scene_0001.png"
    ).read_bytes()
    assert len(found) == 3


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda root: (root / "masks" / "scene_0001.png").write_bytes(b"x"), r"scene_0001\.png"),
        (lambda root: save(root / "masks" / "scene_0001.png", np.full((7, 9), 7, np.uint8)), "holds the label 7"),
        (lambda root: save(root / "masks" / "scene_0001.png", np.zeros((2, 2), np.uint8)), "mask has 2 x 2 pixels"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_sample_is_told_and_nothing_is_written(
    tmp_path: Path, damage: Callable[[Path], object], told: str, form: str
) -> None:
    config = folder(tmp_path / "given")
    damage(tmp_path / "given")
    with pytest.raises(DataError, match=told):
        written(config, tmp_path / "out", form)
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_an_output_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="is there already"):
        written(folder(tmp_path / "given"), tmp_path / "out", "folder")
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_a_data_set_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.train: it has classes of whole images"):
        written({"name": "synthetic_image", "split": "train"}, tmp_path / "out", "folder")
    with pytest.raises(ConfigError, match=r"dataset\.train: it has images without masks"):
        written({**folder(tmp_path / "given"), "masks": None}, tmp_path / "out", "folder")


def test_the_command_writes_every_split_and_a_fragment_that_a_config_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = folder(tmp_path / "a", 3), folder(tmp_path / "b", 2, seed=1)
    path = tmp_path / "config.yaml"
    shared = {"name": "segmentation", "num_epochs": 1, "batch_size": 1, "loss": {"name": "cross_entropy"}}
    model = {"name": "resnet18", "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}}
    config = {**shared, "model": model, "optimizer": {"name": "sgd", "lr": 0.1}}
    path.write_text(json.dumps({**config, "dataset": {"train": train, "val": val}}))
    for form in FORMS:
        output = tmp_path / form
        assert main(["data", "export", str(path), "--output", str(output), "--format", form]) == 0
        assert "train (3), val (2)" in capsys.readouterr().out
        fragment = yaml.safe_load((output / "dataset.yaml").read_text())
        (tmp_path / "again.yaml").write_text(json.dumps({**config, **fragment}))
        assert main(["data", "check", str(tmp_path / "again.yaml"), "--workers", "0"]) == 0
        capsys.readouterr()
        for split, given in (("train", train), ("val", val)):
            found, expected = build_dataset(fragment["dataset"][split]), build_dataset(given)
            assert_same(found, expected)
    one = tmp_path / "one"
    assert main(["data", "export", str(path), "--output", str(one), "--format", "hf", "--split", "val"]) == 0
    assert [file.name for file in (one / "data").iterdir()] == ["validation-00000-of-00001.parquet"]
    assert main(["data", "export", str(path), "--output", str(one), "--format", "hf"]) == 2


# -- COCO --------------------------------------------------------------------------------------------------------------


def painted(counts: list[int], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Run lengths by the naive rule: pixel after pixel, column by column."""
    pixels = [number % 2 == 1 for number, count in enumerate(counts) for _ in range(count)]
    return np.array(pixels).reshape(width, height).T


def flooded(mask: npt.NDArray[Any]) -> list[npt.NDArray[np.bool_]]:
    """Regions by filling from each pixel that is in none yet."""
    left, found = np.ones(mask.shape, dtype=bool), []
    for start in zip(*np.nonzero(left), strict=True):
        if not left[start]:
            continue
        region, todo = np.zeros(mask.shape, dtype=bool), [start]
        while todo:
            row, column = todo.pop()
            if region[row, column]:
                continue
            region[row, column] = True
            for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if 0 <= r < mask.shape[0] and 0 <= c < mask.shape[1] and mask[r, c] == mask[start]:
                    todo.append((r, c))
        left &= ~region
        found.append(region)
    return found


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 8), (20, 13)])
@pytest.mark.parametrize("labels", [1, 2, 5])
def test_regions_are_those_that_filling_finds(shape: tuple[int, int], labels: int) -> None:
    mask = np.random.default_rng(labels).integers(0, labels, shape)
    found = {painted(region.counts, *shape).tobytes(): region for region in regions_of(mask)}
    expected = flooded(mask)
    assert found.keys() == {region.tobytes() for region in expected}
    for region in expected:
        rows, columns = np.nonzero(region)
        box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert (found[region.tobytes()].box, found[region.tobytes()].area) == (box, region.sum())
        assert found[region.tobytes()].label == mask[region][0]
        assert min(found[region.tobytes()].counts[1:]) > 0


def test_a_spiral_is_one_region() -> None:
    mask = np.zeros((41, 41), int)
    row, column, length, step = 0, 0, 41, (0, 1)
    while length > 1:  # arms that turn right, with a gap of one pixel
        for _ in range(length - 1):
            mask[row, column] = 1
            row, column = row + step[0], column + step[1]
        mask[row, column] = 1
        step = (step[1], -step[0])
        length -= step[0] == 0 or length == 41
        length -= step[0] == 0 and length < 41
    assert sum(region.label == 1 for region in regions_of(mask)) == sum(mask[one][0] == 1 for one in flooded(mask))


def test_the_text_of_run_lengths_is_that_of_pycocotools() -> None:
    # `pycocotools.mask.encode` of masks with these run lengths
    assert coded_counts([0, 4, 2, 3]) == "042O"
    assert coded_counts([5, 1, 9, 40, 2, 100, 33]) == "519W1Il1o0"


def test_ignored_pixels_are_a_category_of_their_own_or_have_no_annotation(tmp_path: Path) -> None:
    for name, options, names, background in (
        ("with", BACKGROUND, ["road", "car", "ignored"], "background"),
        ("without", ALL_NAMED, ["sky", "road", "car"], None),
    ):
        written(folder(tmp_path / f"given_{name}", **options), tmp_path / name, "coco_json")
        contents = json.loads((tmp_path / name / "annotations" / "train.json").read_text())
        assert [category["name"] for category in contents["categories"]] == names
        config = yaml.safe_load((tmp_path / name / "dataset.yaml").read_text())["dataset"]["train"]
        assert config["background"] == background
        sizes = {entry["id"]: entry["height"] * entry["width"] for entry in contents["images"]}
        for image, size in sizes.items():
            areas = sum(each["area"] for each in contents["annotations"] if each["image_id"] == image)
            assert areas < size


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def test_the_table_has_images_as_datasets_stores_them(tmp_path: Path) -> None:
    config = folder(tmp_path / "given")
    written(config, tmp_path / "out", "hf")
    table = pq.read_table(tmp_path / "out" / "data" / "train-00000-of-00001.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}, "label": {"_type": "Image"}}
    cell = table.column("label")[1].as_py()
    mask = np.asarray(Image.open(tmp_path / "given" / "masks" / "scene_0001.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(cell["bytes"]))), mask)
    assert cell["path"] == "scene_0001.png"
    assert json.loads((tmp_path / "out" / "id2label.json").read_text()) == {"0": "background", "1": "road", "2": "car"}
