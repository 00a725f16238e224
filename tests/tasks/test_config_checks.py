"""What `config check` refuses of a config alone: all at once, each with its path and what to do."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import torch
from memory import memory_within
from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.datasets import SyntheticShapes
from classyseg.datasets.build import facts_of
from classyseg.engine.runtime import RuntimeConfig
from classyseg.models import ClassyModel, create_backbone
from classyseg.registry import DATASETS, HEADS, MODELS, TASKS, head_name_problem
from classyseg.tasks import SegmentationTask
from classyseg.tasks.outputs import SeenAtOnce, seen_at_once
from runs import tiny_config, tiny_task

FOLDER = {"name": "folder", "images": "images", "masks": "masks", "classes": ["ground", "crop"]}
BEST = [{"name": "checkpoint", "best": "mean_iou"}]
FOUR = {"normalize": {"mean": [0.5] * 4, "std": [0.2] * 4}}
SINGLE = {"batch_size": 1, "dataset.train.size": [96, 96]}
FCN = {"name": "fcn", "blocks": ["stage4"]}


def check(changes: dict[str, Any]) -> None:
    SegmentationTask.check(TASKS.validate(tiny_config(changes)))


def refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check(changes)
    return str(caught.value)


def parts_of(train: dict[str, Any], val: dict[str, Any], **more: Any) -> dict[str, Any]:
    """`train` and `val` are parts of one folder."""
    sets = {"dataset.train": {**FOLDER, "split": {"part": "train", **train}}}
    return {**sets, "dataset.val": {**FOLDER, **more, "split": {"part": "val", **val}}}


@pytest.mark.parametrize(
    ("train", "val", "told"),
    [
        ({"val": 0.2}, {"val": 0.2, "seed": 1}, r"split\.seed: found 1; dataset\.train\.split has 0"),
        ({"val": 0.2}, {"val": 0.3}, r"split\.val: found 0\.3; dataset\.train\.split has 0\.2"),
        ({"val": 0.2, "by": "file"}, {"val": 0.2}, r"split\.by: found 'stem'; .* has 'file'"),
        ({"folds": 5, "fold": 0}, {"folds": 5, "fold": 1}, r"split\.fold: found 1; .* has 0"),
        ({"folds": 5, "fold": 0}, {"val": 0.2}, r"split\.val: found 0\.2; .* has None"),
    ],
)
def test_parts_of_one_folder_are_divided_alike(train: dict[str, Any], val: dict[str, Any], told: str) -> None:
    assert re.search(rf"dataset\.val\.{told}.*on both sides", refusal(parts_of(train, val)))
    check(parts_of(val, val))
    check(parts_of(train, val, images="others"))  # other files, other parts
    assert re.search(told, refusal(parts_of(train, val, ignore_index=254, masks="of_others")))
    inside = {"name": "subset", "first": 2, "dataset": parts_of(train, val)["dataset.val"]}
    assert re.search(rf"dataset\.val\.dataset\.{told}", refusal({**parts_of(train, val), "dataset.val": inside}))


def sly(**keys: Any) -> dict[str, Any]:
    return {"name": "supervisely", "root": "sly", "classes": ["ground", "crop"], **keys}


def test_other_folders_of_a_project_are_other_files() -> None:
    one, other = (
        sly(folders=["a"], split={"part": "train", "val": 0.2}),
        sly(folders=["b"], split={"part": "val", "val": 0.5}),
    )
    check({"dataset.train": one, "dataset.val": other})
    with pytest.raises(ConfigError, match=r"dataset\.val\.split\.val: found 0\.5"):
        check({"dataset.train": one, "dataset.val": {**other, "folders": ["a"]}})


@pytest.mark.parametrize("split", [None, "test"])
def test_a_part_of_all_files_and_all_files_are_no_two_sets(split: str | None) -> None:
    whole = {"name": "cvat_masks", "root": "cvat", "classes": ["ground", "crop"], "split": split}
    part = {**whole, "split": {"part": "train", "val": 0.2}}
    found = "missing" if split is None else "found 'test'"
    told = f"dataset.val.split: {found}; dataset.train.split divides these files"
    assert told in refusal({"dataset.train": part, "dataset.val": whole})
    check({"dataset.train": part, "dataset.val": {**whole, "root": "other"}})
    check(on(whole))  # the training set may be measured on purpose


def on(data: dict[str, Any]) -> dict[str, Any]:
    return {"dataset.train": data, "dataset.val": data}


@pytest.mark.parametrize(
    ("changes", "place", "mend"),
    [
        ({**on({**FOLDER, "channels": 4}), **FOUR}, "model.in_channels: found 3", "write model.in_channels: 4"),
        ({"model.in_channels": 5}, "model.in_channels: found 5", "write model.in_channels: 3"),
        (
            {**on({**FOLDER, "channels": 4}), "model.in_channels": 4},
            "normalize: found 3 means by default",
            "normalize: {mean: [0.5, 0.5, 0.5, 0.5], std: [0.25,",
        ),
        ({"normalize": {"mean": [0.5], "std": [0.2]}}, "normalize.mean: found 1 means", "the images have 3 channels"),
        ({"normalize": {"mean": [0.5] * 3, "std": [0.2]}}, "normalize: found 3 means and 1 standard", ""),
        (
            {"dataset.train.transforms": [{"name": "normalize", "mean": [0.5], "std": [0.2]}], "dataset.val": None},
            "dataset.train.transforms[0].mean: found 1 means",
            "one mean and one std",
        ),
        (
            {"dataset.train": {**FOLDER, "channels": 4}, "dataset.val": FOLDER, **FOUR},
            "dataset.val: its images have 3 channels, those of dataset.train 4",
            "same channels",
        ),
        (
            {"dataset.train": FOLDER, "dataset.val": {**FOLDER, "classes": ["crop", "ground"]}},
            "dataset.val: its classes ['crop', 'ground'] are not those of dataset.train",
            "in the same order",
        ),
        (
            {**SINGLE, "model.heads.main": {"name": "psp", "blocks": ["stage4"], "norm_image": True}},
            "batch_size: found 1 at once; model.heads.main.",
            "2 or more images at once",
        ),
        (
            {**SINGLE, "model.heads.main": {"name": "deeplabv3", "blocks": ["stage4"], "norm_image": True}},
            "batch_size: found 1 at once",
            "model.heads.main.norm: {name: group}",
        ),
        (
            {
                **SINGLE,
                "batch_size": 4,
                "runtime.accumulate_steps": 4,
                "model.heads.main": {"name": "psp", "blocks": ["stage4"], "norm_image": True},
            },
            "batch_size: found 1 at once",
            "runtime.accumulate_steps",
        ),
        ({"batch_size": 1}, "batch_size: found 1 at once; model.trunk_output", "model.norm: {name: group}"),
        ({"batch_size": 9, "runtime.accumulate_steps": 2}, "batch_size: found 9", "8 or 10"),
        (
            {"model": {"name": "resnext3d_18", "heads": {"main": FCN}}},
            "model.name: ResNeXt3D takes clips",
            "choose a model of images",
        ),
        (
            {"model.heads.main": {"name": "linear", "blocks": ["stage4"]}},
            "model.heads.main: its logits (N, 4) are of whole images",
            "needs a head with logits for each pixel",
        ),
        ({"dataset.val": None, "hooks": BEST}, "hooks[0].best: found 'mean_iou'", "there is no dataset.val"),
    ],
)
def test_what_the_config_tells_is_refused_before_any_file_is_opened(
    changes: dict[str, Any], place: str, mend: str
) -> None:
    message = refusal(changes)
    assert len(message.splitlines()) == 1
    assert message.startswith(place)
    assert mend in message


def test_all_that_is_wrong_is_told_at_once() -> None:
    message = refusal(
        {
            **on({**FOLDER, "channels": 4}),
            "dataset.val": {**FOLDER, "classes": ["a", "b"]},
            "loss.class_weights": [1.0],
            "optimizer.groups": [{"match": "nothing.*"}],
            "batch_size": 7,
            "runtime.accumulate_steps": 2,
            "meters": [{"name": "accuracy", "topk": [9]}],
        }
    )
    places = [line.partition(":")[0] for line in message.splitlines()]
    assert sorted(places) == sorted(
        [
            "batch_size",
            "dataset.val",
            "loss.class_weights",
            "meters[0].topk",
            "dataset.val",
            "optimizer.groups[0].match",
            "normalize",
        ]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 1, "dataset.train.size": [64, 64]},
        {"batch_size": 1, "model.heads.main": {"name": "psp", "blocks": ["stage2"], "norm": {"name": "group"}}}
        | {"model.norm": {"name": "group"}},
        {
            "batch_size": 1,
            "num_epochs": 0,
            "model.heads.main": {"name": "psp", "blocks": ["stage4"], "norm_image": True},
        },
        {"batch_size": 1, "model.frozen": True, "model.frozen_norm": True},
        {**on({**FOLDER, "channels": 4}), "model.in_channels": 4, **FOUR},
    ],
)
def test_what_can_be_trained_is_accepted(changes: dict[str, Any]) -> None:
    check(changes)


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 1}, {"model.in_channels": 4}, {"model": {"name": "resnext3d_18", "heads": {"main": FCN}}}],
)
def test_a_task_that_python_builds_is_refused_for_the_same(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_task(changes)
    assert str(caught.value) in refusal(changes).splitlines()


class Spectra(SyntheticShapes):
    """A plugin's data set of 7 channels, which the class says."""

    channels = 7


