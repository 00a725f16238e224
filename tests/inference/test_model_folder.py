"""Every run ends with a folder that one gives away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import classyseg
from classyseg.checkpoint import load_checkpoint
from classyseg.config import ConfigError
from classyseg.datasets import build_dataset
from classyseg.evaluation import evaluate
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.inference import Predictor
from classyseg.meters import build_meter
from classyseg.models import build_model
from classyseg.trainer import Trainer
from runs import read_records, tiny_config, tiny_task

BEST = {"num_epochs": 3, "dataset.train.num_samples": 16, "meters": ["mean_iou", "confusion_matrix"]}


def train(folder: Path, changes: dict[str, Any]) -> list[dict[str, Any]]:
    Trainer(folder).train(tiny_task({**BEST, **changes}))
    return [record for record in read_records(folder / "metrics.jsonl") if record["phase"] == "val"]


def test_a_run_ends_with_its_best_weights_and_their_numbers(tmp_path: Path) -> None:
    aux = {"name": "fcn", "blocks": ["stage3"], "channels": 8, "train_only": True}
    main = tiny_config()["model"]["heads"]["main"]
    transforms = [{"name": "resize", "shorter_side": 48, "image_only": True}]
    changes = {
        "hooks": [{"name": "checkpoint", "best": "mean_iou", "best_is": "smallest"}],  # which the last hardly is
        "model.heads": {"main": main, "aux": aux},
        "dataset.val.transforms": transforms,
        "protocol": {"name": "sliding_window", "size": [32, 40]},
    }
    records = train(tmp_path / "run", changes)
    best = min(records, key=lambda record: record["mean_iou"])
    folder = tmp_path / "run" / "model"
    config = json.loads((folder / "config.json").read_text())
    assert list(config["model"]["heads"]) == ["main"]
    assert config["preparation"]["transforms"][0]["shorter_side"] == 48
    assert config["protocol"]["name"] == "sliding_window"
    assert str(tmp_path) not in (folder / "config.json").read_text()
    card = (folder / "README.md").read_text()
    assert f"| mean_iou | {best['mean_iou']:.4f} |" in card
    assert not any(f"| {key} |" in card for key in ("lr", "seconds", "samples_per_second", "data_wait"))

    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")  # nothing leads back to the run
    predictor = classyseg.load(moved)
    saved = load_checkpoint(moved / "checkpoints" / f"step-{best['step']}").tensors["model"]
    for key, value in predictor.model.state_dict().items():
        assert value.equal(saved[key])
    dataset = build_dataset(tiny_config(changes)["dataset"]["val"])
    meter = build_meter("confusion_matrix", predictor.classes, predictor.ignore_index)
    assert evaluate(predictor, dataset, [meter]).result()["confusion_matrix"] == best["confusion_matrix"]

    plain = build_dataset(tiny_config()["dataset"]["val"])  # the image itself: the predictor resizes it
    found = np.zeros((4, 4), np.int64)
    for i in range(len(plain)):
        sample = plain[i]
        target, labels = sample.target.numpy(), predictor.predict(sample.image)
        np.add.at(found, (target[target < 255], labels[target < 255]), 1)
    assert found.tolist() == best["confusion_matrix"]


class Damage(ClassyHook):
    """Damages the weights of all checkpoints when the training is over."""

    def on_end(self, task: WatchedTask) -> None:
        for path in (task.run_folder or Path()).glob("checkpoints/*/model.safetensors"):
            path.write_bytes(b"no tensors")


def test_a_damaged_best_checkpoint_is_told_and_the_last_weights_are_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {**BEST, "num_epochs": 1, "hooks": [{"name": "checkpoint", "best": "mean_iou"}]}
    task = tiny_task(changes, Damage())
    Trainer(tmp_path / "run").train(task)
    assert [str(tmp_path / "run" / "checkpoints") in r.message for r in caplog.records if "not the best" in r.message]
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(value.equal(weights[key]) for key, value in task.model.state_dict().items())


def test_without_a_best_the_last_weights_are_given_also_without_checkpoints(tmp_path: Path) -> None:
    records = train(tmp_path / "run", {"num_epochs": 1, "hooks": []})
    predictor = classyseg.load(tmp_path / "run")
    meter = build_meter("confusion_matrix", predictor.classes, predictor.ignore_index)
    dataset = build_dataset(tiny_config()["dataset"]["val"])
    assert evaluate(predictor, dataset, [meter]).result()["confusion_matrix"] == records[-1]["confusion_matrix"]


def test_an_overwritten_run_takes_its_model_along(tmp_path: Path) -> None:
    train(tmp_path / "run", {"num_epochs": 1, "hooks": []})
    first = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    Trainer(tmp_path / "run", overwrite=True).train(tiny_task({**BEST, "num_epochs": 1, "hooks": [], "seed": 5}))
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() != first
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith("model")] == ["model"]


def test_what_a_file_says_wrong_is_laid_to_it_whatever_protocol_the_caller_names(tmp_path: Path) -> None:
    model = tiny_config()["model"]
    folder = Predictor(build_model(model, 2), classes=["a", "b"], model_config=model).save(tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "normalize": {"mean": [0.5], "std": [0.5]}}))
    for protocol in (None, "whole"):
        with pytest.raises(ConfigError, match=r"config\.json: normalize: "):
            classyseg.load(folder, protocol=protocol)
