"""The record of training steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from classyseg.hooks import ClassyHook, LogHook, WatchedTask
from classyseg.structures import PhaseTime
from classyseg.tasks import SegmentationTask
from classyseg.trainer import Trainer
from runs import FakeTask, in_two_processes, read_records, tiny_task


def test_every_nth_training_step_is_recorded_and_no_test_batch(tmp_path: Path) -> None:
    hook, task = LogHook(every=4), FakeTask(tmp_path)

    task.steps(hook)
    task.end_phase(hook)
    task.steps(hook)
    task.end_phase(hook)
    task.steps(hook)

    records = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [(record["step"], record["epoch"]) for record in records] == [(4, 1), (8, 1), (12, 2), (16, 2), (20, 2)]
    assert records[0] == {
        "step": 4,
        "epoch": 1,
        "loss": 0.5,
        "lr": 0.1,
        "samples_per_second": 20.0,
        "data_wait": 0.25,
    }


def test_a_loss_that_is_no_number_is_recorded_as_null(tmp_path: Path) -> None:
    task = FakeTask(tmp_path)
    task.last_loss = torch.tensor(float("nan"))

    task.steps(LogHook(every=1), 1)

    assert json.loads((tmp_path / "steps.jsonl").read_text())["loss"] is None


def test_without_a_run_folder_nothing_is_written() -> None:
    FakeTask(None).steps(LogHook(every=1))


def test_throughput_is_that_of_the_steps_since_the_record_before(tmp_path: Path) -> None:
    hook, task = LogHook(every=2, throughput=True), FakeTask(tmp_path)
    hook.on_phase_start(task)
    for seconds, waited, samples in ((1.0, 0.25, 8), (2.0, 0.5, 16), (3.0, 2.0, 24), (6.0, 2.5, 32)):
        task.phase_time = PhaseTime(seconds, waited, samples)
        task.steps(hook, 1)

    first, second = (record["throughput"] for record in read_records(tmp_path / "steps.jsonl"))
    slowest = [part.pop("slowest_step_seconds") for part in (first, second)]
    assert first == {"samples_per_second": 8.0, "data_wait": 0.25, "step_seconds": 1.0}
    assert second == {"samples_per_second": 4.0, "data_wait": 0.5, "step_seconds": 2.0}
    assert all(0 < value < 1 for value in slowest)


HOLDS_AND_LOGS = """
import subprocess, sys
from pathlib import Path
import torch
from classyseg.hooks import LogHook
from classyseg.hooks.memory_use import host_bytes
from runs import FakeTask

