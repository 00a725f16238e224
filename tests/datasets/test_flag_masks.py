"""Pixels of several classes: files of several channels, and files of each class, hold the flags they were made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from transform_cases import OPTIONS

from classyseg.datasets import build_dataset
from classyseg.datasets.build import describe
from classyseg.errors import ConfigError, DataError
from classyseg.problems import Problems
from classyseg.registry import DATASETS, TRANSFORMS
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import PairTransform, transformed
from config_contract import REQUIRED

CLASSES = ["road", "marking", "shadow"]
SIZE = (9, 7)


def drawn(num_classes: int = 3, *, ignored: bool = True) -> list[np.ndarray[Any, Any]]:
    """Flags (num_classes, H, W) of two images, which overlap, with pixels that are ignored for one class or for all."""
    generator = np.random.default_rng(0)
    masks = [generator.integers(0, 2, (num_classes, *SIZE)).astype(np.uint8) for _ in range(2)]
    if ignored:
        masks[0][0, :2] = 255
        masks[1][:, 4] = 255
    return masks


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i in range(2):
        pixels = np.full((*SIZE, 3), 50 * i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def write(path: Path, channels: np.ndarray[Any, Any]) -> None:
    """A mask (C, H, W), or (H, W), as the file's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = channels if channels.ndim == 2 else np.moveaxis(channels, 0, -1)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig=None if pixels.ndim == 2 else "contig")
    else:
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def folder(tree: Path, masks: Any, **options: Any) -> Any:
    config = {"name": "folder", "images": str(tree / "images"), "masks": masks, "multi_label": True, **options}
    return build_dataset(config)


def assert_holds(dataset: Any, flags: list[np.ndarray[Any, Any]]) -> None:
    assert len(dataset) == len(flags)
    for i, own in enumerate(flags):
        target = dataset[i].target
        assert target.dtype == torch.uint8
        np.testing.assert_array_equal(target.numpy(), own)


@pytest.mark.parametrize(("suffix", "num_classes"), [(".png", 3), (".png", 4), (".png", 2), (".tif", 5), (".npy", 6)])
def test_a_channel_of_a_file_is_a_class(tree: Path, suffix: str, num_classes: int) -> None:
    flags = drawn(num_classes)
    for i, own in enumerate(flags):
        write(tree / "masks" / f"{i}{suffix}", own)
    dataset = folder(tree, str(tree / "masks"), classes=[f"c{i}" for i in range(num_classes)])
    assert_holds(dataset, flags)
    assert dataset.facts.has_flags


@pytest.mark.parametrize("kind", ["bool", "float32", "int64"])
def test_arrays_of_other_types_hold_the_same_flags(tree: Path, kind: str) -> None:
    flags = drawn(ignored=False)
    for i, own in enumerate(flags):
        write(tree / "masks" / f"{i}.npy", own.astype(kind))
    assert_holds(folder(tree, str(tree / "masks"), classes=CLASSES), flags)


@pytest.mark.parametrize("form", ["mapping", "mapping and classes", "pattern", "suffix"])
def test_a_file_for_each_class(tree: Path, form: str) -> None:
    """`e_way` ends as another class does, so that the suffix of one is the end of the other's."""
    classes, flags = ["way", "e_way", "shadow"], drawn()
    names = {"suffix": "masks/{i}_{name}.png", "pattern": "masks/{name}/{i}.png"}
    for i, own in enumerate(flags):
        for name, mask in zip(classes, own, strict=True):
            write(tree / names.get(form, "{name}/{i}.png").format(i=i, name=name), mask)
    if form.startswith("mapping"):
        order = reversed(classes) if "classes" in form else classes
        options: dict[str, Any] = {"masks": {name: str(tree / name) for name in order}}
        options |= {"classes": classes} if "classes" in form else {}
    elif form == "pattern":
        options = {"masks": str(tree / "masks" / "{class}"), "classes": classes}
    else:
        options = {"masks": str(tree / "masks"), "mask_suffix": "_{class}", "classes": classes}
    dataset = folder(tree, **options)
    assert_holds(dataset, flags)
    assert len(dataset.files(0)) == 4
    known = describe(DATASETS.validate({"name": "folder", "images": "i", "multi_label": True, **options}), Problems())
    assert known.facts.classes == tuple(classes)
    assert known.facts.has_flags


