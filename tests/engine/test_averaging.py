"""The average of the weights is torch's. It is measured, saved, loaded and resumed, and training does not see it."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import classyseg
from classyseg.averaging import AveragingConfig
from classyseg.config import ConfigError
from classyseg.engine.averaging import Averaging
from classyseg.evaluation import evaluate
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.io import sha256_of
from classyseg.meters import MeanIoUMeter
from classyseg.registry import HOOKS
from classyseg.stopping import Stopped
from classyseg.tasks import SegmentationTask, build_task
from classyseg.trainer import Trainer
from runs import SignalAt, read_records, tiny_config, tiny_task

ONE_EPOCH: dict[str, Any] = {"num_epochs": 1, "model.heads.main.dropout": 0.0}
FIRST = next(name for name, _ in tiny_task().model.named_parameters())
ENCNET = {"name": "encnet", "blocks": ["stage3"], "dropout": 0.0}


class AveragingHook(ClassyHook):
    def __init__(self, averaging: AveragingConfig) -> None:
        self.averaging = averaging


class Beside(ClassyHook):
    """What the weights are after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_step(self, task: WatchedTask) -> None:
        assert isinstance(task, SegmentationTask)
        if task.progress.phase == "train":
            self.weights.append({name: value.clone() for name, value in task.model.state_dict().items()})


def averaged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> SegmentationTask:
    return tiny_task(changes, AveragingHook(AveragingConfig.model_validate(config)))


def average_of(task: SegmentationTask) -> dict[str, Tensor]:
    return task.engine.tensors()["average"]


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []


def test_the_average_is_torchs_and_training_does_not_see_it() -> None:
    class TorchsAverage(ClassyHook):
        def on_start(self, task: WatchedTask) -> None:
            self.model = AveragedModel(task.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)  # type: ignore[attr-defined]
            self.model.update_parameters(task.model)  # type: ignore[attr-defined]  # the first time, it copies

        def on_step(self, task: WatchedTask) -> None:
            if task.progress.phase == "train":
                self.model.update_parameters(task.model)  # type: ignore[attr-defined]

    task, plain, torchs = averaged({"decay": 0.9, "warmup": False}, ONE_EPOCH), tiny_task(ONE_EPOCH), TorchsAverage()
    task.hooks.append(torchs)
    for each in (task, plain):
        Trainer().train(each)

    assert_same(task.model.state_dict(), plain.model.state_dict())
    expected = torchs.model.module.state_dict()
    for name, value in average_of(task).items():
        if value.is_floating_point():  # torch averages counts of batches, too
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
    assert not torch.equal(average_of(task)[FIRST], task.model.state_dict()[FIRST])


@pytest.mark.parametrize(
    "config", [{"decay": 0.5}, {"decay": 0.8, "every": 2}, {"decay": 0.3, "start_step": 2, "buffers": "copy"}]
)
def test_the_warm_up_start_and_interval_are_those_of_the_formula(config: dict[str, Any]) -> None:
    task, beside = averaged(config, ONE_EPOCH), Beside()
    task.hooks.append(beside)
    start = {name: value.double() for name, value in task.model.state_dict().items()}
    Trainer().train(task)

    expected, updates = start, 0
    for step, weights in enumerate(beside.weights, 1):
        if step <= config.get("start_step", 0):
            expected = {name: value.double() for name, value in weights.items()}
        elif (step - config.get("start_step", 0)) % config.get("every", 1) == 0:
            keep = min(config["decay"], (1 + updates) / (10 + updates))
            expected = {name: keep * expected[name] + (1 - keep) * value for name, value in weights.items()}
            updates += 1
    parameters = dict(task.model.named_parameters())
    for name, value in average_of(task).items():
        own = not value.is_floating_point() or (config.get("buffers") == "copy" and name not in parameters)
        torch.testing.assert_close(
            value.double(), beside.weights[-1][name].double() if own else expected[name], rtol=1e-5, atol=1e-6
        )


