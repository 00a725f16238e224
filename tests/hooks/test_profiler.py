"""A profile holds the steps that were asked for, once in a run, and leaves the run as it is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from classyseg.config import ConfigError
from classyseg.trainer import Stopped, Trainer
from runs import SignalAt, read_records, tiny_task

SMALL: dict[str, Any] = {"num_epochs": 2, "dataset.train.num_samples": 48, "dataset.val.num_samples": 1}


def profiled(folder: Path, *others: Any, resume: bool = False, hooks: Any = (), **options: int | bool) -> None:
    hook = {"name": "profiler", "wait": 2, "warmup": 1, "active": 2, **options}
    Trainer(folder, resume=resume).train(tiny_task({**SMALL, "hooks": [hook, *hooks]}, *others))


def names(folder: Path) -> list[str]:
    trace = json.loads(gzip.decompress((folder / "profile.json.gz").read_bytes()))
    return [event["name"] for event in trace["traceEvents"] if "name" in event]


def test_the_trace_has_the_active_steps_and_the_table_their_operations(tmp_path: Path) -> None:
    profiled(tmp_path)

    found = names(tmp_path)
    steps = {name for name in found if name.startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#1", "ProfilerStep#2"}  # after the one that warms up
    updates = [name for name in found if name.startswith("Optimizer.step#")]
    assert len(updates) == 2
    assert "aten::convolution" in (tmp_path / "profile.txt").read_text()
    assert {"profile.json.gz", "profile.txt"} <= set((tmp_path / ".files").read_text().split())


def test_a_phase_that_ends_before_gives_what_was_recorded_until_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiled(tmp_path / "part", wait=3, active=100)
    assert {name for name in names(tmp_path / "part") if name.startswith("ProfilerStep#")} >= {"ProfilerStep#1"}

    profiled(tmp_path / "none", wait=5, active=100)
    assert not (tmp_path / "none/profile.txt").exists()
    assert "before a step was recorded" in caplog.text


def test_a_resumed_run_is_profiled_once_and_trains_as_one_without(tmp_path: Path) -> None:
    Trainer(tmp_path / "plain").train(tiny_task({**SMALL, "hooks": ["checkpoint"]}))
    with pytest.raises(Stopped):
        profiled(tmp_path / "run", SignalAt("train", 1, 1), hooks=["checkpoint"])
    before = (tmp_path / "run/profile.json.gz").stat().st_mtime_ns
    profiled(tmp_path / "run", resume=True, hooks=["checkpoint"])

    assert (tmp_path / "run/profile.json.gz").stat().st_mtime_ns == before
    assert read_records(tmp_path / "run/metrics.jsonl") == read_records(tmp_path / "plain/metrics.jsonl")


@pytest.mark.parametrize("options", [{"active": 0}, {"warmup": 0}, {"wait": -1}, {"active": 10**6}])
def test_impossible_numbers_of_steps_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"hooks\[0\]\."):
        tiny_task({"hooks": [{"name": "profiler", **options}]})
