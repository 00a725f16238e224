"""Images of `bits: 32` are the numbers that their files hold, from the file to the network, or are refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from classyseg.cli.main import main
from classyseg.config import ConfigError, DataError, parse_config
from classyseg.datasets import EvalOrder, build_dataset, make_loader
from classyseg.datasets.files import images as files
from classyseg.doctor.sheet import CELL, LINE, MARGIN, contact_sheet
from classyseg.layers import ImageNormalizer, NormalizeConfig
from classyseg.registry import TASKS
from classyseg.structures import Sample
from classyseg.tasks import SegmentationTask
from classyseg.trainer import Stopped, Trainer
from classyseg.transforms import ClassyTransform
from runs import SignalAt, read_records, tiny_config, tiny_task, write_config

HEIGHT, WIDTH, BANDS = 24, 40, 5
UNIT = {"mean": [290.0, 0.25, -3.0, 1e-4, 2e6], "std": [10.0, 0.125, 2.0, 1e-5, 1e5]}
"""Of bands in kelvin, reflectance, decibel, ..."""


def scene(seed: int = 0) -> np.ndarray:
    """(H, W, BANDS), float32, of those units."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal((HEIGHT, WIDTH, BANDS))
    return (noise * UNIT["std"] + UNIT["mean"]).astype(np.float32)


def whole(kind: str, bands: int = 1) -> np.ndarray:
    """Numbers from the lowest that the type has to the highest that float32 holds with all below it."""
    limits = np.iinfo(kind)
    low, high = max(limits.min, -(2**24)), min(limits.max, 2**24)
    numbers = np.linspace(low, high, HEIGHT * WIDTH * bands).round().astype(np.int64)
    return numbers.reshape(HEIGHT, WIDTH, bands).astype(kind)


def planar(path: Path, array: np.ndarray, **options: Any) -> None:
    stored = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    tifffile.imwrite(path, stored, photometric="minisblack", planarconfig="separate", metadata=None, **options)


def chunky(path: Path, array: np.ndarray, **options: Any) -> None:
    bands = {"planarconfig": "contig"} if array.shape[2] > 1 else {}
    stored = array if array.shape[2] > 1 else array[..., 0]
    tifffile.imwrite(path, stored, photometric="minisblack", metadata=None, **bands, **options)


def npy(path: Path, array: np.ndarray) -> None:
    np.save(path, array)