def test_what_is_measured_saved_and_loaded_is_the_average(tmp_path: Path) -> None:
    hooks = [{"name": "checkpoint", "best": "mean_iou"}]
    task = averaged({"decay": 0.9}, {"hooks": hooks, "dataset.test": tiny_config()["dataset"]["val"]})
    Trainer(tmp_path).train(task)

    last = tmp_path / "checkpoints/step-18"
    assert_same(load_file(last / "model.safetensors"), task.model.state_dict())
    assert_same(load_file(last / "average.safetensors"), average_of(task))
    assert_same(dict(classyseg.load(last).model.state_dict()), average_of(task))
    *_, val, test = read_records(tmp_path / "metrics.jsonl")
    best = f"step-{test['weights_step']}"
    assert (tmp_path / "checkpoints/BEST").read_text().startswith(best)
    of_best = load_file(tmp_path / "checkpoints" / best / "average.safetensors")
    assert_same(load_file(tmp_path / "model/model.safetensors"), of_best)
    for weights, record in ((last, val), (tmp_path, test)):
        dataset, meter = task.data.sets["val"], MeanIoUMeter(task.data.sets["val"].classes, 255)
        measured = evaluate(classyseg.load(weights), dataset, [meter], loss=task.loss).result()
        assert record["mean_iou"] == measured["mean_iou"]
        assert record["loss"] == pytest.approx(measured["loss"], rel=1e-6)
    fine_tuned = build_task(tiny_config({"model.weights": str(last), "num_epochs": 0, "optimizer": None}))
    fine_tuned.start(None)
    assert_same(fine_tuned.model.state_dict(), average_of(task))


@pytest.mark.parametrize("moment", [("train", 1, 2), ("val", 1, 3), ("test", 2, 2)], ids=lambda moment: moment[0])
def test_a_stopped_run_ends_as_if_it_had_not_been(moment: tuple[str, int, int], tmp_path: Path) -> None:
    # A head that reads weights twice, a frozen stage, and a test set with the best weights: all that has its own way.
    changes = {
        "num_epochs": 2,
        "model.frozen": "stage1",
        "model.heads.main": ENCNET,
        "hooks": [{"name": "checkpoint", "best": "mean_iou"}],
        "dataset.test": tiny_config()["dataset"]["val"],
    }
    config = {"decay": 0.9, "every": 2}
    Trainer(tmp_path / "whole").train(averaged(config, changes))
    task = averaged(config, changes)
    task.hooks.append(SignalAt(*moment))
    with pytest.raises(Stopped):
        Trainer(tmp_path / "stopped").train(task)
    Trainer(tmp_path / "stopped", resume=True).train(averaged(config, changes))

    assert read_records(tmp_path / "stopped/metrics.jsonl") == read_records(tmp_path / "whole/metrics.jsonl")
    for group in ("model", "average", "optimizer"):
        found, expected = (
            load_file(tmp_path / run / f"checkpoints/step-12/{group}.safetensors") for run in ("stopped", "whole")
        )
        assert_same(found, expected)


def test_an_average_may_begin_in_a_resumed_run_or_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = {**ONE_EPOCH, "hooks": [{"name": "checkpoint"}]}
    longer = {**changes, "num_epochs": 2}
    plain = tiny_task(longer)
    Trainer(tmp_path / "plain").train(plain)
    Trainer(tmp_path / "run").train(tiny_task(changes))
    caplog.set_level(logging.INFO)
    begun = averaged({"decay": 0.5, "warmup": False, "start_step": 5}, longer)
    Trainer(tmp_path / "run", resume=True, extend=True).train(begun)
    assert "the average begins with its weights" in caplog.text
    assert begun.engine.averaging is not None
    assert begun.engine.averaging.num_steps == 6
    left = tiny_task({**longer, "num_epochs": 3})
    Trainer(tmp_path / "run", resume=True, extend=True).train(left)
    assert "this run has no average" in caplog.text
    assert not (tmp_path / "run/checkpoints/step-18/average.safetensors").exists()


