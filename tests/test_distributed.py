"""Several processes give the numbers of one, stop together and fail together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from classyseg.checkpoint import newest_checkpoint
from classyseg.trainer import Trainer
from runs import LIMIT, Command, read_records, run_command, start_job, tiny_task, write_config

pytestmark = pytest.mark.slow

GROUP_NORM = {"name": "group", "groups": 8}
BATCH_INDEPENDENT: dict[str, Any] = {
    "num_epochs": 1,
    "model.norm": GROUP_NORM,
    "model.heads.main.norm": GROUP_NORM,
    "model.heads.main.dropout": 0.0,
    "hooks": [{"name": "checkpoint"}, {"name": "log", "every": 1}],
}


def wait_for_all(commands: list[Command]) -> list[int]:
    return [command.wait() for command in commands]


def run_job(changes: Mapping[str, Any], folder: Path, processes: int, *overrides: str) -> Path:
    """Runs the changed tiny config on `processes` processes to its end; returns the run's folder."""
    arguments = ["--config", write_config(folder, changes), "--output", folder / "run", *overrides]
    if processes == 1:
        codes = [run_command(arguments, folder / "log")]
    else:
        codes = wait_for_all(start_job(arguments, folder, processes))
    assert set(codes) == {0}, "".join(path.read_text() for path in folder.glob("*log"))
    return folder / "run"


@contextmanager
def torchrun(arguments: list[object], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command line under a real `torchrun` with two processes, which is ended with the block."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "classyseg"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen([*launch, "train", *map(str, arguments)], stdout=file, stderr=file, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_job(BATCH_INDEPENDENT, tmp_path_factory.mktemp("one"), 1)


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_records(run / "steps.jsonl")]


@pytest.mark.parametrize(
    ("processes", "changes"),
    [
        (2, {}),
        (2, {"runtime.accumulate_steps": 2}),
        (1, {"runtime.accumulate_steps": 2}),
        (2, {"runtime.workers": 1}),
    ],
    ids=["two processes", "two processes that accumulate", "one process that accumulates", "two with workers"],
)
def test_training_losses_equal_those_of_one_process(
    processes: int, changes: dict[str, Any], one_process: Path, tmp_path: Path
) -> None:
    found = run_job({**BATCH_INDEPENDENT, **changes}, tmp_path, processes)

    assert len(losses(found)) == 6
    assert losses(found) == pytest.approx(losses(one_process), rel=1e-5)


def batch_norm_runs(changes: Mapping[str, Any], folder: Path, *of_two: str) -> list[Path]:
    """The run's folders of one process, and of two, which get the overrides `of_two`, with dropout off."""
    # Few values, as those of maps of 1 x 1 pixels, or large steps, and batch norm would make much of rounding.
    small_steps = {"model.output_stride": 8, "optimizer.lr": 0.005, "num_epochs": 1}
    runs = []
    for name, processes, overrides in (("one", 1, ()), ("two", 2, of_two)):
        (folder / name).mkdir()
        all_changes = {"hooks": BATCH_INDEPENDENT["hooks"], **small_steps, **changes}
        runs.append(run_job(all_changes, folder / name, processes, *overrides))
    return runs


