"""The task `distillation`: its terms by their formulas, and a teacher that is told by its weights, not by its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from teachers import OF_IMAGES, SHAPES, save_teacher
from torch import Tensor
from torch.nn import functional

import classyseg
from classyseg.checkpoint import load_checkpoint
from classyseg.cli.main import main
from classyseg.errors import ConfigError
from classyseg.layers import resize_logits
from classyseg.registry import TASKS
from classyseg.structures import Sample
from classyseg.tasks import DistillationTask, build_task
from classyseg.tasks.distillation import TEACHER_LOGITS
from classyseg.trainer import Stopped, Trainer
from runs import PARTS_BY_KIND, SignalAt, in_two_processes, read_records, tiny_config

SIXTEEN = {"num_epochs": 1, "dataset.train.num_samples": 16, "hooks": ["checkpoint"]}
FEATURES = [
    {"student": "stage3", "teacher": "stage4"},
    {"student": "trunk_output.block2", "teacher": "stage2", "measure": "cosine", "weight": 0.5},
    {"student": "stage4", "teacher": "stage3", "measure": "channel_wise", "temperature": 2.0},
]


def config(teacher: Path, changes: Mapping[str, Any] | None = None, **terms: Any) -> dict[str, Any]:
    found = tiny_config({**SIXTEEN, **(changes or {})})
    return {**found, "name": "distillation", "teacher": {"weights": str(teacher), **terms}}


def built(values: Mapping[str, Any], *hooks: Any) -> DistillationTask:
    task = build_task(values)
    assert isinstance(task, DistillationTask)
    task.hooks = [*task.hooks, *hooks]
    return task


def check(values: Mapping[str, Any]) -> None:
    checked = TASKS.validate(values)
    checked.component.check(checked)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher") / "model")


def first_batch(task: DistillationTask) -> Sample:
    """The first batch of a task that is ready for its first step."""
    task.start(None)
    task.start_phase()
    return task.on_device(next(iter(task.load_batches())))


def order(batch: Sample) -> list[int]:
    """The numbers of the samples of a batch."""
    return [int(str(name).rpartition(" ")[2]) for name in batch.name]


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Of logits of one size, for each pixel or image."""
    logs = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    return functional.kl_div(*logs, reduction="none").sum(1) * temperature**2


def test_the_loss_is_that_of_labels_and_each_term_by_its_formula(teacher: Path) -> None:
    terms = {
        "soft_targets": {"temperature": 2.0, "weight": 0.7},
        "channel_wise": {"temperature": 4.0, "weight": 3.0},
        "labels": {"where": "everywhere", "threshold": 0.3, "weight": 0.2},
        "features": FEATURES,
    }
    task = built({**config(teacher, **terms), "label_weight": 0.5})
    batch = first_batch(task)
    batch.target[:, :5] = 255
    torch.manual_seed(0)
    outputs, found = task.compute(batch)

    model, valid = classyseg.load(teacher, device="cpu").model, batch.target != 255
    model.watch("stage2", "stage3", "stage4")
    features = model.forward_features(batch.image)
    its, mine = model(features)["main"], outputs["main"]
    size = batch.target.shape[1:]
    mine_whole, its_whole = resize_logits(mine, size), resize_logits(its, size)
    confidence, labels = its_whole.softmax(1).max(1)
    adapted = [outputs[f"adapter{i}.adapted"] for i in range(3)]
    resized = [
        resize_logits(x, features[b].shape[2:]) for x, b in zip(adapted, ("stage4", "stage2", "stage3"), strict=True)
    ]
    channels = mine.flatten(2).div(4).log_softmax(2), its.flatten(2).div(4).softmax(2)
    maps = resized[2].flatten(2).div(2).log_softmax(2), features["stage3"].flatten(2).div(2).softmax(2)
    expected = [
        0.5 * functional.cross_entropy(mine_whole, batch.target, ignore_index=255),
        0.7 * kl(mine_whole, its_whole, 2.0)[valid].mean(),
        3.0 * 16 * functional.kl_div(*channels, reduction="none").sum(2).mean(),
        0.2 * (functional.cross_entropy(mine_whole, labels, reduction="none") * (confidence >= 0.3)).mean(),
        (resized[0] - features["stage4"]).square().mean(),
        0.5 * (1 - functional.cosine_similarity(resized[1], features["stage2"])).mean(),
        4 * functional.kl_div(*maps, reduction="none").sum(2).mean(),
    ]
    weighted = found.sums / found.counts.float() * torch.tensor(found.weights)
    torch.testing.assert_close(weighted, torch.stack(expected).detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.job_loss(), sum(expected), rtol=1e-4, atol=1e-6)
    found.job_loss().backward()  # type: ignore[no-untyped-call]
    without = [name for name, parameter in task.model.named_parameters() if parameter.grad is None]
    assert without == []


