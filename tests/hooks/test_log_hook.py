"""The record of training steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from classyseg.hooks import LogHook
from classyseg.hooks.memory_use import host_bytes
from classyseg.structures import PhaseTime
from runs import FakeTask, in_two_processes, read_records


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


def test_memory_counts_what_the_process_and_its_children_hold(tmp_path: Path) -> None:
    before = host_bytes()
    held = torch.ones(30_000_000)
    child = subprocess.Popen([sys.executable, "-c", "x = bytes(range(256)) * 250_000; print(flush=True); input()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    task = FakeTask(tmp_path)
    task.steps(LogHook(every=1, memory=True), 1)
    child.communicate(b"\n")

    (record,) = read_records(tmp_path / "steps.jsonl")
    assert record["memory"]["device"] is None
    grown = record["memory"]["host"] - before
    # What the allocator held free before, and what an interpreter takes, is a part of it.
    assert 0.8 * (held.nbytes + 64_000_000) < grown < 2 * (held.nbytes + 64_000_000)


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
