"""A run that was stopped, however that happened, and then continued is the run that was not."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from classyseg.checkpoint import newest_checkpoint, problem_of
from classyseg.cli.train import main
from classyseg.config import ConfigError
from classyseg.rng import seed_everything
from classyseg.structures import Sample
from classyseg.tasks import SegmentationTask
from classyseg.trainer import Stopped, Trainer
from runs import DISK_SECONDS, LIMIT, Command, SignalAt, read_records, run_command, tiny_config, tiny_task, write_config

LAST_STEP = 18
HOOKS = [{"name": "checkpoint", "every_steps": 2, "keep": 2}, {"name": "log", "every": 1}]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), {"hooks": HOOKS})


@pytest.fixture(scope="module")
def reference(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference")
    assert run_command(["--config", config, "--output", folder / "run"], folder / "log") == 0
    return folder / "run"


def assert_same_run(folder: Path, reference: Path) -> None:
    for name in ("model.safetensors", "optimizer.safetensors"):
        found, expected = (root / f"checkpoints/step-{LAST_STEP}" / name for root in (folder, reference))
        assert found.read_bytes() == expected.read_bytes(), name
    for name in ("metrics.jsonl", "steps.jsonl"):
        assert read_records(folder / name) == read_records(reference / name), name


def last_step(folder: Path) -> int:
    path = folder / "steps.jsonl"
    return read_records(path)[-1]["step"] if path.exists() and path.stat().st_size else 0


def half_written(folder: Path) -> list[Path]:
    return list(folder.glob("checkpoints/step-*.tmp-*"))


def stop(changes: dict[str, Any], folder: Path, *moment: Any, resume: bool = False) -> int:
    """Trains in this process until a signal at `moment` ends it; returns the exit code."""
    with pytest.raises(Stopped) as stopped:
        Trainer(folder, resume=resume).train(tiny_task({"hooks": HOOKS, **changes}, SignalAt(*moment)))
    return stopped.value.exit_code


def finish(changes: dict[str, Any], folder: Path) -> None:
    Trainer(folder, resume=True).train(tiny_task({"hooks": HOOKS, **changes}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "asynchronous"),
    [((0, 0, 0, 0, 0, 0), False), ((0, 2, 1, 0, 2, 1), True)],
    ids=["same workers", "other workers, and a thread that writes"],
)
def test_a_run_killed_at_five_moments_ends_bitwise_as_if_it_had_not_been(
    workers: Sequence[int], asynchronous: bool, config: Path, reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    hooks = f"hooks={json.dumps([{**HOOKS[0], 'asynchronous': asynchronous}, HOOKS[1]])}"
    moments: list[Callable[[], bool]] = [
        lambda: last_step(folder) >= 1,  # before the first checkpoint
        lambda: last_step(folder) >= 5,
        lambda: bool(half_written(folder)) and last_step(folder) >= 8,
        lambda: last_step(folder) == 12,  # around the evaluation of the second epoch
        lambda: last_step(folder) >= 15,
    ]
    for moment, count in zip(moments, workers, strict=False):
        arguments = ["--config", config, "--output", folder, "--resume", f"runtime.workers={count}", hooks]
        # A small checkpoint is written in no time, which leaves none to kill the run in.
        command = Command(arguments, tmp_path / "log", {DISK_SECONDS: 0.01})
        command.signal_when(signal.SIGKILL, moment)
        assert command.wait() == -signal.SIGKILL
    assert last_step(folder) < LAST_STEP

    arguments = ["--config", config, "--output", folder, "--resume", f"runtime.workers={workers[-1]}"]
    assert run_command(arguments, tmp_path / "log") == 0

    assert_same_run(folder, reference)
    assert half_written(folder) == []


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_exits_143(config: Path, reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    script = Path(__file__).parents[1] / "classy_train.py"
    launch = [sys.executable, script] if script.exists() else [sys.executable, "-m", "classyseg", "train"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*launch, "--config", config, "--output", folder, "runtime.workers=1"], stdout=log, stderr=log
        )
    while last_step(folder) < 3 and process.poll() is None:
        time.sleep(0.005)  # a busy wait would take a core from the processes of other tests
    process.send_signal(signal.SIGTERM)

    assert process.wait(LIMIT) == 143, (tmp_path / "log").read_text()
    newest, problems = newest_checkpoint(folder / "checkpoints")
    assert newest is not None
    assert newest.name == f"step-{last_step(folder)}"
    assert problems == []
    finish({}, folder)
    assert_same_run(folder, reference)


@pytest.mark.parametrize("hooks", [HOOKS, HOOKS[1:]], ids=["saved before", "no checkpoint hook"])
def test_sigterm_in_evaluation_saves_and_the_evaluation_is_done_again(
    hooks: list[Any], reference: Path, tmp_path: Path
) -> None:
    assert stop({"hooks": hooks}, tmp_path, "val", 1, 3) == 143
    assert [record["phase"] for record in read_records(tmp_path / "metrics.jsonl")] == ["train"]
    assert problem_of(tmp_path / "checkpoints/step-6") is None

    finish({}, tmp_path)

    assert_same_run(tmp_path, reference)


def test_sigint_exits_130(tmp_path: Path) -> None:
    assert stop({}, tmp_path, "train", 0, 1, signal.SIGINT) == 130
    assert problem_of(tmp_path / "checkpoints/step-1") is None


def test_two_stops_in_one_epoch_and_one_at_its_last_step_change_nothing(reference: Path, tmp_path: Path) -> None:
    stop({}, tmp_path, "train", 1, 1)
    stop({}, tmp_path, "train", 1, 3, resume=True)
    stop({}, tmp_path, "train", 1, 6, resume=True)

    finish({}, tmp_path)

    assert_same_run(tmp_path, reference)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stop({}, folder, "train", 0, 3)
    return folder


@pytest.mark.parametrize(
    ("override", "words"),
    [("optimizer.lr=0.03", ("optimizer.lr", "0.02", "0.03")), ("batch_size=16", ("batch_size", "8", "16"))],
)
def test_resume_with_another_experiment_is_refused_naming_both_values(
    override: str, words: Sequence[str], config: Path, stopped_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main(["--config", str(config), "--output", str(stopped_run), "--resume", override])

    assert code == 2
    message = next(line for line in capfd.readouterr().err.splitlines() if line.startswith(words[0]))
    assert all(word in message for word in words)


def test_a_used_folder_is_refused_without_resume(
    config: Path, stopped_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config), "--output", str(stopped_run)]) == 2
    assert "--resume" in capfd.readouterr().err


def test_other_hooks_and_workers_are_accepted_and_change_nothing(reference: Path, tmp_path: Path) -> None:
    stop({}, tmp_path, "train", 0, 3)

    finish({"hooks": [*HOOKS, "progress_bar"], "runtime.workers": 1}, tmp_path)

    assert_same_run(tmp_path, reference)


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop({}, tmp_path, "train", 1, 3)
    damaged = tmp_path / "checkpoints/step-9/model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])

    finish({}, tmp_path)

    assert str(damaged) in caplog.text
    assert_same_run(tmp_path, reference)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_with_strict_resume_a_damaged_newest_checkpoint_is_an_error_and_nothing_changes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"num_epochs": 1, "dataset.val": None, "hooks": [{"name": "checkpoint", "every_steps": 1}]}
    folder = tmp_path / "run"
    stop(short, folder, "train", 0, 2)
    (damaged := folder / "checkpoints/step-2" / name).write_bytes(damaged.read_bytes()[:-1] + b"x")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    config = str(write_config(tmp_path, short))

    assert main([config, "--output", str(folder), "--strict-resume"]) == 2

    told = capsys.readouterr().err
    assert all(word in told for word in (str(damaged), "--strict-resume", "step-1"))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (damaged.parent.parent / "step-1/manifest.json").unlink()
    with pytest.raises(ConfigError, match="there is no other"):
        Trainer(folder, strict_resume=True).train(tiny_task(short))


def test_what_is_saved_after_a_damaged_checkpoint_is_kept_and_the_damaged_one_set_aside(tmp_path: Path) -> None:
    hooks = [{"name": "checkpoint", "keep": 1, "best": "mean_iou"}]
    stop({"hooks": hooks}, tmp_path, "train", 1, 1)
    (tmp_path / "checkpoints/step-9.damaged").mkdir()  # of an earlier time
    shutil.copytree(tmp_path / "checkpoints/step-7", tmp_path / "checkpoints/step-9")
    (tmp_path / "checkpoints/step-9/state.json").unlink()
    (tmp_path / "checkpoints/BEST").write_text("step-9 2.0\n", encoding="utf-8")

    stop({"hooks": [{**hooks[0], "every_steps": 1}]}, tmp_path, "train", 1, 2, resume=True)

    root = tmp_path / "checkpoints"
    assert (root / "LATEST").read_text(encoding="utf-8") == "step-8"
    assert sorted(path.name for path in root.iterdir()) == ["BEST", "LATEST", "step-6", "step-8", "step-9.damaged"]
    assert (root / "BEST").read_text(encoding="utf-8").split()[0] == "step-6"  # the best of those that are left
    assert (root / "step-9.damaged/manifest.json").is_file()


def test_a_run_goes_on_without_the_file_that_it_started_from(tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    torch.manual_seed(5)
    torch.save(tiny_task().model.state_dict(), weights)
    changes = {"model.weights": {"source": str(weights), "strict": True}}
    Trainer(tmp_path / "whole").train(tiny_task({"hooks": HOOKS, **changes}))
    stop(changes, tmp_path / "stopped", "train", 0, 3)
    weights.unlink()

    finish(changes, tmp_path / "stopped")

    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"w\.pth'.*no file"):
        Trainer(tmp_path / "new", resume=True).train(tiny_task({"hooks": HOOKS, **changes}))


def test_resuming_a_finished_run_changes_nothing(reference: Path, tmp_path: Path) -> None:
    stop({}, tmp_path, "train", 2, 5)
    finish({}, tmp_path)

    finish({}, tmp_path)

    assert_same_run(tmp_path, reference)


def test_resume_in_an_empty_folder_starts_from_the_beginning(reference: Path, tmp_path: Path) -> None:
    finish({}, tmp_path)

    assert_same_run(tmp_path, reference)


def test_a_second_process_is_kept_out_of_the_folder_of_a_running_one(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    first = Command(["--config", config, "--output", folder, "num_epochs=100000"], tmp_path / "log")
    refused = []

    def second() -> bool:
        if last_step(folder) >= 1:
            refused.append(main(["--config", str(config), "--output", str(folder), "--resume"]))
        return bool(refused)

    while not second():
        time.sleep(0.02)
    first.signal_when(signal.SIGKILL, lambda: True)
    first.wait()

    assert refused == [2]
    assert str(first.pid) in capfd.readouterr().err


class DrawsFromEverything(nn.Module):
    """Noise from every global generator: what a plugin's head may do."""

    def forward(self, x: Tensor) -> Tensor:
        noise = random.random() + np.random.rand() + torch.rand(()).item() + torch.empty(1).normal_().item()
        return x * (1 + noise) if self.training else x


