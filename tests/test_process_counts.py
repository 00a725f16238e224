"""One and two processes: the same samples, the same counts, also where a process has nothing to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from registered import forgotten
from torch.nn import functional

from classyseg import distributed
from classyseg.checkpoint import load_checkpoint
from classyseg.datasets import ClassyDataset, TrainOrder
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.registry import DATASETS, TRANSFORMS
from classyseg.stopping import Stopped
from classyseg.structures import Sample
from classyseg.tasks import ClassyTask, build_task
from classyseg.trainer import Trainer
from classyseg.transforms import ClassyTransform
from runs import SignalAt, in_two_processes, read_records, tiny_config, tiny_task

SAMPLES, BATCH = 16, 4
NORM = {"name": "group", "groups": 8}
CHANGES: dict[str, Any] = {
    "num_epochs": 2,
    "batch_size": BATCH,
    "dataset.train.num_samples": SAMPLES,
    "dataset.train.size": [16, 16],
    "dataset.val.num_samples": 3,
    "dataset.val.size": [16, 16],
    "model.norm": NORM,
    "model.heads.main.norm": NORM,
    "model.heads.main.dropout": 0.0,
    "meters": ["mean_iou", "confusion_matrix"],
    "hooks": [{"name": "checkpoint"}],
}
ORDER = TrainOrder(SAMPLES, BATCH, seed=0)
HIDDEN = [*ORDER.batch(0, 1), *ORDER.batch(0, 2)[1::2]]
"""All samples of the second step, and those of process 1 in the third."""
NOTHING_VALID: dict[str, Any] = {
    **CHANGES,
    "num_epochs": 1,
    "dataset.val": None,
    "dataset.train.transforms": [{"name": "hides", "samples": HIDDEN}],
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"},
    "hooks": [{"name": "checkpoint", "every_steps": 1, "keep": 9}, {"name": "log", "every": 1}, {"name": "ema"}],
}
COUNTS = [(1, 1), (2, 3), (5, 2), (16, 4), (17, 1)]
"""Samples, and images that each process measures at once."""


class Hides(ClassyTransform):
    """Every pixel of some samples has the label that is ignored."""

    def __init__(self, ignore_index: int = 255, *, samples: tuple[int, ...]) -> None:
        self.names = {f"train {index}" for index in samples}

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        return sample.replace(target=torch.full_like(sample.target, 255)) if sample.name in self.names else sample


class Noise(ClassyDataset):
    """Images whose sizes differ, unless `equal`; the last class never comes."""

    classes = tuple("abcd")
    channels = 3

    def __init__(self, *, num_samples: int, equal: bool = False) -> None:
        super().__init__()
        self.num_samples, self.equal = num_samples, equal

    def __len__(self) -> int:
        return self.num_samples

    def load(self, index: int) -> Sample:
        size = (16, 16) if self.equal else (9 + index % 5, 13 + index % 3)
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        return Sample(image, torch.randint(0, 3, size, generator=generator, dtype=torch.uint8), str(index))


class Names(ClassyHook):
    """Notes the samples that this process learns from in each step."""

    def on_start(self, task: WatchedTask) -> None:
        assert isinstance(task, ClassyTask)
        learn, folder = task.train_step, task.run_folder
        assert folder is not None

        def noting(batch: Sample) -> None:
            with (folder.parent / "names.jsonl").open("a") as file:
                file.write(json.dumps({"step": task.progress.step + 1, "samples": batch.name}) + "\n")
            learn(batch)

        task.train_step = noting  # type: ignore[method-assign]


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    with forgotten():
        register()
        yield


def register() -> None:
    TRANSFORMS.register("hides")(Hides)
    DATASETS.register("test_noise")(Noise)


def train(folder: Path, stop_at: tuple[int, int] | None = None) -> ClassyTask:
    """A run until a signal comes after a step of an epoch; or to its end."""
    folder.mkdir(exist_ok=True)
    task = tiny_task(CHANGES, Names(), *([] if stop_at is None else [SignalAt("train", *stop_at)]))
    try:
        Trainer(folder / "run", resume=True).train(task)
    except Stopped:
        assert stop_at is not None
    return task


def measured(num_samples: int, at_once: int) -> dict[str, Any]:
    config = tiny_config({**CHANGES, "num_epochs": 0, "runtime.eval_batch_size": at_once, "hooks": []})
    config["dataset"] = {"val": {"name": "test_noise", "num_samples": num_samples, "equal": at_once > 1}}
    task = build_task(config)
    Trainer().train(task)
    return {key: task.metrics[key] for key in ("confusion_matrix", "mean_iou")}


def on_two(folder: Path) -> None:
    register()
    train(folder / "changing", (1, 1))
    task = tiny_task(NOTHING_VALID)
    Trainer(folder / "nothing").train(task)
    own = torch.cat([p.detach().flatten() for p in task.model.parameters()])
    assert torch.equal(*distributed.gather_over_processes(own))
    found = [measured(*counts) for counts in COUNTS]
    if distributed.is_primary():
        (folder / "measured.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left: one of the runs began on one process, and is on its way to end there."""
    folder = tmp_path_factory.mktemp("two")
    train(folder / "changing", (0, 3))
    in_two_processes(on_two, folder)
    return folder