def test_binary_masks_are_one_class_and_the_map_names_other_values(tree: Path) -> None:
    flags = drawn(1, ignored=False)
    for i, own in enumerate(flags):
        write(tree / "masks" / f"{i}.png", np.where(own[0] == 1, 255, 0))
    wanted = [own.copy() for own in flags]
    assert_holds(folder(tree, str(tree / "masks"), classes=["nucleus"], label_map={255: 1}), wanted)
    alone = folder(tree, str(tree / "masks"), classes=["nucleus"], ignore_index=-1)
    with pytest.raises(DataError, match=r"0\.png: its mask of 'nucleus' holds the values 255 .*label_map: \{255: 1\}"):
        alone[0]


def test_pixels_may_be_ignored_for_all_classes_by_a_mask_of_their_own(tree: Path) -> None:
    flags = drawn(ignored=False)
    hidden = np.zeros(SIZE, np.uint8)
    hidden[2:4] = 7
    for i, own in enumerate(flags):
        write(tree / "masks" / f"{i}.png", own)
        write(tree / "void" / f"{i}.png", hidden)
    for ignore_index in (255, -1):
        options = {"classes": CLASSES, "ignore_masks": str(tree / "void"), "ignore_index": ignore_index}
        dataset = folder(tree, str(tree / "masks"), **options)
        for i, own in enumerate(flags):
            expected = np.where(hidden > 0, ignore_index, own.astype(np.int64))
            np.testing.assert_array_equal(dataset[i].target.numpy().astype(np.int64), expected)


def test_parts_and_lists_take_whole_samples(tree: Path) -> None:
    flags = drawn()
    for i, own in enumerate(flags):
        write(tree / "masks" / f"{i}.png", own)
    (tree / "list.txt").write_text("1.png\n")
    assert_holds(folder(tree, str(tree / "masks"), classes=CLASSES, list=str(tree / "list.txt")), flags[1:])
    parts = [
        folder(tree, str(tree / "masks"), classes=CLASSES, split={"part": part, "val": 0.5, "by": "file"})
        for part in ("train", "val")
    ]
    assert sum(map(len, parts)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_index": 1}, r"ignore_index: found 1"),
        ({"label_map": {255: 2}}, r"label_map: maps 255 to 2"),
        ({"color_map": {"#ff0000": 1}}, r"color_map: "),
        ({"multi_label": False, "masks": {"road": "a"}}, r"masks: .*multi_label: true"),
        ({"multi_label": False, "mask_suffix": "_{class}"}, r"masks: .*multi_label: true"),
        ({"multi_label": False, "ignore_masks": "void"}, r"ignore_masks: "),
        ({"masks": {"road": "a", "marking": "b"}}, r"masks: found no folder for the class 'shadow'"),
        ({"masks": {"roads": "a"}}, r"masks\.roads: .*did you mean 'road'"),
        ({"masks": "{class}", "table": "t.csv"}, r"table: .*each class has its own"),
        ({"masks": "{class}", "classes": ["../up"]}, r"masks: .*no name of a folder"),
        ({"transforms": [{"name": "mix_up"}]}, r"transforms\[0\]: found MixUp .*cut_mix"),
        ({"transforms": [{"name": "random_crop", "size": [4, 4], "max_class_fraction": 0.5}]}, r"max_class_fraction"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_told_before_a_file_is_opened(options: dict[str, Any], message: str) -> None:
    config = {"name": "folder", "images": "i", "masks": "m", "classes": CLASSES, "multi_label": True, **options}
    problems = Problems()
    describe(DATASETS.validate(config), problems)
    with pytest.raises(ConfigError, match=message):
        problems.tell()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((2, *SIZE), np.uint8), r"0\.png: a mask of \d channels; expected one for each of the 3 classes"),
        (np.zeros((3, 4, 4), np.uint8), r"0\.png: the image is 7 x 9 pixels, its masks 4 x 4"),
        (np.full((3, *SIZE), 9, np.uint8), r"0\.png: its mask of 'road' holds the values 9"),
    ],
    ids=["channels", "size", "value"],
)
def test_a_wrong_mask_is_named(tree: Path, mask: np.ndarray[Any, Any], message: str) -> None:
    for i in range(2):
        write(tree / "masks" / f"{i}.png", mask)
    with pytest.raises(DataError, match=message):
        folder(tree, str(tree / "masks"), classes=CLASSES)[0]


