"""The segmentation task: its phases and records, its steps, and the mistakes it finds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from classyseg.config import ConfigError, DataError
from classyseg.evaluation import RECORD_KEYS
from classyseg.tasks import SegmentationTask, classy_task
from classyseg.trainer import Stopped, Trainer
from runs import SignalAt, read_records, tiny_task

SMALL = {"num_epochs": 1, "dataset.train.num_samples": 16, "dataset.val.num_samples": 2}
GROUP_NORM = {"name": "group", "groups": 8}
WEIGHTED_SUM: dict[str, Any] = {
    "name": "sum_arbitrary",
    "losses": [{"name": "cross_entropy", "class_weights": [1.0, 2.0, 0.5, 4.0]}, "dice"],
    "weights": [1.0, 0.5],
}
BATCH_INDEPENDENT = {
    **SMALL,
    "model.norm": GROUP_NORM,
    "model.heads.main.norm": GROUP_NORM,
    "model.heads.main.dropout": 0.0,
}


def started(changes: Mapping[str, Any]) -> SegmentationTask:
    """The task with its first phase begun."""
    task = tiny_task(changes)
    task.start(None)
    assert task.start_phase()
    return task


def one_step(task: SegmentationTask) -> float:
    task.step(next(task.batches()))
    return task.last_loss.item()


# -- phases and records ----------------------------------------------------------------------------------------------


def test_phases_alternate_and_their_records_hold_what_other_tools_read(tmp_path: Path) -> None:
    Trainer(tmp_path).train(tiny_task({**SMALL, "num_epochs": 2}))

    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["phase"], r["epoch"], r["step"]) for r in records] == [
        ("train", 1, 2),
        ("val", 1, 2),
        ("train", 2, 4),
        ("val", 2, 4),
    ]
    common = {"phase", "epoch", "step", "loss", "lr", "seconds", "samples_per_second", "data_wait"}
    assert records[0].keys() == common == set(RECORD_KEYS) - {"weights_step"}
    assert records[1].keys() == common | {"mean_iou", "pixel_accuracy", "iou"}
    assert list(records[1]["iou"]) == ["background", "disc", "square", "triangle"]
    assert records[1]["lr"] == records[0]["lr"] > records[2]["lr"] > 0
    assert 0 <= records[0]["data_wait"] <= 1


def phases(changes: Mapping[str, Any], folder: Path) -> list[str]:
    Trainer(folder).train(tiny_task({**SMALL, "dataset.train.num_samples": 8, **changes}))
    path = folder / "metrics.jsonl"
    return [f"{r['phase']} {r['epoch']}" for r in read_records(path)] if path.exists() else []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_epochs": 3, "val_every_epochs": 2}, ["train 1", "train 2", "val 2", "train 3", "val 3"]),
        ({"num_epochs": 2, "val_every_epochs": 5}, ["train 1", "train 2", "val 2"]),
        ({"num_epochs": 2, "dataset.val": None}, ["train 1", "train 2"]),
        ({"num_epochs": 0}, ["val 0"]),
        ({"num_epochs": 0, "dataset.val": None}, []),
    ],
    ids=["every second", "only the last", "no validation set", "only measuring", "nothing"],
)
def test_the_validation_set_is_measured_when_the_config_says(
    changes: Mapping[str, Any], expected: list[str], tmp_path: Path
) -> None:
    assert phases({"dataset.val.num_samples": 1, **changes}, tmp_path) == expected


def test_measuring_changes_no_weight_and_no_running_statistic() -> None:
    task = tiny_task({**SMALL, "num_epochs": 0})
    before = {key: value.clone() for key, value in task.model.state_dict().items()}

    Trainer().train(task)

    assert all(torch.equal(value, before[key]) for key, value in task.model.state_dict().items())


@pytest.mark.parametrize("loss", [{"name": "cross_entropy"}, WEIGHTED_SUM], ids=["one", "sum"])
def test_the_val_loss_is_the_mean_over_all_valid_pixels_whatever_the_batches(loss: dict[str, Any]) -> None:
    losses = []
    for size in (1, 2, 3):
        changes = {"num_epochs": 0, "dataset.val.num_samples": 5, "runtime.eval_batch_size": size, "loss": loss}
        task = tiny_task(changes)
        Trainer().train(task)
        losses.append(task.metrics["loss"])

    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_lowers_the_loss(precision: str, tmp_path: Path) -> None:
    Trainer(tmp_path).train(tiny_task({"runtime.precision": precision, "dataset.val": None}))

    losses = [record["loss"] for record in read_records(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]


def test_a_float16_run_resumes_its_gradient_scale(tmp_path: Path) -> None:
    changes = {**SMALL, "runtime.precision": "float16", "dataset.train.num_samples": 24, "dataset.val": None}

    def task(*stop: SignalAt) -> SegmentationTask:
        made = tiny_task(changes, *stop)
        prepare = made.prepare

        def prepare_with_a_scale_that_grows() -> None:
            prepare()
            made.engine.precision.scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=2)

        made.prepare = prepare_with_a_scale_that_grows  # type: ignore[method-assign]
        return made

    uninterrupted, resumed = task(), task()
    Trainer().train(uninterrupted)
    with pytest.raises(Stopped):
        Trainer(tmp_path).train(task(SignalAt("train", 0, 2)))
    Trainer(tmp_path, resume=True).train(resumed)

    assert uninterrupted.engine.precision.scaler is not None
    assert resumed.engine.precision.scaler is not None
    assert resumed.engine.precision.scaler.state_dict() == uninterrupted.engine.precision.scaler.state_dict()
    assert resumed.engine.precision.scaler.get_scale() == 32
    expected = uninterrupted.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.model.state_dict().items())


# -- steps -----------------------------------------------------------------------------------------------------------


def test_each_step_draws_numbers_of_its_own_and_the_same_ones_in_every_run() -> None:
    def seeds() -> list[int]:
        task, found = started(SMALL), []
        task.model.register_forward_pre_hook(lambda *_: found.append(torch.initial_seed()))
        for batch in task.batches():
            task.step(batch)
        return found

    first, second = seeds()
    assert first != second
    assert seeds() == [first, second]


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_batch_without_a_valid_pixel_gives_loss_zero_and_changes_no_weight(accumulate_steps: int) -> None:
    task = started({**BATCH_INDEPENDENT, "runtime.accumulate_steps": accumulate_steps})
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    batch = next(task.batches())

    task.step(batch.replace(target=torch.full_like(batch.target, 255)))

    assert task.last_loss.item() == 0
    assert all(torch.equal(a, b) for a, b in zip(before, task.model.parameters(), strict=True))


def test_a_test_set_without_a_valid_pixel_has_no_loss_and_no_mean_iou() -> None:
    task = started({**SMALL, "num_epochs": 0})
    batch = next(task.batches())
    task.step(batch.replace(target=torch.full_like(batch.target, 255)))

    task.end_phase()

    assert task.metrics["loss"] is None
    assert task.metrics["mean_iou"] is None


@pytest.mark.parametrize(
    ("accumulate_steps", "loss"),
    [(2, "cross_entropy"), (4, "cross_entropy"), (8, "cross_entropy"), (4, "sum_arbitrary")],
)
def test_accumulated_parts_equal_the_whole_batch(accumulate_steps: int, loss: str) -> None:
    config = WEIGHTED_SUM if loss == "sum_arbitrary" else {"name": loss}
    whole, parts = (
        started({**BATCH_INDEPENDENT, "loss": config, "runtime.accumulate_steps": steps})
        for steps in (1, accumulate_steps)
    )

    assert one_step(parts) == pytest.approx(one_step(whole), rel=1e-6)
    for expected, found in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_normalising_on_the_device_equals_normalising_in_a_transform() -> None:
    values = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}

    on_device = started({**BATCH_INDEPENDENT, "normalize": values})
    transforms = ["horizontal_flip", {"name": "normalize", **values}]
    in_transform = started(
        {**BATCH_INDEPENDENT, "dataset.train.transforms": transforms, "dataset.val.transforms": transforms[1:]}
    )

    assert one_step(on_device) == pytest.approx(one_step(in_transform), rel=1e-5)
    default = started(BATCH_INDEPENDENT)
    assert one_step(default) != pytest.approx(on_device.last_loss.item(), rel=1e-3)


def test_heads_are_weighed_and_those_that_only_train_are_not_measured() -> None:
    head = {"name": "fcn", "blocks": ["stage3"], "channels": 16, "train_only": True}
    losses = [
        one_step(started({**BATCH_INDEPENDENT, **change}))
        for change in (
            {},
            {"model.heads.aux": head, "loss.head_weights": {"aux": 0.0}},
            {"model.heads.aux": head, "loss.head_weights": {"aux": 0.4}},
        )
    ]

    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] > 1.2 * losses[0]


def test_the_segmentation_loss_takes_the_task_s_main_head_for_the_main_one() -> None:
    head = {"name": "fcn", "blocks": ["stage3"], "channels": 16, "train_only": True}
    main = {"name": "fcn", "blocks": ["stage4"], "channels": 16, "dropout": 0.0, "norm": GROUP_NORM}
    heads = {"model.heads": {"aux": head, "main": main}}
    losses = [
        one_step(started({**BATCH_INDEPENDENT, **heads, "loss": {"name": "segmentation", **options}}))
        for options in ({}, {"main_head": "main"}, {"main_head": "aux"})
    ]

    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("loss", "has_loss"),
    [
        ({"name": "cross_entropy", "heads": ["aux"]}, False),
        ({"name": "sum_arbitrary", "losses": [{"name": "dice", "heads": ["aux"]}, "cross_entropy"]}, True),
    ],
    ids=["only the unread", "also the main head"],
)
def test_a_test_record_has_no_loss_where_the_loss_read_nothing(loss: dict[str, Any], has_loss: bool) -> None:
    aux = {"name": "fcn", "blocks": ["stage3"], "channels": 16, "train_only": True}
    task = tiny_task({**SMALL, "num_epochs": 0, "model.heads.aux": aux, "loss": loss})
    Trainer().train(task)

    assert (task.metrics["loss"] is not None) == has_loss


# -- mistakes --------------------------------------------------------------------------------------------------------


def folder_data(root: Path, classes: Sequence[str], value: int = 0, size: tuple[int, int] = (32, 32)) -> dict[str, Any]:
    """A `folder` data set of eight images whose masks hold `value`."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(8):
        Image.fromarray(np.full((32, 32, 3), 30 * i, np.uint8)).save(root / f"images/{i}.png")
        Image.fromarray(np.full(size, value, np.uint8)).save(root / f"masks/{i}.png")
    return {
        "name": "folder",
        "images": str(root / "images"),
        "masks": str(root / "masks"),
        "classes": list(classes),
    }