def test_labels_of_the_teacher_stand_where_there_are_none(teacher: Path) -> None:
    task = built(config(teacher, soft_targets=None, labels={}))
    batch = first_batch(task)
    batch.target[:] = 255
    batch.target[0, :2] = 1
    outputs, terms = task.compute(batch)
    its = classyseg.load(teacher, device="cpu").model(batch.image)["main"]
    pixels = functional.cross_entropy(
        resize_logits(outputs["main"], (32, 32)), resize_logits(its, (32, 32)).argmax(1), reduction="none"
    )
    torch.testing.assert_close(terms.sums[1] / terms.counts[1].float(), pixels[batch.target == 255].mean())


def test_whole_images_learn_the_teachers_probabilities(tmp_path: Path) -> None:
    values = tiny_config({**PARTS_BY_KIND["whole images"], "num_epochs": 1})
    classes = classyseg.build_dataset(values["dataset"]["train"]).classes
    folder = save_teacher(tmp_path / "model", classes=classes, heads=OF_IMAGES)
    values |= {"name": "distillation", "teacher": {"weights": str(folder), "labels": {"where": "everywhere"}}}
    check(values)
    task = built(values)
    batch = first_batch(task)
    outputs, terms = task.compute(batch)
    its = classyseg.load(folder, device="cpu").model(batch.image)["main"]
    torch.testing.assert_close(terms.sums[1] / 8, kl(outputs["main"], its, 4.0).mean())
    torch.testing.assert_close(terms.sums[2] / 8, functional.cross_entropy(outputs["main"], its.argmax(1)))
    Trainer(tmp_path / "run").train(built(values))
    assert "accuracy_top_1" in read_records(tmp_path / "run/metrics.jsonl")[-1]


def test_the_teacher_sees_images_normalised_as_in_its_own_training(tmp_path: Path) -> None:
    normalize = {"mean": (0.1, 0.5, 0.3), "std": (0.5, 0.1, 1.0)}
    folder = save_teacher(tmp_path / "model", normalize=normalize)
    task = built(config(folder))
    batch = first_batch(task)
    raw = torch.stack([task.data.sets["train"][i].image for i in order(batch)])
    predictor = classyseg.load(folder, device="cpu")
    expected = predictor.model(predictor.normalized(raw))["main"]
    torch.testing.assert_close(task.outputs(batch)[TEACHER_LOGITS], expected, rtol=1e-4, atol=1e-5)


def test_a_run_a_checkpoint_and_a_model_are_the_same_teacher_and_nothing_of_it_is_saved(tmp_path: Path) -> None:
    plain = build_task(tiny_config(SIXTEEN))
    Trainer(tmp_path / "teacher").train(plain)
    places = [tmp_path / "teacher", tmp_path / "teacher/model", tmp_path / "teacher/checkpoints/step-2"]
    states = []
    for i, place in enumerate(places):
        task = built(config(place, features=FEATURES))
        Trainer(tmp_path / f"run{i}").train(task)
        states.append(task.model.state_dict())
        checkpoint = load_checkpoint(tmp_path / f"run{i}/checkpoints/step-2")
        heads = {key.split(".")[1] for key in checkpoint.tensors["model"] if key.startswith("heads.")}
        assert heads == {"main", "adapter0", "adapter1", "adapter2"}
        assert checkpoint.state["teacher"]["weights"] == str(place)
    assert all(torch.equal(value, states[0][key]) for state in states[1:] for key, value in state.items())

    shutil.rmtree(tmp_path / "teacher")
    assert main(["evaluate", str(tmp_path / "run0")]) == 0
    found = json.loads((tmp_path / "run0/evaluation-val.json").read_text(encoding="utf-8"))
    record = read_records(tmp_path / "run0/metrics.jsonl")[-1]
    assert (found["loss"], found["mean_iou"]) == (record["loss"], record["mean_iou"])
    model = classyseg.load(tmp_path / "run0", device="cpu").model
    assert [*model.heads] == ["main"]