def test_masks_of_one_image_must_be_of_one_size_and_all_there(tree: Path) -> None:
    for i in range(2):
        write(tree / "road" / f"{i}.png", np.zeros(SIZE, np.uint8))
        write(tree / "marking" / f"{i}.png", np.zeros((3, 3), np.uint8))
    masks = {name: str(tree / name) for name in ("road", "marking")}
    with pytest.raises(DataError, match=r"marking/0\.png: a mask of 3 x 3 pixels; .*road/0\.png has 7 x 9"):
        folder(tree, masks)[0]
    (tree / "marking" / "1.png").unlink()
    with pytest.raises(DataError, match=r"marking: no mask for 1 of 2 images"):
        folder(tree, masks)


def test_an_array_of_objects_is_not_unpickled(tree: Path) -> None:
    (tree / "masks").mkdir()
    for i in range(2):
        np.save(tree / "masks" / f"{i}.npy", np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"0\.npy: cannot be read"):
        folder(tree, str(tree / "masks"), classes=CLASSES)[0]


# -- transforms --------------------------------------------------------------------------------------------------------


def flag_sample(seed: int, size: tuple[int, int] = (60, 50)) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    flags = torch.randint(0, 2, (3, *size), generator=generator, dtype=torch.uint8)
    flags[1, :9] = 255
    return Sample(image, flags, f"sample {seed}")


@pytest.mark.parametrize("name", [n for n in TRANSFORMS.names() if TRANSFORMS.entry(n).distribution == "classyseg"])
def test_a_transform_moves_the_flags_of_each_class_as_a_mask_of_it_alone(name: str) -> None:
    fields = TRANSFORMS.config_model(name).model_fields
    needed = {key: REQUIRED[key] for key, field in fields.items() if field.is_required() and key != "name"}
    for options in OPTIONS.get(name, [needed]):
        transform = TRANSFORMS.build({"name": name, **options}, 255)
        if transform.refusal_of_flags():
            asking = {"max_class_fraction", "class_share", "min_pixels", "region_share"}
            assert name in ("mix_up", "ignore_small_regions") or asking & options.keys()
            continue

        def run(channel: int | None, transform: Any = transform) -> Sample:
            samples = flag_sample(0), flag_sample(1)
            given = [s if channel is None else s.replace(target=s.target[channel]) for s in samples]
            generator = generator_for(0, 0, 5)
            if isinstance(transform, PairTransform):
                return transform.mix(given[0], generator, lambda: given[1], 3)
            return transformed(transform, given[0], generator)

        if name == "copy_paste":
            continue
        whole = run(None)
        assert whole.has_flags
        for channel in range(3):
            alone = run(channel)
            assert torch.equal(alone.image, whole.image)
            assert torch.equal(alone.target, whole.target[channel]), (options, channel)


def test_copy_paste_takes_pixels_of_a_class_with_all_their_flags() -> None:
    sample, other = flag_sample(0), flag_sample(1)
    transform = TRANSFORMS.build({"name": "copy_paste", "classes": [2], "probability": 1.0}, 255)
    mixed = transform.mix(sample, generator_for(0), lambda: other, 3)
    pasted = other.target[2] == 1
    assert torch.equal(mixed.target[:, pasted], other.target[:, pasted])
    assert torch.equal(mixed.target[:, ~pasted], sample.target[:, ~pasted])
    assert torch.equal(mixed.image[:, pasted], other.image[:, pasted])
    halves = TRANSFORMS.build({"name": "copy_paste", "probability": 1.0}, 255)
    found = halves.mix(sample, generator_for(0), lambda: other, 3).target
    two = [c for c in range(3) if bool((found[:, other.target[c] == 1] == other.target[:, other.target[c] == 1]).all())]
    assert len(two) == 2
