"""Training steps that are not finite: nothing is learnt from them, and the run stops, goes on or goes back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from registered import forgotten
from torch import Tensor

from classyseg import distributed
from classyseg.checkpoint import load_checkpoint, newest_checkpoint
from classyseg.cli.train import main
from classyseg.datasets import TrainOrder
from classyseg.engine import non_finite
from classyseg.engine.engine import Engine
from classyseg.errors import NonFiniteError
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.registry import TRANSFORMS
from classyseg.stopping import Stopped
from classyseg.structures import Sample
from classyseg.tasks import ClassyTask, SegmentationTask
from classyseg.trainer import Trainer
from classyseg.transforms import ClassyTransform
from runs import SignalAt, assert_equal, in_two_processes, read_records, tiny_task, write_config

BATCH, SAMPLES = 4, 16
POISONED = TrainOrder(SAMPLES, BATCH, seed=0).batch(0, 2)[1]
"""A sample of the third step."""
CHANGES: dict[str, Any] = {
    "num_epochs": 2,
    "batch_size": BATCH,
    "dataset.train.num_samples": SAMPLES,
    "dataset.train.size": [16, 16],
    "dataset.val": None,
    "optimizer.name": "adamw",
    "optimizer.lr": 0.001,
    "hooks": [{"name": "checkpoint", "every_steps": 2, "keep": 9}],
}
POISON = {"dataset.train.transforms": [{"name": "poison", "sample": POISONED}]}
START = Engine.start
seen: list[str] = []


class Poison(ClassyTransform):
    """One sample has an infinite pixel."""

    def __init__(self, ignore_index: int = 255, *, sample: int) -> None:
        self.sample = sample

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        seen.append(str(sample.name))
        image = sample.image.float()
        if sample.name == f"train {self.sample}":
            image[0, 3, 4] = float("inf")
        return sample.replace(image=image)


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    seen.clear()
    with forgotten():
        TRANSFORMS.register("poison")(Poison)
        yield


class InfiniteGradient(ClassyHook):
    """One gradient of one step, in the last process, is infinite; the loss is not."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_start(self, task: WatchedTask) -> None:
        assert isinstance(task, ClassyTask)
        bias = task.model.heads["main"].classifier.bias

        def poisoned(gradient: Tensor) -> Tensor:
            is_it = task.progress.step + 1 == self.step and distributed.rank() == distributed.world_size() - 1
            return gradient * (float("inf") if is_it else 1.0)

        bias.register_hook(poisoned)


class States(ClassyHook):
    """All tensors of the run after each step, by its number."""

    def __init__(self) -> None:
        self.after: dict[int, dict[str, Tensor]] = {}

    def on_step(self, task: WatchedTask) -> None:
        assert isinstance(task, ClassyTask)
        self.after[task.progress.step] = tensors_of(task)


def tensors_of(task: ClassyTask) -> dict[str, Tensor]:
    groups = task.engine.tensors()
    return {f"{group}/{key}": value.clone() for group, values in groups.items() for key, value in values.items()}


def told(run: Path) -> list[dict[str, Any]]:
    return read_records(run / "non_finite.jsonl")


def names(batch: list[int]) -> list[str]:
    return [f"train {index}" for index in batch]


def test_a_run_stops_with_the_weights_from_before_the_step_and_tells_its_samples(tmp_path: Path) -> None:
    states, task = States(), tiny_task({**CHANGES, **POISON})
    task.hooks = [*task.hooks, states]

    with pytest.raises(NonFiniteError, match=rf"step 3, epoch 1: .*loss is nan.*train {POISONED}") as error:
        Trainer(tmp_path).train(task)

    assert error.value.exit_code == 3
    assert told(tmp_path) == [
        {
            "step": 3,
            "epoch": 1,
            "loss": "nan",
            "action": "stop",
            "samples": names(TrainOrder(SAMPLES, BATCH, seed=0).batch(0, 2)),
        }
    ]
    newest, problems = newest_checkpoint(tmp_path / "checkpoints")
    assert (newest, problems) == (tmp_path / "checkpoints/step-2", [])
    assert newest is not None
    assert_equal(tensors_of(task), states.after[2])
    saved = load_checkpoint(newest).tensors
    assert_equal({f"{group}/{key}": x for group, values in saved.items() for key, x in values.items()}, states.after[2])


