"""The task `semi_supervised`: its loss by its formula, however the batch is shared; its second data set, exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from label_trees import image
from registered import forgotten
from torch import Tensor
from torch.nn import functional

from classyseg import distributed
from classyseg.cli.main import main
from classyseg.errors import ConfigError
from classyseg.layers import resize_logits
from classyseg.registry import TASKS, TRANSFORMS
from classyseg.structures import Sample
from classyseg.tasks import SemiSupervisedTask, build_task
from classyseg.tasks.unlabelled import FeatureDropout, UnlabelledSample
from classyseg.trainer import Stopped, Trainer
from classyseg.transforms import ClassyTransform
from runs import PARTS_BY_KIND, SignalAt, in_two_processes, read_records, tiny_config

SMALL = {"num_epochs": 1, "dataset.train.num_samples": 16, "dataset.val.num_samples": 2, "hooks": ["checkpoint"]}
CROPS = [{"name": "random_scale_crop", "size": [32, 32], "scale": [0.6, 1.2]}, "horizontal_flip"]
NO_BLUR = {"name": "gaussian_blur", "probability": 0.0}
OTHERS = {"name": "synthetic_shapes", "split": "train", "num_samples": 20, "size": [40, 40], "transforms": CROPS}


def config(changes: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    found = tiny_config({**SMALL, "dataset.unlabelled": OTHERS, **(changes or {})})
    options = {"strong": ["color_jitter"], "threshold": 0.3, "batch_size": 12, **options}
    return {**found, "name": "semi_supervised", "unlabelled": options}


def built(values: Mapping[str, Any], *hooks: Any) -> SemiSupervisedTask:
    task = build_task(values)
    assert isinstance(task, SemiSupervisedTask)
    task.hooks = [*task.hooks, *hooks]
    return task


def check(values: Mapping[str, Any]) -> None:
    checked = TASKS.validate(values)
    checked.component.check(checked)  # type: ignore[attr-defined]


def first_batch(task: SemiSupervisedTask) -> UnlabelledSample:
    task.start(None)
    task.start_phase()
    batch = task.on_device(next(iter(task.load_batches())))
    assert isinstance(batch, UnlabelledSample)
    return batch


@pytest.mark.parametrize("teacher", ["average", "student"])
def test_the_loss_is_that_of_labels_and_of_confident_classes_over_all_pixels(teacher: str) -> None:
    task = built(config(teacher=teacher, num_strong=2, cut_mix=0.0, feature_dropout=0.5, weight=0.8))
    batch = first_batch(task)
    assert batch.views.shape == (12, 3, 3, 32, 32)
    model = task.model.eval()
    weak = resize_logits(model(task.normalizer(batch.views[:, 0]))["main"].detach(), (32, 32)).softmax(1).max(1)
    model.train()
    learnt = task.training_batch(batch)
    outputs, terms = task.compute(learnt)

    valid = batch.valid == 0
    assert 0 < int(valid.sum()) < valid.numel()  # crops of small images have borders
    sure = (weak.values >= 0.3) & valid
    expected = [functional.cross_entropy(resize_logits(outputs["main"], (32, 32)), batch.target, ignore_index=255)]
    for i, share in enumerate((0.25, 0.25, 0.5)):
        logits = resize_logits(outputs[f"unlabelled/{i}"], (32, 32))
        pixels = functional.cross_entropy(logits, weak.indices, reduction="none")
        expected.append(0.8 * share * (pixels * sure).sum() / valid.sum())
    weighted = terms.sums / terms.counts.float() * torch.tensor(terms.weights)
    torch.testing.assert_close(weighted, torch.stack(expected), rtol=1e-4, atol=1e-6)
    terms.job_loss().backward()  # type: ignore[no-untyped-call]
    assert [name for name, parameter in task.model.named_parameters() if parameter.grad is None] == []


def test_a_rectangle_comes_with_the_classes_that_the_teacher_found_there() -> None:
    """The strong views are the weak ones, so that each pixel tells which image it came from."""
    task = built(config(strong=[NO_BLUR], num_strong=2, cut_mix=1.0, threshold=0.0))
    batch = first_batch(task)
    alone, counted = task.found_in(batch)
    learnt = task.training_batch(batch)
    assert isinstance(learnt, UnlabelledSample)
    assert learnt.found is not None
    assert learnt.counted is not None
    moved = 0
    for i in range(12):
        for view in range(2):
            own, other = batch.views[i, 0], batch.views[(i + 6) % 12, 0]
            from_other = (learnt.views[i, 1 + view] != own).any(0)
            moved += int(from_other.sum())
            found = learnt.views[i, 1 + view]
            assert torch.equal(found, torch.where(from_other, other, own))
            is_sure = from_other | (own == other).all(0)  # where both are equal, either may have been taken
            for given, before in ((learnt.found, alone), (learnt.counted, counted)):
                expected = torch.where(from_other, before[(i + 6) % 12], before[i])
                assert torch.equal(given[i, view][~is_sure | from_other], expected[~is_sure | from_other])
    assert 0.02 < moved / (24 * 32 * 32) < 0.4


def test_the_factor_grows_to_the_weight() -> None:
    task = built(config(weight=2.0, ramp_up_steps=4))
    found = []
    for step in (0, 2, 4, 9):
        task.progress.step = step
        found += task.view_weights
    assert found == pytest.approx([2 * 0.0067379, 2 * 0.2865048, 2.0, 2.0], rel=1e-5)
    task = built(config(ramp_up_epochs=0.5))  # of an epoch of 2 steps
    task.progress.step = 1
    assert task.view_weights == (1.0,)


def losses_of(values: Mapping[str, Any]) -> Tensor:
    task, losses = built(values), []
    task.start(None)
    while task.start_phase() and task.progress.phase == "train":
        for batch in task.batches():
            task.step(batch)
            losses.append(task.last_loss.double())
        task.end_phase()
    return distributed.sum_over_processes(torch.stack(losses)) / distributed.world_size()


def alike(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A run whose numbers depend on no split of the batch: no dropout, no norm that sees other images."""
    values = config({"num_epochs": 2, **(changes or {})}, num_strong=2)
    values["model"]["frozen_norm"] = True
    values["model"]["heads"]["main"] |= {"dropout": 0.0, "norm": {"name": "group"}}
    return values


