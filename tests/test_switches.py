"""What a run sets for the whole process is as before, once it has ended, and the next run is a fresh one."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from classyseg import switches
from classyseg.cli.main import main as classyseg_main
from classyseg.cli.train import main
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.trainer import Stopped, Trainer
from runs import SignalAt, read_records, run_command, tiny_task, write_config

SMALL = {"num_epochs": 1, "dataset.train.num_samples": 16, "dataset.val.num_samples": 2}


def state() -> dict[str, Any]:
    """What a second run in this process finds."""
    root = logging.getLogger()
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "precision": (switches.float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision),
        "tf32": (torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.rnn.fp32_precision),
        "anomaly": torch.is_anomaly_enabled(),
        "dtype": torch.get_default_dtype(),
        "environment": {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR_")},
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "logging": (root.level, list(root.handlers)),
        "random": (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()),
    }


class Switches(ClassyHook):
    """What a plugin's hook may set."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails

    def on_step(self, task: WatchedTask) -> None:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
        torch.autograd.set_detect_anomaly(True)
        if self.fails:
            raise RuntimeError("as asked")


def runs_to_its_end() -> None:
    Trainer().train(tiny_task({**SMALL, "runtime.deterministic": True, "runtime.threads": 2}, Switches()))


def fails() -> None:
    with pytest.raises(RuntimeError, match="as asked"):
        Trainer().train(tiny_task({**SMALL, "runtime.deterministic": True}, Switches(fails=True)))


def is_stopped() -> None:
    with pytest.raises(Stopped):
        Trainer().train(
            tiny_task({**SMALL, "runtime.deterministic": True, "runtime.threads": 2}, SignalAt("train", 0, 1))
        )


@pytest.mark.parametrize("run", [runs_to_its_end, fails, is_stopped])
def test_a_run_leaves_the_switches_as_they_were_however_it_ends(run: Callable[[], None]) -> None:
    tiny_task(SMALL)  # building one draws the weights from the global generator
    before = state()
    del before["random"]

    run()

    after = state()
    assert {name: after[name] for name in before} == before
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("loss", ["cross_entropy", "ohem_cross_entropy"])
def test_a_process_that_sets_precision_by_the_newer_names_trains(loss: str) -> None:
    """torch refuses the older names then, also to whoever only asks."""
    backends = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend, precision in zip(backends, ("tf32", "ieee"), strict=True):
            backend.fp32_precision = precision
        Trainer().train(tiny_task({**SMALL, "loss": {"name": loss}}))
        assert [backend.fp32_precision for backend in backends] == ["tf32", "ieee"]
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def test_the_commands_leave_the_switches_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLASSYSEG_DATA", "before")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    changes = {**SMALL, "runtime.deterministic": True, "runtime.threads": 2}
    config = str(write_config(tmp_path, changes))
    before = state()

    assert main([config, "--output", str(tmp_path / "one"), "--data-root", str(tmp_path)]) == 0
    assert main([config, "--check", "--data-root", str(tmp_path)]) == 0
    assert classyseg_main(["train", config, "--output", str(tmp_path / "one"), "--data-root", str(tmp_path)]) == 2

    assert state() == before


def test_the_generators_stand_where_they_stood_before_the_block() -> None:
    expected = random.random, np.random.rand, lambda: torch.rand(()).item()
    switches_before = [draw() for draw in expected]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()

    with switches.kept():
        for draw in expected:
            draw()

    found = [draw() for draw in expected]
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    assert found == [draw() for draw in expected] != switches_before


RUNS: dict[str, dict[str, Any]] = {
    "one": {"seed": 1, "runtime.deterministic": True, "runtime.threads": 2, "runtime.precision": "bfloat16"},
    "other": {"seed": 2, "optimizer": {"name": "adamw", "lr": 0.001}, "runtime.workers": 1, "runtime.threads": None},
}
"""Two runs that differ in what holds for a process; the second takes what it finds."""


def arguments(name: str, folder: Path) -> list[object]:
    (folder / name).mkdir(exist_ok=True)
    hooks = ["checkpoint", {"name": "log", "every": 1}]
    config = write_config(folder / name, {**SMALL, "hooks": hooks, **RUNS[name]})
    return [config, "--output", folder / name / "run", "--data-root", folder / name]


def contents(run: Path) -> dict[str, Any]:
    """All that a run leaves but for times."""
    tensors = {path.name: path.read_bytes() for path in run.glob("checkpoints/step-2/*.safetensors")}
    assert len(tensors) == 2
    records = {name: read_records(run / name) for name in ("metrics.jsonl", "steps.jsonl")}
    return {**tensors, **records, "state": json.loads((run / "checkpoints/step-2/state.json").read_text())}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Each run in a process of its own."""
    folder = tmp_path_factory.mktemp("fresh")
    for name in RUNS:
        assert run_command(arguments(name, folder), folder / "log") == 0, (folder / "log").read_text()
    return {name: contents(folder / name / "run") for name in RUNS}


@pytest.mark.slow
@pytest.mark.parametrize("order", [("one", "other"), ("other", "one")], ids=" then ".join)
def test_two_runs_in_one_process_are_those_of_two_processes_bit_for_bit(
    order: tuple[str, str], fresh: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    for name in order:
        assert main([str(word) for word in arguments(name, tmp_path)]) == 0
        assert contents(tmp_path / name / "run") == fresh[name], name