def test_the_first_step_of_the_command_line_leaves_what_it_found_and_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {**CHANGES, "dataset.train.transforms": [{"name": "poison", "sample": 0}], "batch_size": SAMPLES}
    config = write_config(tmp_path, changes)

    assert main([str(config), "--output", str(tmp_path / "run")]) == 3

    assert capsys.readouterr().err.count("error: step 1, epoch 1") == 1
    assert [record["step"] for record in told(tmp_path / "run")] == [1]
    # Its weights were not learnt from the step, so the run can go on from its start by another policy.
    resumed = main([str(config), "--output", str(tmp_path / "run"), "--resume", "runtime.non_finite=skip_step"])
    assert resumed == 0
    metrics = read_records(tmp_path / "run/metrics.jsonl")
    assert [(r["step"], r["loss"], r["skipped_steps"]) for r in metrics] == [(1, None, 1), (2, None, 1)]


@pytest.mark.parametrize("parts", [1, 2])
def test_a_skipped_step_changes_nothing_and_is_counted(parts: int, tmp_path: Path) -> None:
    states = States()
    changes = {**CHANGES, **POISON, "runtime.non_finite": "skip_step", "runtime.accumulate_steps": parts}
    changes["hooks"] = [*CHANGES["hooks"], {"name": "ema", "decay": 0.9}]
    Trainer(tmp_path / "whole").train(tiny_task(changes, states))

    assert_equal(states.after[3], states.after[2])
    assert not torch.equal(
        states.after[4]["model/heads.main.classifier.bias"], states.after[3]["model/heads.main.classifier.bias"]
    )
    assert all(value.isfinite().all() for value in states.after[8].values())
    records = read_records(tmp_path / "whole/metrics.jsonl")
    assert [record["skipped_steps"] for record in records] == [1, 1]
    with pytest.raises(Stopped):
        Trainer(tmp_path / "broken").train(tiny_task(changes, SignalAt("train", 0, 3)))
    again = States()
    Trainer(tmp_path / "broken", resume=True).train(tiny_task(changes, again))
    assert_equal(again.after[8], states.after[8])
    for name in ("metrics.jsonl", "non_finite.jsonl"):
        assert read_records(tmp_path / "broken" / name) == read_records(tmp_path / "whole" / name)


def test_a_gradient_that_is_not_finite_counts_although_the_loss_is(tmp_path: Path) -> None:
    states = States()
    hooks = [*CHANGES["hooks"], {"name": "log", "every": 1, "groups": True}]
    changes = {**CHANGES, "runtime.non_finite": "skip_step", "optimizer.clip_norm": 1.0, "hooks": hooks}
    Trainer(tmp_path).train(tiny_task(changes, states, InfiniteGradient(3)))

    assert_equal(states.after[3], states.after[2])
    norms = [record["gradient_norm"] for record in read_records(tmp_path / "steps.jsonl")]
    assert [norm is None for norm in norms[:4]] == [False, False, True, False]
    (record,) = told(tmp_path)
    assert 0 < record["loss"] < 10
    assert record["step"] == 3


def test_a_run_that_never_learns_ends(tmp_path: Path) -> None:
    changes = {**CHANGES, "runtime.non_finite": "skip_step", "runtime.non_finite_limit": 3}
    changes["dataset.train.transforms"] = [{"name": "poison", "sample": i} for i in range(SAMPLES)]

    with pytest.raises(NonFiniteError, match=r"step 3, .*3 steps in a row.*non_finite_limit"):
        Trainer(tmp_path).train(tiny_task(changes))

    assert [record["action"] for record in told(tmp_path)] == ["skip_step", "skip_step", "stop"]