def test_a_test_set_with_other_classes_is_refused_naming_both(tmp_path: Path) -> None:
    changes = {"dataset.val": folder_data(tmp_path, ["wall", "floor"])}

    with pytest.raises(ConfigError, match=r"dataset\.val.*\['wall', 'floor'\].*'disc'"):
        tiny_task(changes)


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_index": 1}, "ignore_index: found 1, which is the class 'floor'"),
        ({"classes": ["wall", "wall"]}, "classes: found one name twice"),
        ({"masks": "none"}, "masks: /.*/none: no such folder"),
        ({"mask_suffix": "_m"}, r"/.*/masks: found no mask file; accepted: _m\.png"),
        ({"transforms": ["horizontal_flip", "pad"]}, r"transforms\[1\]: give one of 'size' and 'multiple'"),
        (
            {"transforms": [{"name": "random_scale_crop", "size": [8, 8], "scale": [2.0, 1.0]}]},
            r"transforms\[0\]\.scale: found \[2\.0, 1\.0\]",
        ),
        ({"transforms": [{"name": "normalize", "mean": [0.5]}]}, r"transforms\[0\]\.mean: found 1 means and 3"),
    ],
)
def test_a_data_set_that_cannot_be_built_is_named_by_its_path(
    part: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    data = {**folder_data(tmp_path, ["wall", "floor"]), **options}

    with pytest.raises(ConfigError, match=rf"^dataset\.{part}(: |\.){message}"):
        tiny_task({f"dataset.{part}": data})


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("wrong", "message"), [({"value": 7}, "labels 7"), ({"size": (16, 32)}, "must be of one size")]
)
def test_wrong_data_ends_the_run_naming_the_file(
    wrong: dict[str, Any], message: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classy_task, "check_samples", lambda *_: None)  # which would find it first
    data = folder_data(tmp_path, ["wall", "floor"], **wrong)
    task = tiny_task({**SMALL, "dataset.train": data, "dataset.val": None, "runtime.workers": workers})

    with pytest.raises(DataError, match=message) as error:
        Trainer().train(task)

    assert ".png" in str(error.value)


def test_images_with_other_channels_than_the_model_are_refused_naming_both() -> None:
    with pytest.raises(ConfigError, match=r"model\.in_channels.*1.*dataset\.train.*3 channels"):
        Trainer().train(tiny_task({**SMALL, "model.in_channels": 1}))


def test_resuming_with_another_model_is_refused_and_says_how_to_take_its_weights(tmp_path: Path) -> None:
    Trainer(tmp_path).train(tiny_task({**SMALL, "hooks": ["checkpoint"]}))
    state = tmp_path / "checkpoints/step-2"
    other = tiny_task({**SMALL, "hooks": ["checkpoint"], "model.heads.main.channels": 8})

    with pytest.raises(ConfigError, match=r"model\.heads\.main\.channels.*16.*8") as error:
        Trainer(tmp_path, resume=True).train(other)

    assert f"model.weights={state}" in str(error.value)
