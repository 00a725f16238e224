"""When checkpoints are saved, which are kept, and what a failing disk does to a run."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from classyseg.checkpoint import checkpoint_folders, newest_checkpoint
from classyseg.config import ConfigError
from classyseg.hooks import CheckpointHook
from classyseg.trainer import Trainer
from runs import FakeTask, tiny_task


def saved_steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoint_folders(folder / "checkpoints")]


def run(hook: CheckpointHook, task: FakeTask, values: Sequence[float | None] = (0.1, 0.2)) -> None:
    """Two epochs; the test phases end with the `values` of mean_iou."""
    for value in values:
        task.steps(hook)
        task.end_phase(hook, loss=1.0)
        task.end_phase(hook, loss=1.0, mean_iou=value)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [10, 20]),
        ({"every_epochs": 2}, [20]),
        ({"every_epochs": 5}, [20]),
        ({"every_steps": 4, "keep": 9}, [4, 8, 10, 12, 16, 20]),
        ({"every_steps": 4, "keep": 2}, [16, 20]),
        ({"keep": 1}, [20]),
    ],
)
def test_checkpoints_are_saved_and_kept_as_configured(
    options: dict[str, Any], steps: list[int], tmp_path: Path
) -> None:
    run(CheckpointHook(**options), FakeTask(tmp_path))

    assert saved_steps(tmp_path) == steps


@pytest.mark.parametrize(
    ("best_is", "values", "best", "kept"),
    [
        ("largest", [0.1, 0.7, 0.5, 0.7, 0.3], 20, [20, 50]),
        ("smallest", [0.1, 0.7, 0.5, 0.7, 0.3], 10, [10, 50]),
        ("largest", [0.1, 0.2, 0.3, 0.4, 0.5], 50, [40, 50]),
    ],
)
def test_the_best_checkpoint_is_named_and_kept_beside_the_newest(
    best_is: Any, values: list[float], best: int, kept: list[int], tmp_path: Path
) -> None:
    run(CheckpointHook(keep=1, best="mean_iou", best_is=best_is), FakeTask(tmp_path), values)

    assert (tmp_path / "checkpoints/BEST").read_text().split()[0] == f"step-{best}"
    assert saved_steps(tmp_path) == kept


def test_a_best_value_of_before_a_resume_still_counts(tmp_path: Path) -> None:
    run(CheckpointHook(best="mean_iou"), FakeTask(tmp_path), [0.9])
    task = FakeTask(tmp_path)
    task.progress.step = 10

    run(CheckpointHook(best="mean_iou"), task, [0.5])

    assert (tmp_path / "checkpoints/BEST").read_text().split()[0] == "step-10"


def test_an_unknown_best_value_is_an_error_that_lists_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hooks\.checkpoint\.best: .*'miou'.* mean_iou"):
        run(CheckpointHook(best="miou"), FakeTask(tmp_path))


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_phase_that_measured_nothing_is_not_the_best(nothing: float | None, tmp_path: Path) -> None:
    run(CheckpointHook(best="mean_iou"), FakeTask(tmp_path), [nothing])
    assert not (tmp_path / "checkpoints/BEST").exists()

    run(CheckpointHook(best="mean_iou"), FakeTask(tmp_path), [0.5, nothing, 0.4])

    assert (tmp_path / "checkpoints/BEST").read_text(encoding="utf-8").split() == ["step-10", "0.5"]


def test_without_a_run_folder_nothing_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    run(CheckpointHook(best="mean_iou", every_steps=1), FakeTask(None))

    assert list(tmp_path.iterdir()) == []


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """As if the disk were full: writing more than `size` bytes to a file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_run_survives_a_disk_that_is_full_for_a_while(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hook, task = CheckpointHook(every_steps=1, keep=9), FakeTask(tmp_path)
    for _ in range(2):
        task.steps(hook, 1)
        with no_file_over(16):
            task.steps(hook, 2)

    task.steps(hook, 1)

    assert saved_steps(tmp_path) == [1, 4, 7]
    assert caplog.text.count("not saved") == 4


def test_the_third_failed_save_in_a_row_ends_the_run(tmp_path: Path) -> None:
    hook, task = CheckpointHook(every_steps=1), FakeTask(tmp_path)
    task.steps(hook, 1)
    with no_file_over(16):
        task.steps(hook, 2)

        with pytest.raises(OSError, match="large"):
            task.steps(hook, 1)

    assert newest_checkpoint(tmp_path / "checkpoints") == (tmp_path / "checkpoints/step-1", [])


def test_a_real_run_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    changes = {"num_epochs": 2, "hooks": [{"name": "checkpoint", "keep": 1, "best": "loss", "best_is": "smallest"}]}
    Trainer(tmp_path).train(tiny_task(changes))

    assert (tmp_path / "checkpoints" / (tmp_path / "checkpoints/BEST").read_text().split()[0]).is_dir()
    assert saved_steps(tmp_path)[-1] == 12


def test_the_best_phase_is_saved_also_when_its_epoch_was_not(tmp_path: Path) -> None:
    run(CheckpointHook(every_epochs=4, best="mean_iou"), FakeTask(tmp_path), [0.1, 0.7, 0.5, 0.2])

    assert (tmp_path / "checkpoints" / "BEST").read_text(encoding="utf-8").split() == ["step-20", "0.7"]
    assert 20 in saved_steps(tmp_path)
