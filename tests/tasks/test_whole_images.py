"""A plugin's task for whole images, and one for clips: they train, measure, resume and share work as any other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from registered import forgotten
from whole_images import Clips, WholeImages

from classyseg.cli.main import main
from classyseg.config import ConfigError
from classyseg.datasets import build_dataset
from classyseg.registry import TASKS
from classyseg.tasks import ClassyTask, build_task
from classyseg.trainer import Stopped, Trainer
from runs import CLIPS, IMAGES, PARTS_BY_KIND, SignalAt, in_two_processes, read_records, tiny_config, tiny_config_of

PARTS = {"whole_images": PARTS_BY_KIND["whole images"], "clips": PARTS_BY_KIND["clips"]}
METERS = [{"name": "accuracy", "topk": [1, 2]}, "mean_iou", "confusion_matrix"]


def config(name: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return tiny_config_of(name, {"num_epochs": 2, "hooks": ["checkpoint"], "meters": METERS, **(changes or {})})


@contextmanager
def registered() -> Iterator[None]:
    with forgotten(TASKS):
        TASKS.register("whole_images")(WholeImages)
        TASKS.register("clips")(Clips)
        yield


@pytest.fixture(autouse=True)
def own_tasks() -> Iterator[None]:
    with registered():
        yield


def check(name: str, changes: Mapping[str, Any] | None = None) -> None:
    checked = TASKS.validate(config(name, changes))
    checked.component.check(checked)  # type: ignore[attr-defined]


def trained(folder: Path, name: str, *hooks: Any, resume: bool = False) -> ClassyTask:
    task = build_task(config(name))
    task.hooks = [*task.hooks, *hooks]
    Trainer(folder, resume=resume).train(task)
    return task


NORMALIZE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def predictions(task: ClassyTask) -> tuple[list[int], list[int], list[float], float]:
    """Of each sample of the val set, by a plain loop: the predicted and the true class and the probability of the true
    one; and the mean cross entropy.
    """
    samples = [build_dataset(task.data.sets["val"])[i] for i in range(len(task.data.sets["val"]))]
    mean, std = (torch.tensor(values).view(3, *[1] * (samples[0].image.dim() - 1)) for values in NORMALIZE)
    task.model.eval()
    with torch.no_grad():
        logits = torch.cat([task.model(((s.image / 255 - mean) / std)[None])["main"] for s in samples]).double()
    true = torch.stack([sample.target for sample in samples])
    smoothing = PARTS[task.config["name"]].get("loss", {}).get("label_smoothing", 0.0)
    loss = torch.nn.functional.cross_entropy(logits, true, label_smoothing=smoothing).item()
    of_true = logits.softmax(1).gather(1, true[:, None])[:, 0]
    return logits.argmax(1).tolist(), true.tolist(), of_true.tolist(), loss


@pytest.mark.parametrize("name", PARTS)
def test_it_trains_and_measures_what_a_plain_loop_does_and_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    check(name)
    task = trained(tmp_path / "whole", name)
    record = read_records(tmp_path / "whole/metrics.jsonl")[-1]
    predicted, true, of_true, loss = predictions(task)
    right = np.equal(predicted, true).mean()
    assert record["accuracy_top_1"] == right
    assert record["pixel_accuracy"] == right
    assert record["loss"] == pytest.approx(loss, rel=1e-4)
    assert np.sum(record["confusion_matrix"]) == len(true)

    assert main(["evaluate", str(tmp_path / "whole")]) == 0
    found = json.loads((tmp_path / "whole/evaluation-val.json").read_text(encoding="utf-8"))
    assert {key: found[key] for key in record if key in found} == {key: record[key] for key in record if key in found}
    assert found["loss"] == record["loss"]
    assert [each["score"] for each in found["worst"]] == pytest.approx(sorted(of_true), abs=1e-5)
    worst, first = found["worst"][0], int(np.argmin(of_true))
    classes = task.data.reference_set.classes
    assert (worst["class"], worst["predicted"]) == (classes[true[first]], classes[predicted[first]])
    assert Path(worst["file"]).is_file()

    with pytest.raises(Stopped):
        trained(tmp_path / "broken", name, SignalAt("train", 1, 1))
    trained(tmp_path / "broken", name, resume=True)
    assert read_records(tmp_path / "broken/metrics.jsonl") == read_records(tmp_path / "whole/metrics.jsonl")
    folders = [run / "checkpoints" / (run / "checkpoints/LATEST").read_text() for run in tmp_path.iterdir()]
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


def measured_alone(folder: Path) -> None:
    with registered():
        Trainer(folder / "two").train(build_task(config("whole_images", {"num_epochs": 0})))


def test_two_processes_count_the_same(tmp_path: Path) -> None:
    in_two_processes(measured_alone, tmp_path)
    Trainer(tmp_path / "one").train(build_task(config("whole_images", {"num_epochs": 0})))
    one, two = (read_records(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert one[0].pop("loss") == pytest.approx(two[0].pop("loss"), rel=1e-6)
    assert one == two


@pytest.mark.parametrize("build", [check, lambda *given: build_task(config(*given))], ids=["check", "build"])
@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "whole_images",
            {"dataset": tiny_config()["dataset"]},
            r"dataset\.train: has a mask for each image; this task",
        ),
        ("whole_images", {"dataset": {"train": CLIPS}}, r"dataset\.train: has clips; this task takes images"),
        ("clips", {"dataset": {"train": IMAGES}}, r"dataset\.train: has images; this task takes clips"),
        ("clips", {"model": PARTS["whole_images"]["model"]}, r"model\.name: AnyNet takes images .* this task gives"),
        (
            "whole_images",
            {"model.heads.main": {"name": "fcn", "blocks": ["stage4"]}},
            r"model\.heads\.main: its logits .* are of pixels; this task needs a head with logits for each image",
        ),
    ],
)
def test_other_data_models_and_heads_are_refused_by_name(
    build: Any, name: str, changes: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, changes)


def test_the_module_is_short() -> None:
    assert len((Path(__file__).parents[1] / "whole_images.py").read_text(encoding="utf-8").splitlines()) <= 60