def test_a_plugins_data_set_says_its_channels_in_its_class(own_registries: None) -> None:
    DATASETS.register("spectra")(Spectra)
    message = refusal({"dataset.train.name": "spectra", "dataset.val.name": "spectra"})
    assert message.splitlines()[0].startswith("model.in_channels: found 3, but the images of dataset.train have 7")


@pytest.mark.parametrize(
    ("transforms", "size"),
    [
        ([], (32, 32)),
        (["horizontal_flip", "color_jitter"], (32, 32)),
        ([{"name": "random_scale_crop", "size": [48, 64]}, "normalize"], (48, 64)),
        ([{"name": "random_scale_crop", "size": [48, 64]}, {"name": "pad", "multiple": 60}], (60, 120)),
        ([{"name": "pad", "size": [40, 16]}], (40, 32)),
        ([{"name": "sync_resize_crop", "crop_size": 24}], (24, 24)),
        ([{"name": "resize", "shorter_side": 20}], None),
        ([{"name": "random_resize", "scale": [0.5, 2.0]}], None),
        ([{"name": "random_resize", "scale": [0.5, 2.0]}, {"name": "center_crop", "size": [8, 8]}], (8, 8)),
    ],
)
def test_the_size_of_training_images_is_known_where_transforms_fix_it(transforms: Any, size: Any) -> None:
    train = TASKS.validate(tiny_config({"dataset.train.transforms": transforms})).dataset.train
    assert facts_of(train).size == size
    built = SyntheticShapes.from_config({"split": "train", "size": [32, 32], "transforms": transforms})
    if size is not None:
        assert tuple(built[0].image.shape[-2:]) == size