def test_the_parts_of_a_batch_and_two_processes_add_up_to_the_loss_of_one(tmp_path: Path) -> None:
    whole = losses_of(alike())
    near = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(losses_of(alike({"runtime.accumulate_steps": 2})), whole, **near)
    ohem = {"loss": {"name": "ohem_cross_entropy", "min_kept": 100}, "num_epochs": 1}
    parts = losses_of(alike({**ohem, "runtime.accumulate_steps": 2}))
    torch.testing.assert_close(parts, losses_of(alike(ohem)), **near)
    in_two_processes(losses_in_each, tmp_path)
    found = torch.tensor(json.loads((tmp_path / "losses.json").read_text(encoding="utf-8")), dtype=torch.float64)
    torch.testing.assert_close(found, whole, **near)


def losses_in_each(folder: Path) -> None:
    losses = losses_of(alike())
    if torch.distributed.get_rank() == 0:
        (folder / "losses.json").write_text(json.dumps(losses.tolist()), encoding="utf-8")


@pytest.mark.parametrize("teacher", ["average", "student"])
def test_a_run_resumes_bit_for_bit_with_both_data_sets(tmp_path: Path, teacher: str) -> None:
    values = config({"num_epochs": 2}, teacher=teacher, num_strong=2, feature_dropout=0.5)
    whole = built(values)
    Trainer(tmp_path / "whole").train(whole)
    with pytest.raises(Stopped):
        Trainer(tmp_path / "broken").train(built(values, SignalAt("train", 1, 1)))
    resumed = built(values)
    Trainer(tmp_path / "broken", resume=True).train(resumed)
    records = read_records(tmp_path / "whole/metrics.jsonl")
    assert read_records(tmp_path / "broken/metrics.jsonl") == records
    assert [0 < record["confident"] <= 1 for record in records if record["phase"] == "train"] == [True, True]
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []
    assert main(["evaluate", str(tmp_path / "whole")]) == 0
    found = json.loads((tmp_path / "whole/evaluation-val.json").read_text(encoding="utf-8"))
    assert (found["loss"], found["mean_iou"]) == (records[-1]["loss"], records[-1]["mean_iou"])