def tree(root: Path, count: int = 6) -> dict[str, Any]:
    """The config of a folder of scenes, each with a mask of two classes."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        image = scene(i)
        planar(root / "images" / f"{i}.tif", image, compression="deflate", predictor=True)
        Image.fromarray((image[..., 0] > 290).astype(np.uint8)).save(root / "masks" / f"{i}.png")
    where = {"images": str(root / "images"), "masks": str(root / "masks"), "classes": ["cold", "warm"]}
    return {"name": "folder", **where, "channels": BANDS, "bits": 32}


FOLDER = {"name": "folder", "images": "images", "masks": "masks", "classes": ["a", "b"], "bits": 32}


def run_config(train: dict[str, Any], test: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    config = {"dataset": {"train": train, "val": train if test is None else test}}
    return tiny_config({**config, "model.in_channels": BANDS, "batch_size": 2, **more})


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        SegmentationTask.check(TASKS.validate(config))
    return str(caught.value)


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "array", "options"),
    [
        (planar, scene(), {}),
        (planar, scene(), {"byteorder": ">", "tile": (16, 16)}),
        (chunky, scene(), {"byteorder": ">", "compression": "zstd"}),
        (chunky, scene()[..., :1], {}),
        (chunky, scene()[..., :1], {"byteorder": ">", "compression": "deflate", "predictor": True}),
        (planar, scene()[..., :2].astype(np.float16), {}),
        (chunky, scene().astype(np.float64), {"bigtiff": True}),
        *[(chunky, whole(kind), {}) for kind in ("i1", "i2", "i4", "u1", "u2", "u4")],
        *[(planar, whole(kind, 3), {"byteorder": ">"}) for kind in ("i1", "i2", "i4", "u1", "u2", "u4")],
        *[(npy, whole(kind, 2), {}) for kind in ("i1", ">i2", "<i4", "u1", "<u2", ">u4")],
        *[(npy, scene()[..., :4].astype(kind), {}) for kind in ("<f2", ">f4", "<f4", ">f8")],
        (npy, scene()[..., 0], {}),
    ],
)
def test_the_numbers_are_those_of_the_array(tmp_path: Path, write: Any, array: np.ndarray, options: Any) -> None:
    path = tmp_path / ("a.npy" if write is npy else "a.tif")
    write(path, array, **options)
    stacked = array if array.ndim == 3 else array[..., None]
    found = files.read_image(path, channels=stacked.shape[2], bits=32)
    assert found.dtype == torch.float32
    expected = stacked.astype(np.float32)  # which for all but float64 is the same number
    assert np.array_equal(expected, stacked) or stacked.dtype.itemsize == 8
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "u1", "u2", "u4", "f2", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_one_band_is_read_right_in_either_order_of_bytes_and_any_compression(
    tmp_path: Path, kind: str, order: str
) -> None:
    """As an image and as a mask: of compressed signed and floating numbers, Pillow turns the bytes twice."""
    numbers = (np.arange(HEIGHT * WIDTH) % 101 - (0 if kind[0] == "u" else 50)).reshape(HEIGHT, WIDTH).astype(kind)
    for compression in (None, "deflate", "lzw", "zstd", "lzma", "packbits"):
        for predictor in (False, True) if compression not in (None, "packbits") else (False,):
            for tile in (None, (16, 16)):
                path = tmp_path / f"{compression}-{predictor}-{tile is None}.tif"
                chunky(
                    path, numbers[..., None], byteorder=order, compression=compression, predictor=predictor, tile=tile
                )
                assert np.array_equal(files.read_image(path, channels=1, bits=32)[0], numbers), path
                assert np.array_equal(files.read_mask_values(path), numbers), path


WITH_HOLES = scene()[..., :2].copy()
WITH_HOLES[2:4, 1:4, 1] = np.nan
WITH_HOLES[0, 0, 0] = -np.inf
LARGE = whole("u4")
LARGE[3, 4] = 2**24 + 1
WIDE, TINY = (scene()[..., :1].astype(np.float64) for _ in range(2))
WIDE[1, 2], TINY[3, 4] = -1e39, 1e-50


@pytest.mark.parametrize("write", [chunky, npy])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (WITH_HOLES, "of its 1,920 numbers, 6 NaN and 1 infinite; accepted are finite ones. Where these mark pixels"),
        (LARGE, "holds 16777217, and 1 such numbers in all, which float32 does not hold"),
        (LARGE.astype(np.int32) * -1, "holds -16777217, and 1 such"),
        (WIDE, r"holds -1e\+39, and 1 such"),
        (TINY, "holds 1e-50, and 1 such"),
        (whole("i2").astype(np.int64), "accepted.*integers of 8 to 32 bits and floating point of 16 to 64"),
        (scene()[..., :3], "channels: 1`|`channels` says 1"),
        (scene()[..., :1].astype(np.complex64), "integers of 8 to 32 bits and floating point of 16 to 64"),
    ],
)
def test_what_float32_does_not_hold_is_refused(tmp_path: Path, write: Any, array: np.ndarray, message: str) -> None:
    path = tmp_path / ("a.npy" if write is npy else "a.tif")
    write(path, array)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*(?:{message})"):
        files.read_image(path, channels=array.shape[2] if array.shape[2] < 3 else 1, bits=32)


def test_float64_is_rounded_to_the_nearest(tmp_path: Path) -> None:
    npy(tmp_path / "a.npy", np.array([[0.1, 1 + 2.0**-24, 1 + 2.0**-24 + 2.0**-50, -1e38, 0.0]]))
    found = files.read_image(tmp_path / "a.npy", channels=1, bits=32).flatten().tolist()
    assert found == [0.10000000149011612, 1.0, 1.00000011920928955, float(np.float32(-1e38)), 0.0]


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.jpg", "a.webp"])
def test_bits_of_32_are_for_tiff_and_arrays(tmp_path: Path, name: str) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    with pytest.raises(DataError, match=r"`bits`.* 32.*TIFF.*\.npy"):
        files.read_image(tmp_path / name, bits=32)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("array", [scene()[..., :3], scene()[..., :1], whole("i2"), whole("u4"), whole("i1", 4)])
@pytest.mark.parametrize("write", [chunky, npy])
def test_other_bits_point_to_32(tmp_path: Path, write: Any, array: np.ndarray, bits: Any) -> None:
    path = tmp_path / ("a.npy" if write is npy else "a.tif")
    write(path, array)
    with pytest.raises(DataError, match="`bits: 32`"):
        files.read_image(path, channels=array.shape[2], bits=bits)


# -- transforms ----------------------------------------------------------------------------------------------------

RIGHT: list[Any] = [
    {"name": "horizontal_flip", "probability": 1},
    {"name": "vertical_flip", "probability": 1},
    {"name": "resize", "size": [17, 31]},
    {"name": "resize", "size": [50, 90], "interpolation": "bicubic"},
    {"name": "random_resize", "scale": [0.5, 2]},
    {"name": "pad", "multiple": 32},
    {"name": "random_rotation", "probability": 1},
    {"name": "random_scale_crop", "size": [16, 16]},
    {"name": "center_crop", "size": [30, 30]},
    {"name": "sync_resize_crop", "base_size": 40, "crop_size": 32},
    {"name": "resize_center_crop", "crop_size": 16},
    {"name": "random_erasing", "probability": 1, "fill": 0},
    {"name": "gaussian_blur", "probability": 1},
    {"name": "torchvision", "transform": "RandomAffine", "arguments": {"degrees": 10, "fill": -3.5}},
    {"name": "torchvision", "transform": "Pad", "arguments": {"padding": 4, "fill": 290.5}},
    {"name": "cut_mix", "probability": 1},
    {"name": "mix_up", "probability": 1},
    {"name": "copy_paste", "probability": 1},
]


@pytest.mark.parametrize("step", RIGHT, ids=str)
def test_transforms_act_on_the_unit_alone(tmp_path: Path, step: dict[str, Any]) -> None:
    """Of numbers ten times as large they give ten times what they gave; nothing is rounded or cut off."""
    plain = tree(tmp_path / "plain", 3)
    larger = tree(tmp_path / "larger", 3)
    for i in range(3):
        planar(tmp_path / "larger" / "images" / f"{i}.tif", scene(i) * 1024)
    times = dict(step)
    if "fill" in step.get("arguments", {}):
        times["arguments"] = {**step["arguments"], "fill": step["arguments"]["fill"] * 1024}
    for index in range(3):
        one = build_dataset({**plain, "transforms": [step]}).sample(index, 0)
        other = build_dataset({**larger, "transforms": [times]}).sample(index, 0)
        assert one.image.dtype == torch.float32
        assert one.image.isfinite().all()
        assert torch.equal(1024 * one.image, other.image)
        assert torch.equal(one.target, other.target) or step["name"] == "mix_up"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("color_jitter", "takes images of three channels of 8 bits alone; leave it out"),
        ("photometric_distortion", "three channels of 8 bits"),
        ("lighting", "three channels of 8 bits"),
        ("auto_augment", "three channels of 8 bits"),
        ("rand_augment", "three channels of 8 bits"),
        ("normalize", "divides by 255; leave it out, and give the task a `normalize`"),
        ("random_erasing", "noise of all grey levels, which nobody knows of them; write fill: 0"),
        ("cutout", "fills with 128, a grey level of 8 bits; accepted is fill: 0"),
        ({"name": "pad", "multiple": 8, "fill": 7}, "fills with 7"),
        ({"name": "random_crop", "size": [8, 8], "fill": 7}, "fills with 7"),
        ({"name": "center_crop", "size": [8, 8], "fill": 7}, "fills with 7"),
        ({"name": "sync_resize_crop", "fill": 7}, "fills with 7"),
        ({"name": "random_rotation", "fill": 7}, "fills with 7"),
        ({"name": "torchvision", "transform": "RandomSolarize", "arguments": {"threshold": 0.5}}, "RandomSolarize"),
        ({"name": "torchvision", "transform": "JPEG", "arguments": {"quality": 50}}, "colours from 0 to 1"),
    ],
)
def test_transforms_that_assume_grey_levels_are_refused_from_the_config_alone(step: Any, message: str) -> None:
    data = {**FOLDER, "channels": BANDS, "transforms": ["horizontal_flip", step]}
    expected = rf"dataset\.train\.transforms\[1\]: found \w+ for images of `bits: 32`.*{message}"
    assert re.search(expected, refusal(run_config(data, normalize=UNIT)))
    within = {"name": "subset", "first": 1, "dataset": {"name": "concat", "datasets": [FOLDER, data]}}
    expected = expected.replace("train", r"train\.dataset\.datasets\[1\]")
    assert re.search(expected, refusal(run_config(within, normalize=UNIT)))
    around = {"name": "subset", "first": 1, "dataset": FOLDER, "transforms": [step]}
    assert "dataset.train.transforms[0]: found " in refusal(run_config(around, normalize=UNIT))


def test_a_data_set_that_python_builds_refuses_them_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"transforms\[0\].*ColorJitter.*`bits: 32`"):
        build_dataset({**tree(tmp_path), "transforms": ["color_jitter"]})


def test_a_plugins_transform_says_that_it_keeps_the_type() -> None:
    class Offset(ClassyTransform):
        def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
            return sample

    assert "keeps_type" in Offset().refusal_of_numbers()
    Offset.keeps_type = True
    assert Offset().refusal_of_numbers() == ""


# -- normalize -----------------------------------------------------------------------------------------------------


def test_numbers_are_normalised_in_their_own_unit() -> None:
    image = torch.tensor([[300.0, 270.0], [0.5, 0.0]]).view(1, 2, 1, 2)
    before = image.clone()
    normalizer = ImageNormalizer(NormalizeConfig(mean=(290.0, 0.25), std=(10.0, 0.125)), own_unit=True)
    assert normalizer(image).flatten().tolist() == [1.0, -2.0, 2.0, -2.0]
    assert torch.equal(image, before)
    with pytest.raises(ConfigError, match=r"torch\.uint8.*`bits: 32`"):
        normalizer(image.byte())
    with pytest.raises(ConfigError, match=r"1 channels.*2 means"):
        normalizer(image[:, :1])


def test_a_config_without_normalize_is_refused_and_so_is_another_number_of_means() -> None:
    data = {**FOLDER, "channels": BANDS}
    missing = refusal(run_config(data))
    assert missing.startswith("normalize: missing; images of `bits: 32` are numbers in a unit of their own")
    assert "`classyseg data stats CONFIG` prints the line" in missing
    assert "\n" not in missing
    short = refusal(run_config(data, normalize={"mean": [1.0], "std": [1.0]}))
    assert "normalize.mean: found 1 means, but the images have 5 channels" in short
    assert "0.5" not in short


@pytest.mark.parametrize("bits", [8, 16])
def test_data_sets_of_32_bits_and_of_others_are_not_mixed(tmp_path: Path, bits: int) -> None:
    numbers, other = {**FOLDER, "channels": BANDS}, {**FOLDER, "channels": BANDS, "bits": bits}
    message = r"images are not of `bits: 32`, as those of .* are"
    assert re.search(f"dataset.val: its {message}", refusal(run_config(numbers, other, normalize=UNIT)))
    both = {"name": "concat", "datasets": [other, numbers]}
    assert re.search(rf"dataset.train.datasets\[0\]: its {message}", refusal(run_config(both, numbers, normalize=UNIT)))
    real = tree(tmp_path)
    with pytest.raises(ConfigError, match=rf"datasets\[1\]: its {message}"):
        build_dataset({"name": "concat", "datasets": [real, {**real, "bits": bits}]})
    task = run_config(real, {"name": "subset", "first": 2, "dataset": {**real, "bits": bits}}, normalize=UNIT)
    with pytest.raises(ConfigError, match=f"dataset.val: its {message}"):
        SegmentationTask(**{key: value for key, value in task.items() if key != "name"})


# -- doctor --------------------------------------------------------------------------------------------------------


def test_the_commands_for_data_take_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tree(tmp_path / "data")
    path = write_config(tmp_path, {"dataset": {"train": data, "val": None}})
    assert main(["data", "check", str(path), "--workers=0"]) == 0
    assert "0 faults, 0 warnings" in capsys.readouterr().out
    every = np.stack([scene(i) for i in range(6)]).astype(np.float64).reshape(-1, BANDS)
    assert main(["data", "stats", str(path), "--workers=0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["dataset.train"]
    np.testing.assert_allclose(record["mean"], every.mean(0), rtol=1e-9)
    np.testing.assert_allclose(record["std"], every.std(0), rtol=1e-7)
    assert main(["data", "stats", str(path), "--workers=0"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "normalize:" in line)
    printed = NormalizeConfig.model_validate(parse_config(line.strip(), source="line").values["normalize"])
    np.testing.assert_allclose(printed.mean, every.mean(0), rtol=1e-7)
    np.testing.assert_allclose(printed.std, every.std(0), rtol=1e-7)


def test_data_check_finds_holes_and_blank_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tree(tmp_path / "data")
    planar(tmp_path / "data" / "images" / "1.tif", np.full((HEIGHT, WIDTH, BANDS), 0.1, np.float32))
    image = scene(2)
    image[3] = np.nan
    planar(tmp_path / "data" / "images" / "2.tif", image)
    path = write_config(tmp_path, {"dataset": {"train": data, "val": None}})
    assert main(["data", "check", str(path), "--workers=0"]) == 2
    found = capsys.readouterr().out
    assert "2.tif: of its 4,800 numbers, 200 NaN; accepted are finite ones" in found
    assert re.search(r"1\.tif.*every pixel is \[0\.1", found)


def test_a_sheet_stretches_each_channel(tmp_path: Path) -> None:
    data = tree(tmp_path, 1)
    image = np.zeros((HEIGHT, WIDTH, BANDS), np.float32)
    image[:, WIDTH // 2 :] = [3e38, 1e-30, -1, 0, 0]
    planar(tmp_path / "images" / "0.tif", image)
    sheet = np.asarray(contact_sheet(build_dataset(data), [0]))[MARGIN + LINE :, MARGIN:]
    assert [sheet[10, 10].tolist(), sheet[10, CELL - 10].tolist()] == [[0, 0, 255], [255, 255, 0]]


# -- runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_and_workers_give_the_same_samples(tmp_path: Path, workers: int) -> None:
    data = {**tree(tmp_path), "transforms": ["horizontal_flip"]}
    cached = {**data, "cache_samples": str(tmp_path / "cache")}
    batches = [
        list(make_loader(build_dataset(config), EvalOrder(6, 2), workers=workers)) for config in (data, cached, cached)
    ]
    assert list(tmp_path.glob("cache/*/*.safetensors"))
    for plain, first, second in zip(*batches, strict=True):
        assert plain.image.dtype == torch.float32
        assert torch.equal(plain.image, first.image)
        assert torch.equal(plain.image, second.image)


def test_a_run_learns_from_numbers_and_continues_to_the_bit(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", 8)
    steps = [{"name": "random_scale_crop", "size": [32, 32]}, "horizontal_flip"]
    train = {**data, "transforms": steps, "cache_samples": str(tmp_path / "cache")}
    hooks = [{"name": "checkpoint", "every_steps": 2, "keep": 2}, {"name": "log", "every": 1}]
    changes = {"dataset": {"train": train, "val": data}, "model.in_channels": BANDS, "normalize": UNIT}
    changes |= {"hooks": hooks, "batch_size": 2}
    path = write_config(tmp_path, changes)
    assert main(["config", "check", str(path)]) == 0
    assert main(["train", str(path), "--output", str(tmp_path / "whole")]) == 0
    with pytest.raises(Stopped):
        Trainer(tmp_path / "broken").train(tiny_task(changes, SignalAt("train", 1, 2)))
    Trainer(tmp_path / "broken", resume=True).train(tiny_task(changes))

    records = read_records(tmp_path / "whole" / "metrics.jsonl")
    losses = [record["loss"] for record in records]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    for name in ("metrics.jsonl", "steps.jsonl"):
        assert read_records(tmp_path / "broken" / name) == read_records(tmp_path / "whole" / name)
    for found in (tmp_path / "whole" / "checkpoints").glob("step-12/*.safetensors"):
        assert found.read_bytes() == (tmp_path / "broken" / found.relative_to(tmp_path / "whole")).read_bytes()
    assert list((tmp_path / "whole" / "checkpoints").glob("step-12/*.safetensors"))


def test_what_the_network_gets_is_the_number_less_the_mean_by_the_deviation(tmp_path: Path) -> None:
    data = tree(tmp_path, 2)
    task = tiny_task(
        {"dataset": {"train": data, "val": data}, "normalize": UNIT, "model.in_channels": BANDS, "batch_size": 2}
    )
    task.prepare()
    batch = next(iter(make_loader(build_dataset(data), EvalOrder(2, 2), workers=0)))
    found = task.on_device(batch).image
    task.close()
    expected = (scene(0).astype(np.float64) - UNIT["mean"]) / UNIT["std"]
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), expected, rtol=1e-4, atol=1e-4)