def test_a_wrong_average_in_a_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    changes = {**ONE_EPOCH, "hooks": [{"name": "checkpoint"}]}
    Trainer(tmp_path).train(averaged({}, changes))
    folder = tmp_path / "checkpoints/step-6"
    path = folder / "average.safetensors"
    tensors = load_file(path)

    def sealed() -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"] = {
            file.name: {"size": file.stat().st_size, "sha256": sha256_of(file)}
            for file in folder.iterdir()
            if file.name != "manifest.json"
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))

    save_file({**tensors, FIRST: torch.zeros(2)}, path)
    sealed()
    for read in (lambda: Trainer(tmp_path, resume=True).train(averaged({}, changes)), lambda: classyseg.load(folder)):
        with pytest.raises(ConfigError, match=rf"average\.safetensors: '{FIRST}': found \[2\]"):
            read()
    save_file(tensors, path)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "averaging": {"num_steps": 7}}))
    sealed()
    with pytest.raises(ConfigError, match=r"averaging\.num_steps: found 7"):
        Trainer(tmp_path, resume=True).train(averaged({}, changes))
    path.unlink()
    (folder / "state.json").write_text(json.dumps(state))
    sealed()
    with pytest.raises(ConfigError, match=r"lists no average\.safetensors"):
        Trainer(tmp_path, resume=True).train(averaged({}, changes))


def test_a_teachers_outputs_are_those_of_the_average_and_leave_no_trace() -> None:
    task = averaged({"decay": 0.9}, {"model.heads.main.dropout": 0.5})
    task.start(None)
    assert task.start_phase()
    batches = iter(task.batches())
    for _ in range(2):
        task.step(next(batches))
    batch = task.on_device(next(batches))
    before = {name: value.clone() for name, value in task.model.state_dict().items()}

    outputs = task.engine(batch.image)["main"]
    found = task.engine.averaged_outputs(batch.image)["main"]
    torch.manual_seed(1)
    outputs.sum().backward()

    assert not found.requires_grad
    assert task.model.training
    teacher = copy.deepcopy(task.model)
    teacher.load_state_dict(average_of(task))
    assert torch.equal(found, teacher.eval()(batch.image)["main"])
    assert not torch.equal(found, task.model.eval()(batch.image)["main"])
    with task.engine.averaged():
        assert torch.equal(found, task.model(batch.image)["main"])
    parameters = dict(task.model.named_parameters())
    assert_same(
        {name: task.model.state_dict()[name] for name in parameters}, {name: before[name] for name in parameters}
    )


def test_two_hooks_that_average_are_refused_before_data_is_opened(own_registries: None) -> None:
    class TwiceHook(AveragingHook):
        def __init__(self, *, decay: float = 0.9) -> None:
            super().__init__(AveragingConfig(decay=decay))

    HOOKS.register("test_average")(TwiceHook)
    config = tiny_config({"hooks": ["checkpoint", "test_average", "test_average"]})
    with pytest.raises(ConfigError, match=r"hooks\[2\]: another hook averages"):
        build_task(config)
    engine = tiny_task().engine
    with pytest.raises(ValueError, match="found no average"):
        engine.averaged_outputs(torch.zeros(1, 3, 32, 32))


def test_a_buffer_that_a_layer_replaces_is_averaged_too() -> None:
    class Center(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("center", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            self.center = self.center + x
            return self.center

    model = Center()
    averaging = Averaging(model, AveragingConfig(decay=0.5, warmup=False))
    for averaging.num_steps in (1, 2):
        model(torch.ones(2))
        averaging.update()
    assert averaging.named["center"].tolist() == [1.25, 1.25]  # 0.5 * (0.5 * 0 + 0.5 * 1) + 0.5 * 2
    averaging.swap()
    assert model.center.tolist() == [1.25, 1.25]
    averaging.swap()
    assert model.center.tolist() == [2.0, 2.0]