class NoisyTask(SegmentationTask):
    """Its model also has tied parameters: two names of one storage."""

    def prepare(self) -> None:
        self.model.heads["main"].dropout = DrawsFromEverything()
        block = self.model.get_submodule("trunk_output.block1.block1-0.f")
        block.c[0].weight = block.a[0].weight
        super().prepare()

    def load_batches(self) -> Iterator[Sample]:
        for batch in super().load_batches():
            yield batch
            _ = torch.rand(()) + np.random.rand() + random.random()  # draws between the steps must not matter either


def test_components_that_draw_from_the_global_generators_and_tied_parameters_resume_exactly(tmp_path: Path) -> None:
    def task() -> NoisyTask:
        config = tiny_config({"num_epochs": 1, "hooks": HOOKS, "runtime.channels_last": False})
        made = NoisyTask.from_config(config)
        made.config = config
        return made

    uninterrupted = task()
    Trainer().train(uninterrupted)
    first = task()
    first.hooks = [*first.hooks, SignalAt("train", 0, 3)]
    with pytest.raises(Stopped):
        Trainer(tmp_path).train(first)
    seed_everything(99)
    resumed = task()
    Trainer(tmp_path, resume=True).train(resumed)

    expected = uninterrupted.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.model.state_dict().items())
    block = resumed.model.get_submodule("trunk_output.block1.block1-0.f")
    assert block.c[0].weight is block.a[0].weight