@pytest.mark.parametrize("every_steps", [2, 8])
def test_a_run_goes_back_to_its_newest_checkpoint_or_its_start_and_leaves_the_samples_out(
    every_steps: int, tmp_path: Path
) -> None:
    hooks = [
        {"name": "checkpoint", "every_steps": every_steps, "every_epochs": 9, "keep": 9},
        {"name": "log", "every": 1},
    ]
    changes = {**CHANGES, **POISON, "hooks": hooks, "runtime.non_finite": "rollback"}
    whole = tiny_task(changes)
    Trainer(tmp_path / "whole").train(whole)

    order = TrainOrder(SAMPLES, BATCH, seed=0)
    bad = order.batch(0, 2)
    after = seen[seen.index(f"train {bad[-1]}") + 1 :]
    steps_again = 8 - every_steps % 8
    assert len(after) == steps_again * BATCH
    assert set(after).isdisjoint(names(bad))
    assert [(r["step"], r["action"], r["samples"]) for r in told(tmp_path / "whole")] == [(3, "rollback", names(bad))]
    assert [r["step"] for r in read_records(tmp_path / "whole/steps.jsonl")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert read_records(tmp_path / "whole/metrics.jsonl")[-1]["rollbacks"] == 1
    with pytest.raises(Stopped):
        Trainer(tmp_path / "broken").train(tiny_task(changes, SignalAt("train", 1, 1)))
    resumed = tiny_task(changes)
    Trainer(tmp_path / "broken", resume=True).train(resumed)
    assert_equal(tensors_of(resumed), tensors_of(whole))
    for name in ("metrics.jsonl", "non_finite.jsonl", "steps.jsonl"):
        assert read_records(tmp_path / "broken" / name) == read_records(tmp_path / "whole" / name)


def test_going_back_does_not_help_a_run_whose_steps_are_to_blame(tmp_path: Path) -> None:
    changes = {**CHANGES, "runtime.non_finite": "rollback", "runtime.non_finite_limit": 1}

    with pytest.raises(NonFiniteError, match="went back 1 times before"):
        Trainer(tmp_path).train(tiny_task(changes, InfiniteGradient(3)))

    assert [record["action"] for record in told(tmp_path)] == ["rollback", "stop"]
    newest, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert newest == tmp_path / "checkpoints/step-2"


def in_both(folder: Path) -> None:
    TRANSFORMS.register("poison")(Poison)
    for policy in ("skip_step", "rollback", "stop"):
        states = States()
        of_one = {"skip_step": InfiniteGradient(3), "rollback": SignalAt("val", 9, 9), "stop": InfiniteGradient(3)}
        changes = {**CHANGES, "num_epochs": 1, **(POISON if policy == "rollback" else {})}
        task = tiny_task({**changes, "runtime.non_finite": policy}, states, of_one[policy])
        expected = NonFiniteError if distributed.is_primary() else distributed.PeerError
        with pytest.raises(expected) if policy == "stop" else contextlib.nullcontext() as raised:
            Trainer(folder / policy).train(task)
        assert raised is None or getattr(raised.value, "exit_code", 0) == 3
        if policy == "skip_step":
            assert_equal(states.after[3], states.after[2])
        own = torch.cat([p.detach().flatten() for p in task.model.parameters()])
        assert own.isfinite().all()
        assert torch.equal(*distributed.gather_over_processes(own))


def test_what_one_process_finds_all_processes_do(tmp_path: Path) -> None:
    in_two_processes(in_both, tmp_path)

    batch = set(names(TrainOrder(SAMPLES, BATCH, seed=0).batch(0, 2)))
    for policy in ("skip_step", "rollback", "stop"):
        (record, *others) = told(tmp_path / policy)
        assert (record["step"], record["action"], set(record["samples"])) == (3, policy, batch)
        assert others == []
    newest, _ = newest_checkpoint(tmp_path / "stop/checkpoints")
    assert newest == tmp_path / "stop/checkpoints/step-2"


# -- devices for which one would have to wait --------------------------------------------------------------------------


@pytest.fixture
def far_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU, as if to read a number from it meant to wait: as on a GPU."""

    def started(engine: Engine, *arguments: Any) -> None:
        START(engine, *arguments)
        policy = engine.runtime.non_finite
        engine.guard = non_finite.StepGuard(policy, engine.device, knows_at_once=False)

    monkeypatch.setattr(Engine, "start", started)


@pytest.mark.parametrize("policy", ["stop", "skip_step", "rollback"])
def test_a_device_is_asked_late_and_the_run_is_the_same(policy: str, far_device: None, tmp_path: Path) -> None:
    changes = {**CHANGES, **POISON, "optimizer.name": "sgd", "runtime.non_finite": policy}
    changes["hooks"] = [*CHANGES["hooks"], {"name": "ema", "decay": 0.9}]
    late = tiny_task(changes)
    with pytest.raises(NonFiniteError) if policy == "stop" else contextlib.nullcontext():
        Trainer(tmp_path / "late").train(late)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "start", START)
        at_once = tiny_task(changes)
        with pytest.raises(NonFiniteError) if policy == "stop" else contextlib.nullcontext():
            Trainer(tmp_path / "at once").train(at_once)

    if policy != "stop":  # there the weights of the run's end are not used
        assert_equal(tensors_of(late), tensors_of(at_once))
        assert late.engine.averaging is not None
        assert at_once.engine.averaging is not None
        assert late.engine.averaging.num_steps == at_once.engine.averaging.num_steps
    for name in ("metrics.jsonl", "non_finite.jsonl"):
        both = [tmp_path / run / name for run in ("late", "at once")]
        assert [path.exists() for path in both] in ([True, True], [False, False])
        assert not both[0].exists() or read_records(both[0]) == read_records(both[1])
    newest = [newest_checkpoint(tmp_path / run / "checkpoints")[0] for run in ("late", "at once")]
    assert newest[0] is not None
    assert newest[1] is not None
    assert newest[0].name == newest[1].name
    assert (newest[0] / "model.safetensors").read_bytes() == (newest[1] / "model.safetensors").read_bytes()


# -- float16 -----------------------------------------------------------------------------------------------------------


def test_gradients_that_are_not_finite_at_any_scale_are_not_searched_for_ever(tmp_path: Path) -> None:
    class AtEveryStep(InfiniteGradient):
        def __init__(self) -> None:
            super().__init__(0)

        def on_phase_start(self, task: WatchedTask) -> None:
            assert isinstance(task, SegmentationTask)
            task.engine.precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            task.model.heads["main"].classifier.bias.register_hook(lambda gradient: gradient * float("inf"))

    changes = {**CHANGES, "runtime.precision": "float16"}
    with pytest.raises(NonFiniteError, match=r"step 3, .*gradients"):  # scales of 4, 2, 1
        Trainer(tmp_path).train(tiny_task(changes, AtEveryStep()))


# -- what a checkpoint keeps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        [],
        {},
        {"left_out": [99]},
        {"left_out": [1]},
        {"left_out": [1, 1], "rollbacks": 1},
        {"left_out": [1, 1, 1], "rollbacks": 1},
        {"skipped": 7},
        {"skipped": -1},
    ],
    ids=str,
)
def test_a_state_that_no_run_saves_is_an_error_of_the_file(
    state: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from run_faults import hashes_made_right

    config = write_config(tmp_path, {**CHANGES, "num_epochs": 1})
    run = tmp_path / "run"
    assert main([str(config), "--output", str(run)]) == 0
    path = run / "checkpoints/step-4/state.json"
    values = json.loads(path.read_text())
    values["non_finite"] = {**values["non_finite"], **state} if state else state
    path.write_text(json.dumps(values))
    hashes_made_right(path.parent)

    assert main([str(config), "--output", str(run), "--resume"]) == 2
    assert "state.json: non_finite" in capsys.readouterr().err
