"""Whole runs learn from the same samples: with any number of workers and processes, and wherever they were stopped."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runs
from classyseg import distributed
from classyseg.structures import Sample
from classyseg.tasks import SegmentationTask
from classyseg.trainer import Stopped, Trainer

SAMPLES, BATCH, EPOCHS = 22, 4, 2
STEPS = SAMPLES // BATCH
MIX = {"name": "copy_paste", "probability": 0.5}
CROP = {"name": "random_scale_crop", "size": [24, 24]}
CHANGES: dict[str, Any] = {
    "num_epochs": EPOCHS,
    "batch_size": BATCH,
    "dataset.train.num_samples": SAMPLES,
    "dataset.train.transforms": [CROP, "horizontal_flip", MIX, "color_jitter"],
    "dataset.val.num_samples": 5,
}
"""The transforms draw from the generator of each sample, and take parts of other samples."""

Log = list[tuple[str, int, list[str]]]
"""For each batch: the phase, the step, and the digests of (name, image, mask) of its samples."""


def watched(log: Log, *hooks: Any, **changes: Any) -> SegmentationTask:
    """The task of the test's config, which notes in `log` what each step gets."""
    task = runs.tiny_task({**CHANGES, **changes}, *hooks)

    def noting(step: Callable[[Sample], None]) -> Callable[[Sample], None]:
        def noted(batch: Sample) -> None:
            samples = zip(batch.name, batch.image, batch.target, strict=True)
            texts = [name.encode() + image.numpy().tobytes() + mask.numpy().tobytes() for name, image, mask in samples]
            digests = [hashlib.sha256(text).hexdigest() for text in texts]
            log.append((task.progress.phase, task.progress.step, digests))
            step(batch)

        return noted

    task.train_step, task.eval_step = noting(task.train_step), noting(task.eval_step)  # type: ignore[method-assign]
    return task


def one_process(folder: Path, workers: int = 0) -> Log:
    log: Log = []
    Trainer(folder).train(watched(log, **{"runtime.workers": workers}))
    return log


def training(*logs: Log) -> list[list[str]]:
    """The digests of each training batch of a job, of which each process has logged its share."""
    shares = [[batch for phase, _, batch in log if phase == "train"] for log in logs]
    return [sorted(itertools.chain(*parts)) for parts in zip(*shares, strict=True)]


def evaluated(*logs: Log) -> list[str]:
    return sorted(digest for log in logs for phase, _, batch in log if phase == "val" for digest in batch)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Log:
    log = one_process(tmp_path_factory.mktemp("expected"))
    assert [phase for phase, _, _ in log] == (["train"] * STEPS + ["val"] * 5) * EPOCHS
    digests = [digest for phase, _, batch in log for digest in batch if phase == "train"]
    assert len(set(digests)) == len(digests) == EPOCHS * STEPS * BATCH
    return log


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(expected: Log, tmp_path: Path, workers: int) -> None:
    assert one_process(tmp_path, workers) == expected


def share_of_two(rank: int, port: int, folder: Path, workers: int) -> None:
    """What one of two processes does: writes its log into `folder`."""
    multiprocessing.set_start_method("fork", force=True)
    job = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in job.items()})
    distributed.start_processes("cpu")
    log = one_process(folder / "run", workers)
    distributed.stop_processes()
    (folder / f"{rank}.json").write_text(json.dumps(log), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_share_each_batch_of_one(expected: Log, tmp_path: Path, workers: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")  # which `runs` has import torch once
    jobs = [context.Process(target=share_of_two, args=(rank, port, tmp_path, workers)) for rank in (0, 1)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(runs.LIMIT)
        job.kill()
    assert [job.exitcode for job in jobs] == [0, 0]
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert {len(batch) for phase, _, batch in one if phase == "train"} == {BATCH // 2}
    assert training(one, other) == training(expected)
    assert evaluated(one, other) == evaluated(expected)


@pytest.mark.parametrize("position", range(1, EPOCHS * STEPS + 1))
def test_a_run_stopped_after_any_step_goes_on_with_the_batches_that_were_left(
    expected: Log, tmp_path: Path, position: int
) -> None:
    log: Log = []
    epoch, step = divmod(position - 1, STEPS)
    with pytest.raises(Stopped):
        Trainer(tmp_path).train(watched(log, runs.SignalAt("train", epoch, step + 1)))
    assert len([phase for phase, _, _ in log if phase == "train"]) == position
    Trainer(tmp_path, resume=True).train(watched(log))
    assert log == expected
