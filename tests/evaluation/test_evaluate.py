"""Evaluation: a training's measuring phase and `evaluate` are one; any protocol; the numbers of a plain count."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import classyseg
from classyseg.config import ConfigError
from classyseg.datasets import build_dataset
from classyseg.evaluation import check_protocol, evaluate, group_size_of
from classyseg.inference import Network, build_protocol
from classyseg.inference.whole import Whole
from classyseg.losses import build_loss
from classyseg.meters import ClassyMeter, build_meter
from classyseg.registry import METERS, TASKS
from classyseg.tasks import SegmentationTask
from classyseg.trainer import Trainer
from runs import read_records, tiny_config, tiny_task

WINDOWS = {"name": "sliding_window", "size": [16, 24], "overlap": 0.25}
CHANGES: dict[str, Any] = {
    "num_epochs": 1,
    "hooks": ["checkpoint"],
    "dataset.train.num_samples": 8,
    "meters": ["mean_iou", "confusion_matrix"],
}


@pytest.fixture(scope="module", params=["whole", WINDOWS], ids=["whole", "windows"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    Trainer(folder).train(tiny_task({**CHANGES, "protocol": request.param}))
    return folder


def matrix_of(predictor: Any, dataset: Any) -> list[list[int]]:
    """A confusion matrix by a loop over pixels' pairs, of what the predictor says of each image alone."""
    found = np.zeros((4, 4), np.int64)
    for i in range(len(dataset)):
        sample = dataset[i]
        labels, target = predictor.predict(sample.image), sample.target.numpy()
        np.add.at(found, (target[target < 255], labels[target < 255]), 1)
    return found.tolist()  # type: ignore[no-any-return]


def test_a_training_measures_what_its_predictor_predicts(run: Path) -> None:
    record = read_records(run / "metrics.jsonl")[-1]
    dataset = build_dataset(tiny_config()["dataset"]["val"])
    assert record["confusion_matrix"] == matrix_of(classyseg.load(run), dataset)


def test_a_run_evaluated_again_gives_the_integers_of_its_record(run: Path) -> None:
    record = read_records(run / "metrics.jsonl")[-1]
    predictor = classyseg.load(run)
    dataset = build_dataset(tiny_config()["dataset"]["val"])
    meters = [build_meter(name, predictor.classes, predictor.ignore_index) for name in CHANGES["meters"]]
    found = evaluate(predictor, dataset, meters).result()
    for key in ("confusion_matrix", "mean_iou", "iou", "pixel_accuracy"):
        assert found[key] == record[key]
    assert found["loss"] is None


def test_samples_that_cannot_be_read_are_counted(run: Path, tmp_path: Path) -> None:
    for i in range(3):
        for folder, shape in (("images", (16, 24, 3)), ("masks", (16, 24))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(np.full(shape, i, np.uint8)).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "images/1.png").write_bytes(b"")
    predictor = classyseg.load(run)
    folders = {name: str(tmp_path / name) for name in ("images", "masks")}
    tolerant = {"on_bad_sample": "skip", "max_bad_samples": 0.5}
    dataset = build_dataset({"name": "folder", **folders, "classes": list(predictor.classes), **tolerant})
    meters = [build_meter("mean_iou", predictor.classes, predictor.ignore_index)]
    assert evaluate(predictor, dataset, meters).result()["bad_samples"] == 1


def test_a_batch_holds_whole_videos_for_every_meter() -> None:
    meters = [
        build_meter({"name": "video_accuracy", "clips_per_video": count, "topk": [1]}, ("a", "b"), 255)
        for count in (4, 6)
    ]
    assert group_size_of(meters) == 12


def test_the_loss_is_measured_of_whole_images_alone(run: Path) -> None:
    record = read_records(run / "metrics.jsonl")[-1]
    is_whole = type(classyseg.load(run).protocol).gives_outputs
    assert (record["loss"] is not None) == is_whole


@pytest.mark.parametrize("protocol", ["multi_scale", WINDOWS], ids=str)
def test_another_protocol_is_one_argument_away(run: Path, protocol: Any) -> None:
    predictor = classyseg.load(run, protocol=protocol)
    dataset = build_dataset(tiny_config()["dataset"]["val"])
    meter = build_meter("confusion_matrix", predictor.classes, predictor.ignore_index)
    assert evaluate(predictor, dataset, [meter]).result()["confusion_matrix"] == matrix_of(predictor, dataset)


