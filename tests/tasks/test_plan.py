"""How long a run is, where its phases end, what is measured when, and runs that go on with another length."""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from classyseg.checkpoint import load_checkpoint
from classyseg.cli.main import main
from classyseg.config import ConfigError, load_config
from classyseg.structures import Progress
from classyseg.tasks.plan import RunPlan
from classyseg.trainer import Stopped, Trainer
from runs import SignalAt, read_records, tiny_task, write_config

SMALL = {
    "num_epochs": 2,
    "batch_size": 2,
    "dataset.train.num_samples": 9,  # epochs of 4 steps
    "dataset.train.size": [16, 16],
    "dataset.val.num_samples": 2,
    "dataset.val.size": [16, 16],
    "model": {
        "name": "anynet",
        "depths": [1, 1],
        "widths": [8, 8],
        "group_widths": [8, 8],
        "bottleneck_multipliers": [1.0, 1.0],
        "strides": [2, 2],
        "stem_width": 8,
        "use_se": False,
        "heads": {"main": {"name": "fcn", "blocks": ["stage2"], "channels": 4, "dropout": 0.2}},
    },
}
STEPS = {**SMALL, "num_epochs": None, "num_steps": 8}
CHECKPOINTS: dict[str, Any] = {"hooks": [{"name": "checkpoint", "keep": 50}, {"name": "log", "every": 1}]}
CONSTANT: dict[str, Any] = {"optimizer.schedule": {"name": "constant", "warmup_steps": 2}}
TEST = {"name": "synthetic_shapes", "split": "test", "num_samples": 3, "size": [16, 16]}


def train(folder: Path, changes: Mapping[str, Any], *, resume: bool = False, extend: bool = False) -> Any:
    task = tiny_task({**SMALL, **CHECKPOINTS, **changes})
    Trainer(folder, resume=resume, extend=extend).train(task)
    return task


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    root = folder / "checkpoints" / f"step-{step}"
    return {
        f"{kind}.{name}": tensor
        for kind in ("model", "optimizer")
        for name, tensor in load_file(root / f"{kind}.safetensors").items()
    }


def phases(folder: Path) -> list[tuple[str, int, int]]:
    return [(r["phase"], r["epoch"], r["step"]) for r in read_records(folder / "metrics.jsonl")]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- lengths in steps ------------------------------------------------------------------------------------------------


def test_the_plan_takes_every_step_once_in_phases_within_an_epoch() -> None:
    """Against the definition, step by step, for random plans."""
    draw = random.Random(0)
    for _ in range(300):
        per_epoch, val_every = draw.randint(1, 7), draw.randint(1, 9)
        plan = RunPlan(draw.randint(0, 25), per_epoch, val_every, draw.random() < 0.8, draw.random() < 0.5)
        now, steps, measured, tested = plan.first, [], [], 0
        while not plan.is_over(now):
            if now.phase == "train":
                end = plan.end_of_training_phase(now.step)
                assert now.epoch == now.step // per_epoch == (end - 1) // per_epoch
                steps += range(now.step, end)
                now.step = end
            else:
                (measured.append(now.step) if now.phase == "val" else None)
                tested += now.phase == "test"
            now = plan.after(now)
        assert steps == [*range(plan.num_steps)]
        points = {s for s in range(1, plan.num_steps + 1) if s % val_every == 0} | {plan.num_steps}
        assert measured == (sorted(points) if plan.has_val else [])
        assert tested == plan.has_test


def test_so_many_steps_train_as_their_epochs_do(tmp_path: Path) -> None:
    train(tmp_path / "epochs", {})
    train(tmp_path / "steps", {"num_epochs": None, "num_steps": 8, "val_every_steps": 3})
    assert equal(weights(tmp_path / "epochs", 8), weights(tmp_path / "steps", 8))
    one, other = (read_records(tmp_path / name / "steps.jsonl") for name in ("epochs", "steps"))
    assert one == other


def test_a_run_in_steps_ends_in_mid_epoch_and_measures_where_it_says(tmp_path: Path) -> None:
    train(tmp_path, {"num_epochs": None, "num_steps": 10, "val_every_steps": 3})
    expected = [("train", 1, 3), ("val", 1, 3), ("train", 1, 4), ("train", 2, 6), ("val", 2, 6), ("train", 2, 8)]
    expected += [("train", 3, 9), ("val", 3, 9), ("train", 3, 10), ("val", 3, 10)]
    assert phases(tmp_path) == expected
    losses = {record["step"]: record["loss"] for record in read_records(tmp_path / "steps.jsonl")}
    trained = {r["step"]: r["loss"] for r in read_records(tmp_path / "metrics.jsonl") if r["phase"] == "train"}
    assert trained[3] == pytest.approx(sum(losses[s] for s in (1, 2, 3)) / 3)
    assert trained[4] == pytest.approx(losses[4])