def test_a_norm_sees_the_batch_of_the_job_where_it_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classyseg.tasks.outputs.world_size", lambda: 4)
    for joined, images in ((True, 4), (False, 1)):
        runtime = RuntimeConfig(accumulate_steps=2, sync_batch_norm=joined)
        assert seen_at_once(8, runtime, None) == SeenAtOnce(images, None)


# -- heads that torch cannot hold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["type", "keys", "forward", "training", "a.b", "", "1st", "items", "_modules", "a b"])
def test_a_head_cannot_be_called_what_torch_cannot_hold(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.heads\."):
        TASKS.validate(tiny_config({"model.heads": {name: FCN}}))
    model = create_backbone("resnet18", depths=[1, 1, 1, 1])
    head = HEADS.build({"name": "fcn"}, [model.block("stage4")], 2)
    with pytest.raises(ConfigError, match=r"heads\."):
        model.attach_head(name, head)
    assert list(model.heads) == []


def test_names_that_torch_holds_are_names_of_heads() -> None:
    heads = nn.ModuleDict()
    for name in ("main", "aux", "Head_2", "größe", "logits"):
        assert head_name_problem(name) == ""
        heads[name] = nn.Identity()


# -- numbers that nobody means -----------------------------------------------------------------------------------------

WHOLE_MODEL = {"heads": {"main": FCN}}
NUMBERS: list[dict[str, Any]] = [
    {"seed": 2**63},
    {"normalize": {"mean": [0.5] * 3, "std": [1e-300, 0.2, 0.2]}},
    {"num_epochs": 10**400},
    {"batch_size": 10**30},
    {"runtime.threads": 10**8},
    {"runtime.workers": 10**6},
    {"dataset.train.num_samples": 10**13},
    {"dataset.train.size": [10**9, 10**9]},
    {"optimizer.lr": 1e300},
    {"optimizer.schedule": {"name": "polynomial", "power": 1e300}},
    {"model.in_channels": 2**63},
    {"model.stem_width": 10**9},
    {"model.depths": [10**4] * 4},
    {"model.depths": [1000] * 4},
    {"model": {"name": "hrnet", "num_modules": [256, 256, 256], **WHOLE_MODEL}},
    {
        "model": {
            "name": "anynet",
            "depths": [1000] * 40,
            "widths": [8] * 40,
            "group_widths": [8] * 40,
            "bottleneck_multipliers": [1.0] * 40,
            "strides": [1] * 40,
            **WHOLE_MODEL,
        }
    },
    {"model": {"name": "regnet", "depth": 10, "w_0": 8, "w_a": 1e300, "w_m": 2.0, "group_width": 8, **WHOLE_MODEL}},
    {"model": {"name": "convnext", "widths": [60_000] * 4, **WHOLE_MODEL}},
    {
        "model": {
            "name": "mlp",
            "input_dim": 10**9,
            "output_dim": 10**9,
            "heads": {"main": {**FCN, "blocks": ["output"]}},
        }
    },
    {"model.heads.main": {"name": "psp", "blocks": ["stage4"], "bins": [1] * 60_000}},
    {"model.heads": {f"h{i}": FCN for i in range(5000)}},
    {"hooks": ["log"] * 5000},
    {"normalize": {"mean": [1e300] * 3, "std": [1e-300] * 3}},
    {f"unknown{i}": i for i in range(50_000)},
]


@pytest.mark.parametrize("changes", NUMBERS, ids=lambda changes: f"{next(iter(changes))}-{len(changes)}")
def test_numbers_that_nobody_means_are_refused_in_little_time_and_memory(changes: dict[str, Any]) -> None:
    start = time.process_time()
    with memory_within(2_000_000):
        message = refusal(changes)
    assert len(message.splitlines()) <= 42
    assert max(map(len, message.splitlines())) < 1200
    assert time.process_time() - start < 20


def test_a_list_whose_items_are_wrong_is_not_called_too_short_as_well() -> None:
    message = refusal({"model.heads.main": {"name": "psp", "blocks": ["stage4"], "bins": [10**6]}})
    assert "bins[0]: found 1000000" in message
    assert "at least 1 item" not in message
    assert "at least 1 item" in refusal({"model.heads.main": {"name": "psp", "blocks": ["stage4"], "bins": []}})


def test_meters_of_many_classes_take_no_memory_in_a_check() -> None:
    many = {**FOLDER, "classes": [f"class {i}" for i in range(20_000)], "ignore_index": 65_535}
    with memory_within(500_000):  # a confusion matrix has 3.2 GB
        check(on(many))


class Values(ClassyModel):
    """A plugin's model that computes with values while it is built, and may ask for much."""

    def __init__(self, *, width: int = 8) -> None:
        super().__init__()
        self.rates = [float(rate) for rate in torch.linspace(0, 0.1, 4)]
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.add_block("stage4", width, 1)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        return {"stage4": self.conv(image)}


@pytest.mark.parametrize(("width", "problem"), [(8, ""), (10_000_000, "model: a model of more than 2e+08 parameters")])
def test_a_model_that_needs_values_is_built_for_real_within_bounds(
    width: int, problem: str, own_registries: None
) -> None:
    MODELS.register("values")(Values)
    config = {"model": {"name": "values", "width": width, "heads": {"main": {**FCN, "channels": 4}}}}
    if problem:
        assert refusal(config).startswith(problem)
    else:
        check(config)