def test_batches_of_several_images_count_alike(run: Path) -> None:
    predictor = classyseg.load(run)
    dataset = build_dataset(tiny_config()["dataset"]["val"])
    found = []
    for batch_size in (1, 4):
        meter = build_meter("mean_iou", predictor.classes, predictor.ignore_index)
        found.append(evaluate(predictor, dataset, [meter], batch_size=batch_size).result())
    assert found[0] == found[1]


class Outputs(ClassyMeter):
    """Counts the numbers in what a head gives."""

    reads = "outputs"

    def __init__(self, classes: Any, ignore_index: int) -> None:
        self.reset()

    def reset(self) -> None:
        self.count = 0

    def update(self, prediction: Mapping[str, torch.Tensor], target: torch.Tensor) -> None:
        self.count += prediction["logits"].numel()

    def compute(self) -> dict[str, Any]:
        return {"count": self.count}


def test_a_meter_of_outputs_asks_for_whole_images_before_anything_runs(run: Path, own_registries: None) -> None:
    predictor = classyseg.load(run)
    for protocol in (build_protocol(WINDOWS), build_protocol("multi_scale")):
        with pytest.raises(ConfigError, match=r"protocol.*outputs"):
            check_protocol(protocol, predictor.network, [Outputs((), 255)])
    METERS.register("outputs")(Outputs)
    with pytest.raises(ConfigError, match=r"protocol.*outputs"):
        SegmentationTask.check(TASKS.validate(tiny_config({"meters": ["outputs"], "protocol": WINDOWS})))
    SegmentationTask.check(TASKS.validate(tiny_config({"meters": ["outputs"]})))


class Mirrored(Whole):
    """Shows the network the images the other way round, and turns the labels back."""

    def __call__(self, network: Network, images: Tensor, size: Any, wanted: Any, budget: int | None = None) -> Any:
        found = super().__call__(network, images.flip(-1), size, wanted, budget)
        return {item: made.flip(-1) if isinstance(made, Tensor) else made for item, made in found.items()}


class HonestlyMirrored(Mirrored):
    gives_outputs = False


class Copied(Whole):
    """Shows the network equal images, in another tensor."""

    def __call__(self, network: Network, images: Tensor, *others: Any, **more: Any) -> Any:
        return super().__call__(network, images.clone(), *others, **more)


@pytest.mark.parametrize("of_task", [False, True], ids=["plain", "task"])
def test_a_protocol_shows_the_network_what_it_says(run: Path, of_task: bool) -> None:
    dataset = build_dataset(tiny_config()["dataset"]["val"])

    def measured(protocol: Any) -> dict[str, Any]:
        predictor = classyseg.load(run, protocol=protocol)
        meter = build_meter("mean_iou", predictor.classes, predictor.ignore_index)
        task = tiny_task({"protocol": "whole"})
        task.measure(predictor.model)
        given: dict[str, Any] = {"meaning": task} if of_task else {"loss": build_loss("cross_entropy", 255)}
        return evaluate(predictor, dataset, [meter], **given).result()

    honest, whole = measured(HonestlyMirrored()), measured("whole")
    assert measured(Copied()) == whole
    predictor = classyseg.load(run, protocol="whole")
    counts = np.zeros((4, 4), np.int64)
    for i in range(len(dataset)):
        labels = predictor.predict(dataset[i].image.flip(-1))[:, ::-1]
        target = dataset[i].target.numpy()
        np.add.at(counts, (target[target < 255], labels[target < 255]), 1)
    hits = np.diag(counts)
    assert honest["mean_iou"] == pytest.approx((hits / (counts.sum(0) + counts.sum(1) - hits)).mean(), abs=1e-9)
    assert honest["loss"] is None
    assert honest["mean_iou"] != whole["mean_iou"]
    with pytest.raises(ConfigError, match=r"^protocol: Mirrored .*gives_outputs"):
        measured(Mirrored())


def test_a_meaning_has_a_loss_of_its_own(run: Path) -> None:
    dataset, task = build_dataset(tiny_config()["dataset"]["val"]), tiny_task()
    with pytest.raises(ValueError, match="meaning"):
        evaluate(classyseg.load(run), dataset, [], loss=build_loss("cross_entropy", 255), meaning=task)


def test_a_budget_that_is_too_small_is_told_with_one_that_serves(run: Path) -> None:
    dataset = build_dataset(tiny_config()["dataset"]["val"])
    predictor = classyseg.load(run, max_memory="20K")
    meter = build_meter("mean_iou", predictor.classes, predictor.ignore_index)
    with pytest.raises(ConfigError, match="needs"):
        evaluate(predictor, dataset, [meter])