def test_a_run_resumes_bit_for_bit_with_its_teacher_wherever_it_lies_and_with_no_other(
    tmp_path: Path, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = built(config(teacher, {"num_epochs": 2}, features=FEATURES))
    Trainer(tmp_path / "whole").train(whole)
    with pytest.raises(Stopped):
        Trainer(tmp_path / "broken").train(
            built(config(teacher, {"num_epochs": 2}, features=FEATURES), SignalAt("train", 1, 1))
        )
    other = save_teacher(tmp_path / "other", seed=2)
    with pytest.raises(ConfigError, match=r"teacher\.weights: .*is not the teacher of the run"):
        Trainer(tmp_path / "broken", resume=True).train(built(config(other, {"num_epochs": 2}, features=FEATURES)))
    moved = shutil.copytree(teacher, tmp_path / "moved")
    resumed = built(config(moved, {"num_epochs": 2}, features=FEATURES))
    Trainer(tmp_path / "broken", resume=True).train(resumed)
    assert read_records(tmp_path / "broken/metrics.jsonl") == read_records(tmp_path / "whole/metrics.jsonl")
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []


GROUP_NORM = {"model.norm": {"name": "group", "num_groups": 4}}


def losses_of(values: Mapping[str, Any]) -> Tensor:
    task, losses = built(values), []
    task.start(None)
    while task.start_phase() and task.progress.phase == "train":
        for batch in task.batches():
            task.step(batch)
            losses.append(task.last_loss.double())
        task.end_phase()
    from classyseg import distributed

    return distributed.sum_over_processes(torch.stack(losses)) / distributed.world_size()


def alike(teacher: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A run whose numbers depend on no split of the batch: no dropout, no norm that sees other images."""
    values = config(teacher, changes, labels={"where": "everywhere", "threshold": 0.3}, features=FEATURES[:1])
    values["model"]["frozen_norm"] = True
    values["model"]["heads"]["main"] |= {"dropout": 0.0, "norm": {"name": "group"}}
    return values


def test_the_parts_of_a_batch_and_two_processes_add_up_to_the_loss_of_one(tmp_path: Path, teacher: Path) -> None:
    whole = losses_of(alike(teacher))
    torch.testing.assert_close(losses_of(alike(teacher, {"runtime.accumulate_steps": 2})), whole, rtol=1e-5, atol=1e-6)
    ohem = {"loss": {"name": "ohem_cross_entropy", "min_kept": 100}}
    torch.testing.assert_close(
        losses_of(alike(teacher, {**ohem, "runtime.accumulate_steps": 2})),
        losses_of(alike(teacher, ohem)),
        rtol=1e-5,
        atol=1e-6,
    )
    shutil.copytree(teacher, tmp_path / "model")
    in_two_processes(losses_in_each, tmp_path)
    found = torch.tensor(json.loads((tmp_path / "losses.json").read_text(encoding="utf-8")), dtype=torch.float64)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


def losses_in_each(folder: Path) -> None:
    losses = losses_of(alike(folder / "model"))
    if torch.distributed.get_rank() == 0:
        (folder / "losses.json").write_text(json.dumps(losses.tolist()), encoding="utf-8")


@pytest.mark.parametrize("build", [check, built], ids=["check", "build"])
@pytest.mark.parametrize(
    ("options", "terms", "message"),
    [
        ({"classes": ("a", "b", "c")}, {}, r"teacher\.weights: .*its classes \['a', 'b', 'c'\] are not those"),
        ({"classes": SHAPES[::-1]}, {}, r"teacher\.weights: .*in the same order"),
        ({"heads": OF_IMAGES}, {}, r"teacher\.weights: .*classifies whole images"),
        ({}, {"soft_targets": None}, r"teacher: found no term"),
        ({}, {"soft_targets": {"heads": ["aux"]}}, r"teacher\.soft_targets\.heads\[0\]: 'aux': unknown head.*main"),
        ({}, {"features": [{"student": "stage9", "teacher": "stage1"}]}, r"features\[0\]\.student: unknown block"),
        ({}, {"features": [{"student": "stage1", "teacher": "stage9"}]}, r"features\[0\]\.teacher: unknown block"),
        (
            {"changes": {"model.heads.adapter0": {"name": "fcn", "blocks": ["stage3"], "train_only": True}}},
            {"features": [{"student": "stage1", "teacher": "stage1"}]},
            r"model\.heads\.adapter0: has the name of the layer",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_told_before_data_is_opened(
    options: dict[str, Any], terms: dict[str, Any], message: str, build: Any, tmp_path: Path
) -> None:
    changes = options.get("changes", {})
    options = {key: value for key, value in options.items() if key != "changes"}
    folder = save_teacher(tmp_path / "model", **options)
    with pytest.raises(ConfigError, match=message):
        build(config(folder, changes, **terms))


def test_a_teacher_that_is_not_there_yet_stops_a_training_but_not_a_check(tmp_path: Path) -> None:
    values = config(tmp_path / "later")
    check(values)
    with pytest.raises(ConfigError, match=r"teacher\.weights: .*no such folder"):
        built(values)


def test_images_without_masks_are_learnt_from_the_teacher_alone(tmp_path: Path, teacher: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(8):
        noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{i}.png")
    train = {"name": "folder", "images": str(tmp_path / "images"), "masks": None, "classes": list(SHAPES)}
    with pytest.raises(
        ConfigError, match=r"dataset\.train: has images alone, and every term of teacher reads labelled"
    ):
        check({**config(teacher), "dataset": {"train": train}})
    values = {**config(teacher, labels={}, soft_targets={"where": "everywhere"}), "dataset": {"train": train}}
    check(values)
    task = built(values)
    batch = first_batch(task)
    outputs, terms = task.compute(batch)
    its = resize_logits(classyseg.load(teacher, device="cpu").model(batch.image)["main"], (32, 32))
    mine = resize_logits(outputs["main"], (32, 32))
    expected = [torch.tensor(0.0), kl(mine, its, 4.0).mean(), functional.cross_entropy(mine, its.argmax(1))]
    found = terms.sums / terms.counts.clamp(min=1).float()
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)