class Poison(ClassyTransform):
    """One sample has an infinite pixel."""

    def __init__(self, ignore_index: int = 255, *, sample: int) -> None:
        self.sample = sample

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        image = sample.image.float()
        image[0, 3, 4] = float("inf") if sample.name == f"train {self.sample}" else 1.0
        return sample.replace(image=image)


def test_a_run_that_goes_back_leaves_out_the_unlabelled_images_of_the_step_too(tmp_path: Path) -> None:
    changes = {"num_epochs": 2, "hooks": [{"name": "checkpoint", "every_steps": 1}], "runtime.non_finite": "rollback"}
    others = {**OTHERS, "num_samples": 12, "size": [32, 32]}
    orders = built(config({**changes, "dataset.unlabelled": others}, batch_size=2)).training_orders
    bad = orders["unlabelled"].batch(0, 1)  # of the second step
    others["transforms"] = [{"name": "test_poison", "sample": bad[0]}]
    values = config({**changes, "dataset.unlabelled": others}, strong=[NO_BLUR], batch_size=2)
    with forgotten():
        TRANSFORMS.register("test_poison")(Poison)
        whole, resumed = built(values), built(values)
        Trainer(tmp_path / "whole").train(whole)
        with pytest.raises(Stopped):
            Trainer(tmp_path / "broken").train(built(values, SignalAt("train", 1, 1)))
        Trainer(tmp_path / "broken", resume=True).train(resumed)

    (record,) = read_records(tmp_path / "whole/non_finite.jsonl")
    labelled = [f"train {i}" for i in orders["train"].batch(0, 1)]
    assert record["samples"] == [*labelled, *(f"unlabelled: train {i}" for i in bad)]
    for task in (whole, resumed):
        assert task.training_orders["unlabelled"].left_out == set(bad)
        assert task.training_orders["train"].left_out == set(orders["train"].batch(0, 1))
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []


def test_whole_images_learn_from_a_folder_of_images_without_classes(tmp_path: Path) -> None:
    for i in range(8):
        image(tmp_path / f"photos/{i % 3}/{i}.png", (8, 8))
    (tmp_path / "photos/bad.png").write_bytes(b"nothing that opens")
    images = {"name": "folder", "images": str(tmp_path / "photos"), "masks": None, "nested": True}
    images |= {"on_bad_sample": "skip", "max_bad_samples": 1.0}
    values = {**tiny_config({**PARTS_BY_KIND["whole images"], "num_epochs": 1}), "name": "semi_supervised"}
    values["dataset"] = {**values["dataset"], "unlabelled": images}
    values["unlabelled"] = {"strong": ["color_jitter"], "threshold": 0.2}
    check(values)
    task = built(values)
    batch = first_batch(task)
    skipped = (batch.valid != 0).flatten(1).all(1)
    assert int(skipped.sum()) == 1
    found, counted = task.found_in(batch)
    assert torch.equal(counted, ~skipped)
    assert (found[skipped] == task.loss.ignore_index).all()
    Trainer(tmp_path / "run").train(built(values))
    train, val = read_records(tmp_path / "run/metrics.jsonl")
    assert 0 < train["confident"] <= 1
    assert train["bad_samples_unlabelled"] > 0
    assert "accuracy_top_1" in val