@pytest.mark.parametrize(
    ("moment", "workers"),
    [(("train", 0, 2), 0), (("train", 0, 3), 2), (("val", 0, 1), 0), (("train", 1, 1), 0), (("train", 2, 1), 0)],
)
def test_a_run_in_steps_goes_on_as_if_it_had_not_stopped(
    moment: tuple[str, int, int], workers: int, tmp_path: Path
) -> None:
    length = {"num_epochs": None, "num_steps": 10, "val_every_steps": 3, "runtime.workers": workers}
    train(tmp_path / "whole", length)
    task = tiny_task({**SMALL, **CHECKPOINTS, **length}, SignalAt(*moment))
    with pytest.raises(Stopped):
        Trainer(tmp_path / "run").train(task)
    train(tmp_path / "run", length, resume=True)
    assert equal(weights(tmp_path / "whole", 10), weights(tmp_path / "run", 10))
    for name in ("metrics.jsonl", "steps.jsonl"):
        assert read_records(tmp_path / "run" / name) == read_records(tmp_path / "whole" / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": None}, r"^num_epochs: missing; write it, or num_steps"),
        ({"num_steps": 8}, r"^num_epochs: found both"),
        ({"val_every_epochs": 1, "val_every_steps": 2}, r"^val_every_steps: found together with val_every_epochs"),
        ({"dataset": {"train": TEST, "test": TEST}}, r"^dataset\.val: missing where dataset\.test.* rename it"),
        ({"optimizer.schedule": {"name": "cosine", "warmup_epochs": 2}}, r"warmup_epochs: found 2"),
        ({"optimizer.schedule": {"name": "cosine", "warmup_steps": 8}}, r"warmup_steps: found 8; the run has 8 steps"),
        ({"optimizer.schedule": {"name": "multi_step", "milestone_steps": [8]}}, r"milestone_steps: found \[8\]"),
        (
            {"optimizer.schedule": {"name": "multi_step"}},
            r"schedule\.milestones: missing; write it, or mile",
        ),
        (
            {"optimizer.schedule": {"name": "cosine", "warmup_epochs": 1, "warmup_steps": 3}},
            r"found warmup_epochs 1.0 and warmup_steps 3; keep one",
        ),
    ],
)
def test_lengths_that_cannot_be_are_named(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_task({**SMALL, **changes})


def test_milestones_and_warm_up_in_steps_are_those_in_epochs(tmp_path: Path) -> None:
    """The rates of each step, against arithmetic."""
    schedule = {"name": "multi_step", "milestone_steps": [3, 5], "factor": 0.5, "interval_scaling": "fixed"}
    train(tmp_path, {**STEPS, "optimizer.schedule": {**schedule, "warmup_steps": 2, "warmup_factor": 0.0}})
    rates = [record["lr"] for record in read_records(tmp_path / "steps.jsonl")]
    assert rates == pytest.approx([0.02 * f for f in (0, 0.5, 1, 0.5, 0.5, 0.25, 0.25, 0.25)], abs=1e-9)


# -- the test set ----------------------------------------------------------------------------------------------------


BEST = {"hooks": [{"name": "checkpoint", "keep": 50, "best": "loss", "best_is": "largest"}]}
"""By which an early checkpoint is the best one: losses fall."""


def test_the_test_set_is_measured_once_with_the_best_weights_and_the_last_ones_come_back(tmp_path: Path) -> None:
    task = train(tmp_path / "run", {**BEST, "num_epochs": 3, "dataset.test": TEST})
    *_, val, test = read_records(tmp_path / "run" / "metrics.jsonl")
    best = int((tmp_path / "run/checkpoints/BEST").read_text(encoding="utf-8").split()[0].removeprefix("step-"))
    assert [p for p, _, _ in phases(tmp_path / "run")] == ["train", "val"] * 3 + ["test"]
    assert (val["step"], test["step"], test["weights_step"]) == (12, 12, best)
    assert best < 12
    assert equal(
        {f"model.{k}": v for k, v in task.model.state_dict().items()},
        {k: v for k, v in weights(tmp_path / "run", 12).items() if k.startswith("model.")},
    )
    again = {"num_epochs": 0, "hooks": [], "model.weights": str(tmp_path / f"run/checkpoints/step-{best}")}
    train(tmp_path / "again", {**again, "dataset.val": TEST})
    (measured,) = read_records(tmp_path / "again" / "metrics.jsonl")
    assert {k: test[k] for k in ("loss", "mean_iou", "iou")} == {k: measured[k] for k in ("loss", "mean_iou", "iou")}


def test_without_best_the_last_weights_are_tested_also_where_nothing_is_trained(tmp_path: Path) -> None:
    train(tmp_path / "run", {"dataset.val": None, "dataset.test": TEST})
    (*_, test) = read_records(tmp_path / "run" / "metrics.jsonl")
    assert (test["phase"], test["weights_step"]) == ("test", 8)
    train(tmp_path / "measured", {"num_epochs": 0, "dataset.test": TEST})
    assert phases(tmp_path / "measured") == [("val", 0, 0), ("test", 0, 0)]


def test_a_run_that_is_stopped_in_the_test_phase_saves_the_last_weights_and_tests_again(tmp_path: Path) -> None:
    changes = {**BEST, "dataset.test": TEST}
    train(tmp_path / "whole", changes)
    with pytest.raises(Stopped):
        Trainer(tmp_path / "run").train(tiny_task({**SMALL, **changes}, SignalAt("test", 2, 1)))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-8")  # what was saved before the test phase
    with pytest.raises(Stopped):
        Trainer(tmp_path / "run", resume=True).train(tiny_task({**SMALL, **changes}, SignalAt("test", 2, 2)))
    assert equal(weights(tmp_path / "whole", 8), weights(tmp_path / "run", 8))
    train(tmp_path / "run", changes, resume=True)
    assert read_records(tmp_path / "run" / "metrics.jsonl") == read_records(tmp_path / "whole" / "metrics.jsonl")


def test_a_checkpoint_that_is_saved_in_the_test_phase_has_the_last_weights(tmp_path: Path) -> None:
    task = tiny_task({**SMALL, **BEST, "dataset.test": TEST})
    saved: list[dict[str, torch.Tensor]] = []

    def eval_step(batch: Any, original: Callable[[Any], None] = task.eval_step) -> None:
        original(batch)
        if task.progress.phase == "test":
            tensors = task.checkpoint_tensors()["model"]  # copied, as the model gets its own back in place
            saved.append({name: tensor.clone() for name, tensor in tensors.items()})

    task.eval_step = eval_step  # type: ignore[method-assign]
    Trainer(tmp_path).train(task)
    last = load_checkpoint(tmp_path / "checkpoints/step-8").tensors["model"]
    assert len(saved) == 3
    assert all(equal(tensors, last) for tensors in saved)


# -- other lengths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "longer"),
    [
        ({"name": "constant"}, {"num_epochs": 4}),
        ({"name": "constant", "warmup_steps": 3}, {"num_epochs": None, "num_steps": 11}),
        ({"name": "constant", "warmup_epochs": 0.5}, {"num_epochs": 3}),
        ({"name": "multi_step", "milestones": [1, 1.5]}, {"num_epochs": None, "num_steps": 11}),
        (
            {"name": "multi_step", "milestone_steps": [5], "warmup_steps": 2, "interval_scaling": "fixed"},
            {"num_epochs": 3},
        ),
    ],
)
def test_a_run_whose_schedule_stays_may_be_longer_and_is_as_if_it_had_been_from_the_start(
    schedule: dict[str, Any], longer: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"optimizer.schedule": schedule}
    train(tmp_path / "run", changes)
    train(tmp_path / "run", {**changes, **longer}, resume=True)
    train(tmp_path / "whole", {**changes, **longer})
    end = longer.get("num_steps") or longer["num_epochs"] * 4
    one, other = (weights(tmp_path / name, end) for name in ("run", "whole"))
    for name in one:  # rates may differ in their last bits within a warm-up
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)
    config = load_config(tmp_path / "run/config.yaml").values
    assert (config["num_epochs"], config["num_steps"]) == (longer["num_epochs"], longer.get("num_steps"))


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "polynomial"},
        {"name": "cosine", "warmup_epochs": 1},
        {"name": "multi_step", "milestones": [1], "warmup_epochs": 0.5},  # rescaled: they move
    ],
)
def test_a_run_whose_schedule_changes_is_made_longer_on_request_alone(
    schedule: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"optimizer.schedule": schedule}
    train(tmp_path / "run", changes)
    with pytest.raises(ConfigError, match=r"(?s)^num_epochs.*2 epochs \(8 steps\).*3 .*step 9.*--extend"):
        train(tmp_path / "run", {**changes, "num_epochs": 3}, resume=True)
    with caplog.at_level(logging.INFO):
        train(tmp_path / "run", {**changes, "num_epochs": 3}, resume=True, extend=True)
    train(tmp_path / "whole", {**changes, "num_epochs": 3})
    rates = {r["step"]: r["lr"] for r in read_records(tmp_path / "run" / "steps.jsonl")}
    expected = {r["step"]: r["lr"] for r in read_records(tmp_path / "whole" / "steps.jsonl")}
    assert [rates[s] for s in range(9, 13)] == pytest.approx([expected[s] for s in range(9, 13)])
    assert f"step 9: was to be none, will be {rates[9]:.6g}" in caplog.text
    assert f"step 12: was to be none, will be {rates[12]:.6g}" in caplog.text
    again = read_records(tmp_path / "run" / "metrics.jsonl")[3]  # measured again, behind the step of before
    assert (again["phase"], again["step"], again["lr"]) == ("val", 8, pytest.approx(rates[8]))