@pytest.mark.parametrize(
    "changes",
    [
        {"model.heads.main.dropout": 0.0, "runtime.accumulate_steps": 2},
        {"model.heads.main": {"name": "encnet", "blocks": ["stage3"], "dropout": 0.0}},
    ],
    ids=["parts of the batch", "codes of a head"],
)
def test_batch_norm_sees_the_whole_batch_on_any_number_of_processes(changes: dict[str, Any], tmp_path: Path) -> None:
    one, two = batch_norm_runs(changes, tmp_path)

    assert len(losses(two)) == 6
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    whole, shared = (read_records(run / "metrics.jsonl")[-1] for run in (one, two))
    assert shared["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    whole, shared = (load_file(run / "checkpoints/step-6/model.safetensors") for run in (one, two))
    for key in [key for key in whole if "running" in key]:
        torch.testing.assert_close(shared[key], whole[key], rtol=1e-3, atol=5e-5)


def test_without_synchronisation_batch_norm_sees_each_processes_share(tmp_path: Path) -> None:
    one, two = batch_norm_runs({"model.heads.main.dropout": 0.0}, tmp_path, "runtime.sync_batch_norm=false")

    assert losses(two) != pytest.approx(losses(one), rel=1e-3)


def test_a_head_that_leaves_stages_unused_trains_on_two_processes(tmp_path: Path) -> None:
    changes = {**BATCH_INDEPENDENT, "model.heads.main.blocks": ["stage1"]}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()

    one, two = (run_job(changes, tmp_path / name, count) for name, count in (("one", 1), ("two", 2)))

    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.parametrize("samples", [5, 1])
def test_confusion_matrices_are_equal_as_integers_for_any_number_of_samples(
    samples: int, one_process: Path, tmp_path: Path
) -> None:
    changes = {
        **BATCH_INDEPENDENT,
        "num_epochs": 0,
        "meters": ["confusion_matrix", "mean_iou"],
        "dataset.val.num_samples": samples,
        "model.weights": str(one_process / "checkpoints/step-6"),
    }
    records = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        records += read_records(run_job(changes, folder, processes) / "metrics.jsonl")

    one, two = records
    assert sum(map(sum, one["confusion_matrix"])) > 0
    assert two["confusion_matrix"] == one["confusion_matrix"]
    assert two["mean_iou"] == one["mean_iou"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-12)


def test_the_processes_stop_together_when_one_gets_sigterm_and_one_process_can_go_on(
    one_process: Path, tmp_path: Path
) -> None:
    arguments = ["--config", write_config(tmp_path, BATCH_INDEPENDENT), "--output", tmp_path / "run"]
    job = start_job(arguments, tmp_path)
    job[1].signal_when(signal.SIGTERM, lambda: (tmp_path / "run/steps.jsonl").exists())

    assert wait_for_all(job) == [143, 143]
    newest, problems = newest_checkpoint(tmp_path / "run/checkpoints")
    assert problems == []
    assert newest is not None
    assert newest.name == f"step-{len(losses(tmp_path / 'run'))}"
    Trainer(tmp_path / "run", resume=True).train(tiny_task(BATCH_INDEPENDENT))
    assert losses(tmp_path / "run") == pytest.approx(losses(one_process), rel=1e-5)


def test_sigterm_to_torchrun_saves_a_checkpoint(tmp_path: Path) -> None:
    arguments = ["--config", write_config(tmp_path, BATCH_INDEPENDENT), "--output", tmp_path / "run"]
    with torchrun([*arguments, "num_epochs=1000"], tmp_path / "log") as job:
        while not (tmp_path / "run/steps.jsonl").exists() and job.poll() is None:
            time.sleep(0.02)  # a busy wait would take the core that the processes start on
        job.send_signal(signal.SIGTERM)
        job.wait(LIMIT)

    log = (tmp_path / "log").read_text()
    assert "a checkpoint is saved" in log, log
    newest, problems = newest_checkpoint(tmp_path / "run/checkpoints")
    assert newest is not None
    assert newest.name == f"step-{len(losses(tmp_path / 'run'))}"
    assert problems == []


def test_a_batch_that_two_processes_cannot_share_is_refused_naming_the_nearest(tmp_path: Path) -> None:
    arguments = ["--config", write_config(tmp_path), "--output", tmp_path / "run", "batch_size=7"]
    job = start_job(arguments, tmp_path)

    assert wait_for_all(job) == [2, 2]
    assert "6 or 8" in job[0].text


def folder_with_a_wrong_mask(root: Path, wrong: int, count: int) -> dict[str, str]:
    """`count` images; the mask number `wrong`, which the look before the first step misses, holds an unknown label."""
    folders = {"images": root / "images", "masks": root / "masks"}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((32, 32, 3), 10 * i, np.uint8)).save(folders["images"] / f"{i:02d}.png")
        mask = np.full((32, 32), 77 if i == wrong else i % 2, np.uint8)
        Image.fromarray(mask).save(folders["masks"] / f"{i:02d}.png")
    return {name: str(folder) for name, folder in folders.items()}


def test_wrong_data_in_one_process_ends_a_torchrun_job_naming_the_file(tmp_path: Path) -> None:
    data = folder_with_a_wrong_mask(tmp_path / "data", wrong=3, count=16)
    changes = {
        "dataset.train": {"name": "folder", **data, "classes": ["a", "b"]},
        "dataset.val": None,
    }
    with torchrun(["--config", write_config(tmp_path, changes), "--output", tmp_path / "run"], tmp_path / "log") as job:
        code = job.wait(LIMIT)

    log = (tmp_path / "log").read_text()
    assert code != 0
    assert str(Path(data["masks"]) / "03.png") in log or str(Path(data["images"]) / "03.png") in log, log
    assert "77" in log
    assert log.count("error: ") == 1
    assert "RuntimeError" not in log  # of processes that lose the connection


def test_a_wrong_last_test_image_that_only_one_process_has_ends_both(tmp_path: Path) -> None:
    data = folder_with_a_wrong_mask(tmp_path / "data", wrong=14, count=15)  # one process has 8 images, the other 7
    dataset = {"name": "folder", **data, "classes": ["a", "b"]}
    config = write_config(tmp_path, {"num_epochs": 0, "batch_size": 2, "dataset": {"train": dataset, "val": dataset}})
    job = start_job(["--config", config, "--output", tmp_path / "run"], tmp_path)

    assert wait_for_all(job) == [2, 2]
    assert job[0].text.count("14.png: its mask holds the labels 77") == 1
    assert job[1].text == ""


def folder_that_holds_a_run(run: Path) -> None:
    run.mkdir()
    (run / "config.yaml").touch()


def folder_without_room_for_checkpoints(run: Path) -> None:
    run.mkdir()
    (run / "checkpoints").touch()


def nothing(run: Path) -> None: ...


@pytest.mark.parametrize(
    ("before", "arguments", "code", "message"),
    [
        (folder_that_holds_a_run, [], 2, "holds a run already; continue it with --resume"),
        (folder_without_room_for_checkpoints, ["--resume"], 2, "checkpoints: found a file; expected a folder"),
        (nothing, ["optimizer.lr=1e6", "optimizer.weight_decay=1e6"], 3, ": the training loss is "),
    ],
    ids=["a folder in use", "a file where the checkpoints go", "a loss that is no number"],
)
def test_what_only_one_process_finds_ends_all_and_one_says_why(
    before: Callable[[Path], None], arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    before(tmp_path / "run")
    config = write_config(tmp_path, {"hooks": [{"name": "checkpoint", "every_steps": 1}]})
    job = start_job(["--config", config, "--output", tmp_path / "run", *arguments], tmp_path)

    assert wait_for_all(job) == [code, code]
    assert message in job[0].text
    assert "rror" not in job[1].text