def test_labels_of_images_without_labels_are_not_even_read(tmp_path: Path) -> None:
    for i in range(12):
        image(tmp_path / f"images/{i}.png", (40, 40))
        (tmp_path / "masks").mkdir(exist_ok=True)
        (tmp_path / f"masks/{i}.png").write_bytes(b"nothing that opens")
    unread = {"name": "folder", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks"), "classes": ["x"]}
    part = {"name": "subset", "every": 1, "dataset": unread, "transforms": CROPS}
    task = built(config({"dataset.unlabelled": part}))
    assert first_batch(task).views.shape == (12, 2, 3, 32, 32)


@pytest.mark.parametrize("build", [check, built], ids=["check", "build"])
def test_a_set_with_labels_names_its_classes(build: Any, tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    alone = {"name": "folder", "images": str(tmp_path), "masks": None}
    with pytest.raises(ConfigError, match=r"^dataset\.val\.classes: missing[^\n]*$"):
        build(config({"dataset.val": alone}))


def test_features_of_some_images_lose_whole_channels() -> None:
    dropout, features = FeatureDropout(0.5), [torch.ones(4, 64, 3, 3), torch.ones(4, 5, 64)]
    assert dropout(torch.nn.Identity(), (features,)) is None
    with dropout.of_images(2):
        ((maps, vectors),) = dropout(torch.nn.Identity(), (features,))  # type: ignore[misc]
    for found, axes in ((maps, (2, 3)), (vectors, (1,))):
        assert torch.equal(found[:2], torch.ones_like(found[:2]))
        assert set(found[2:].unique().tolist()) == {0.0, 2.0}
        assert torch.equal(found.amax(axes), found.amin(axes))


@pytest.mark.parametrize("build", [check, built], ids=["check", "build"])
@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"dataset.unlabelled": None}, {}, r"dataset\.unlabelled: missing"),
        ({}, {"strong": ["horizontal_flip"]}, r"unlabelled\.strong\[0\]: HorizontalFlip changes which pixel"),
        ({}, {"strong": [{"name": "color_jitter", "hue": "no"}]}, r"unlabelled\.strong\[0\]\.hue"),
        ({"runtime.accumulate_steps": 8}, {}, r"unlabelled\.batch_size: found 12, which .* cannot share evenly"),
        ({}, {"teacher": "student", "average": {}}, r"unlabelled\.average: found with teacher: student"),
        ({}, {"batch_size": 1}, r"unlabelled\.batch_size: gives each process one image, and cut_mix"),
        ({"hooks": ["ema"]}, {"average": {}}, r"unlabelled\.average: found together with a hook"),
        ({}, {"ramp_up_steps": 3, "ramp_up_epochs": 1.0}, r"unlabelled\.ramp_up_steps: found together"),
        ({}, {"weak": []}, r"unlabelled\.weak: unknown key; it is a transform of dataset\.unlabelled"),
        ({"dataset.unlabelled": {**OTHERS, "transforms": [*CROPS, "mix_up"]}}, {}, r"transforms\[2\]: MixUp gives"),
        (
            {"dataset.unlabelled": {**OTHERS, "transforms": ["normalize"]}},
            {},
            r"unlabelled\.transforms\[0\]: found 'norm",
        ),
        ({"runtime.cache_features": "c", "model.frozen": True}, {}, r"runtime\.cache_features: found for a task"),
    ],
)
def test_what_does_not_fit_is_told_before_data_is_opened(
    changes: dict[str, Any], options: dict[str, Any], message: str, build: Any
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(config(changes, **options))


def test_too_few_unlabelled_images_are_told_at_the_build() -> None:
    with pytest.raises(ConfigError, match=r"unlabelled\.batch_size: found 24, but dataset\.unlabelled has only 20"):
        built(config(batch_size=24))


def test_the_hook_of_averages_says_how_the_teacher_is_made() -> None:
    task = built(config({"hooks": [{"name": "ema", "decay": 0.5}]}))
    assert task.averaging is not None
    assert task.averaging.decay == 0.5
    average = built(config(average={"decay": 0.7})).averaging
    assert average is not None
    assert average.decay == 0.7
    assert built(config(teacher="student")).averaging is None