def test_a_run_that_went_from_one_process_to_two_and_back_is_the_same_run(two: Path, tmp_path: Path) -> None:
    train(two / "changing")
    train(tmp_path)

    found, expected = (read_records(folder / "names.jsonl") for folder in (two / "changing", tmp_path))
    for step in range(1, 9):
        by_process = [record["samples"] for record in found if record["step"] == step]
        assert len(by_process) == (2 if step in (4, 5) else 1)
        (whole,) = (record["samples"] for record in expected if record["step"] == step)
        assert sorted(chain.from_iterable(by_process)) == sorted(whole)
    for run in (two / "changing/run", tmp_path / "run"):
        assert [record["step"] for record in read_records(run / "metrics.jsonl")] == [4, 4, 8, 8]
    after = [load_checkpoint(folder / "run/checkpoints/step-8").tensors for folder in (two / "changing", tmp_path)]
    for name, value in after[0]["model"].items():
        torch.testing.assert_close(value, after[1]["model"][name], rtol=1e-6, atol=1e-6)
    matrices = [
        [r["confusion_matrix"] for r in read_records(folder / "run/metrics.jsonl") if r["phase"] == "val"]
        for folder in (two / "changing", tmp_path)
    ]
    assert matrices[0] == matrices[1]


def test_batches_without_a_valid_pixel_teach_nothing_in_one_process_or_in_all(two: Path, tmp_path: Path) -> None:
    Trainer(tmp_path).train(tiny_task(NOTHING_VALID))

    for run in (two / "nothing", tmp_path):
        assert [record["loss"] for record in read_records(run / "steps.jsonl")][1] == 0.0
        tensors = [load_checkpoint(run / f"checkpoints/step-{step}").tensors for step in (1, 2, 3, 4)]
        for name, value in tensors[0]["model"].items():
            assert torch.equal(tensors[1]["model"][name], value), name
        assert any(not torch.equal(tensors[2]["model"][name], value) for name, value in tensors[0]["model"].items())
        assert all(x.isfinite().all() for groups in tensors for group in groups.values() for x in group.values())
    both = [load_checkpoint(run / "checkpoints/step-4").tensors for run in (two / "nothing", tmp_path)]
    for group in ("model", "average"):
        for name, value in both[0][group].items():
            torch.testing.assert_close(value, both[1][group][name], rtol=1e-5, atol=1e-6)


def test_any_number_of_samples_is_counted_once_by_any_number_of_processes(two: Path) -> None:
    """Also where a process gets no sample, images differ in size, and a class never comes."""
    found, expected = json.loads((two / "measured.json").read_text()), [measured(*counts) for counts in COUNTS]

    assert found == json.loads(json.dumps(expected))
    for (num_samples, at_once), record in zip(COUNTS, expected, strict=True):
        by_hand = counted_by_hand(num_samples, equal=at_once > 1)
        matrix = np.array(record["confusion_matrix"])
        assert matrix.sum(1).tolist() == by_hand.sum(1).tolist()  # of each class, all pixels
        assert np.abs(matrix - by_hand).sum() <= 0.005 * by_hand.sum()  # rounding may turn a pixel
        union = by_hand.sum(0) + by_hand.sum(1) - by_hand.diagonal()
        iou = by_hand.diagonal()[union > 0] / union[union > 0]
        assert record["mean_iou"] == pytest.approx(iou.mean(), abs=0.01)


def counted_by_hand(num_samples: int, *, equal: bool) -> np.ndarray[Any, Any]:
    """The confusion matrix [label, prediction] by plain torch and numpy."""
    config = tiny_config({**CHANGES, "num_epochs": 0, "hooks": []})
    config["dataset"] = {"val": {"name": "test_noise", "num_samples": 1}}
    model = build_task(config).model.eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    matrix = np.zeros((4, 4), np.int64)
    for sample in (Noise(num_samples=num_samples, equal=equal).load(i) for i in range(num_samples)):
        image = (sample.image.float() / 255 - mean[:, None, None]) / std[:, None, None]
        with torch.no_grad():
            logits = model(image[None])["main"]
        labels = functional.interpolate(logits, image.shape[1:], mode="bilinear").argmax(1)[0]
        np.add.at(matrix, (sample.target.numpy(), labels.numpy()), 1)
    return matrix