before = host_bytes()
held = torch.ones(30_000_000)
child = subprocess.Popen([sys.executable, "-c", "x = bytes(range(256)) * 250_000; print(flush=True); input()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
FakeTask(Path(sys.argv[1])).steps(LogHook(every=1, memory=True), 1)
child.communicate(b"\\n")
print(before)
"""


def test_memory_counts_what_the_process_and_its_children_hold(tmp_path: Path) -> None:
    # In a process of its own: what other tests left in this one, and their children, may go at any moment.
    tests = Path(__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-c", HOLDS_AND_LOGS, str(tmp_path)], cwd=tests, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr

    (record,) = read_records(tmp_path / "steps.jsonl")
    assert record["memory"]["device"] is None
    grown, held = record["memory"]["host"] - int(ran.stdout), 120_000_000 + 64_000_000
    assert held < grown < held + 60_000_000, "more is what an interpreter takes"


@pytest.mark.gpu
def test_the_peak_of_a_gpu_is_that_of_torch(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    held = torch.ones(50_000_000, device=device)
    task = FakeTask(tmp_path)
    task.last_loss = held[0]
    task.steps(LogHook(every=1, memory=True), 1)

    (record,) = read_records(tmp_path / "steps.jsonl")
    assert held.nbytes <= record["memory"]["device"] == torch.cuda.max_memory_allocated(device)


def two_processes(folder: Path) -> None:
    task = FakeTask(folder if torch.distributed.get_rank() == 0 else None)
    hook = LogHook(every=1, throughput=True, memory=True)
    hook.on_phase_start(task)
    task.phase_time = PhaseTime(*((2.0, 0.5, 4), (1.0, 0.75, 6))[torch.distributed.get_rank()])
    task.last_loss = torch.tensor(float(torch.distributed.get_rank()))
    task.steps(hook, 1)


def test_two_processes_give_one_record_of_the_whole_job(tmp_path: Path) -> None:
    in_two_processes(two_processes, tmp_path)

    (record,) = read_records(tmp_path / "steps.jsonl")
    assert record["throughput"]["samples_per_second"] == 5.0
    assert record["throughput"]["data_wait"] == 0.375
    assert record["memory"]["host"] > 10_000_000


class SeesGradients(ClassyHook):
    """Keeps the norms by hand: of all gradients, and of those and of the weights of the head's matrices."""

    def __init__(self) -> None:
        self.norms: list[tuple[float, float, float]] = []

    def on_step(self, task: WatchedTask) -> None:
        if task.progress.phase != "train":
            return
        assert isinstance(task, SegmentationTask)
        named = {name: parameter for name, parameter in task.model.named_parameters() if parameter.grad is not None}
        matrices = [value for name, value in named.items() if name.startswith("heads.") and value.dim() > 1]
        self.norms.append(tuple(
            float(torch.cat([value.detach().double().flatten() for value in values]).norm())
            for values in ([p.grad for p in named.values()], [p.grad for p in matrices], [*matrices])
        ))  # fmt: skip


GROUPS = {"hooks": [{"name": "log", "every": 2, "groups": True}], "num_epochs": 1, "dataset.train.num_samples": 32}
OPTIMIZER = {
    "name": "sgd",
    "lr": 0.02,
    "weight_decay": 0.01,
    "groups": [{"match": "heads.*", "lr_factor": 10}],
    "schedule": "constant",
    "schedules": {"momentum": {"name": "linear", "start_factor": 1.0, "end_factor": 0.5}},
}


def test_groups_tell_their_rates_and_the_norms_of_their_gradients(tmp_path: Path) -> None:
    sees = SeesGradients()
    Trainer(tmp_path).train(tiny_task({**GROUPS, "optimizer": {**OPTIMIZER, "decay_vectors": False}}, sees))

    _, record = read_records(tmp_path / "steps.jsonl")
    assert list(record["groups"]) == ["heads.*", "heads.*, vectors", "*", "*, vectors"]
    head = record["groups"]["heads.*"]
    assert (head["lr"], head["weight_decay"]) == (pytest.approx(0.2), 0.01)
    assert head["momentum"] == pytest.approx(0.9 * (1 - 0.5 * 3 / 4))  # before the last of 4 steps
    assert record["groups"]["heads.*, vectors"]["weight_decay"] == 0
    found = (record["gradient_norm"], head["gradient_norm"], head["weight_norm"])
    assert found == pytest.approx(sees.norms[3], rel=1e-5)


def test_the_norm_of_all_gradients_is_that_before_clipping(tmp_path: Path) -> None:
    sees = SeesGradients()
    for name, clip in (("plain", None), ("clipped", 1e-3)):
        optimizer = {**OPTIMIZER, "clip_norm": clip}
        hooks = [{"name": "log", "every": 1, "groups": True}]
        changes = {**GROUPS, "num_epochs": None, "num_steps": 1, "optimizer": optimizer, "hooks": hooks}
        Trainer(tmp_path / name).train(tiny_task(changes, sees))

    (clipped,) = read_records(tmp_path / "clipped/steps.jsonl")
    norms = [group["gradient_norm"] for group in clipped["groups"].values()]
    assert sum(norm**2 for norm in norms) ** 0.5 == pytest.approx(1e-3, rel=1e-3)
    assert clipped["gradient_norm"] == pytest.approx(sees.norms[0][0], rel=1e-5)