def test_layers_that_follow_the_run_are_a_schedule_too(tmp_path: Path) -> None:
    model = {"name": "resnet50", "depths": [1, 1, 1, 1], "dropblock": 0.1}
    changes = {"num_epochs": 1, "model": {**model, "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}}}
    changes |= {
        "dataset.train.num_samples": 2,
        "dataset.train.size": [64, 64],
        "optimizer.schedule": {"name": "constant"},
    }
    train(tmp_path, changes)
    with pytest.raises(ConfigError, match=r"(?s)DropBlock2d.*--extend"):
        train(tmp_path, {**changes, "num_epochs": 2}, resume=True)


@pytest.mark.parametrize("changes", [{"num_epochs": 1}, {"num_epochs": None, "num_steps": 7}])
def test_a_run_is_not_made_shorter_than_it_is(changes: dict[str, Any], tmp_path: Path) -> None:
    train(tmp_path, CONSTANT)
    with pytest.raises(ConfigError, match=r"has done 8 steps"):
        train(tmp_path, {**CONSTANT, **changes}, resume=True, extend=True)


def test_the_same_length_in_the_other_unit_is_the_same_run(tmp_path: Path) -> None:
    train(tmp_path, {})
    before = read_records(tmp_path / "metrics.jsonl")
    train(tmp_path, STEPS, resume=True)
    assert read_records(tmp_path / "metrics.jsonl") == before
    with pytest.raises(ConfigError, match=r"every 4 steps.*every 2"):
        train(tmp_path, {"val_every_steps": 2}, resume=True)


def test_a_test_set_may_be_added_to_a_finished_run_and_its_record_stays_when_the_run_goes_on(tmp_path: Path) -> None:
    train(tmp_path, {**CONSTANT, "dataset.val": None})
    changes = {**CONSTANT, "dataset.val": None, "dataset.test": TEST}
    train(tmp_path, changes, resume=True)
    assert phases(tmp_path)[-1] == ("test", 2, 8)
    train(tmp_path, {**changes, "num_epochs": 3}, resume=True)
    assert [place for place in phases(tmp_path) if place[0] == "test"] == [("test", 2, 8), ("test", 3, 12)]


def test_the_command_line_extends_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_config(tmp_path, {**SMALL, **CHECKPOINTS}))
    run = ["train", config, "--output", str(tmp_path / "run")]
    assert main(run) == 0
    assert main([*run, "--resume", "num_epochs=3"]) == 2
    assert "--extend" in capsys.readouterr().err
    assert main([*run, "--resume", "--extend", "num_epochs=3"]) == 0
    assert phases(tmp_path / "run")[-1] == ("val", 3, 12)
    with pytest.raises(SystemExit) as error:
        main([*run, "--extend"])
    assert error.value.code == 2
    with pytest.raises(ConfigError, match="--resume"):
        Trainer(tmp_path / "run", extend=True)


@pytest.mark.parametrize("value", [-1, 2**70, 1.5, "2", True, [1]])
@pytest.mark.parametrize("key", ["num_epochs", "val_every_epochs"])
def test_a_length_that_none_is_in_a_checkpoint_is_named(key: str, value: object, tmp_path: Path) -> None:
    from run_faults import hashes_made_right

    train(tmp_path, CONSTANT)
    folder = tmp_path / "checkpoints/step-8"
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    state["config"][key] = value
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    hashes_made_right(folder)
    with pytest.raises(ConfigError, match=rf"state\.json.*config\.{key}"):
        train(tmp_path, CONSTANT, resume=True)


def test_the_clock_of_a_new_run_stands_at_its_first_phase() -> None:
    assert RunPlan(0, 1, 1, has_val=False, has_test=True).first == Progress(phase="test")
    assert math.isclose(RunPlan(10, 4, 4).length.epochs or 0, 2.5)
