"""When checkpoints are saved, which are kept, and what a failing disk does to a run."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from classyseg.checkpoint import checkpoint_folders, newest_checkpoint
from classyseg.config import ConfigError
from classyseg.hooks import CheckpointHook
from classyseg.io import append_json_line
from classyseg.records import WriteError
from classyseg.structures import Progress
from classyseg.trainer import Trainer
from runs import FakeTask, read_records, tiny_task


def saved_steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoint_folders(folder / "checkpoints")]


def run(hook: CheckpointHook, task: FakeTask, values: Sequence[float | None] = (0.1, 0.2)) -> None:
    """Two epochs; the val phases end with the `values` of mean_iou."""
    for value in values:
        task.steps(hook)
        task.end_phase(hook, loss=1.0)
        task.end_phase(hook, loss=1.0, mean_iou=value)
    task.writer.wait()


@pytest.mark.parametrize("asynchronous", [False, True])
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
    options: dict[str, Any], steps: list[int], asynchronous: bool, tmp_path: Path
) -> None:
    run(CheckpointHook(**options, asynchronous=asynchronous), FakeTask(tmp_path))

    assert saved_steps(tmp_path) == steps


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("best_is", "values", "best", "kept"),
    [
        ("largest", [0.1, 0.7, 0.5, 0.7, 0.3], 20, [20, 50]),
        ("smallest", [0.1, 0.7, 0.5, 0.7, 0.3], 10, [10, 50]),
        ("largest", [0.1, 0.2, 0.3, 0.4, 0.5], 50, [50]),
        ("largest", [0.9, 0.1, 0.1, 0.95], 40, [40]),
        ("largest", [0.9, 0.1, None, 0.9, float("nan")], 10, [10, 50]),
    ],
)
def test_the_best_checkpoint_is_named_and_kept_beside_the_newest(
    best_is: Any, values: list[float | None], best: int, kept: list[int], asynchronous: bool, tmp_path: Path
) -> None:
    hook = CheckpointHook(keep=1, best="mean_iou", best_is=best_is, asynchronous=asynchronous)
    run(hook, FakeTask(tmp_path), values)

    assert (tmp_path / "checkpoints/BEST").read_text().split()[0] == f"step-{best}"
    assert saved_steps(tmp_path) == kept


def test_a_best_value_of_before_a_resume_still_counts(tmp_path: Path) -> None:
    run(CheckpointHook(best="mean_iou"), FakeTask(tmp_path), [0.9])
    task = FakeTask(tmp_path)
    task.progress.step = 10

    run(CheckpointHook(best="mean_iou"), task, [0.5])

    assert (tmp_path / "checkpoints/BEST").read_text().split()[0] == "step-10"


@pytest.mark.parametrize(
    ("best", "values", "named"),
    [
        ("loss", [{"loss": 1.394}, {"loss": 1.342}, {"loss": 1.5}], "step-20 1.342"),
        ("mean_iou", [{"mean_iou": 0.1}, {"mean_iou": 0.3}, {"mean_iou": 0.2}], "step-20 0.3"),
        ("iou/disc", [{"iou": {"disc": None}}, {"iou": {"disc": 0.0}}, {"iou": {"disc": 0.5}}], "step-30 0.5"),
        ("aux/iou/a/b, c.d", [{"aux/iou": {"a/b, c.d": 0.2}}, {"aux/iou": {"a/b, c.d": 0.1}}], "step-10 0.2"),
        ("iou/stra\u00dfe \u00fc", [{"iou": {"stra\u00dfe u\u0308": 0.2}}], "step-10 0.2"),  # two forms of one text
    ],
)
def test_a_number_knows_which_of_its_values_is_best(
    best: str, values: list[dict[str, Any]], named: str, tmp_path: Path
) -> None:
    hook, task = CheckpointHook(best=best), FakeTask(tmp_path)
    for value in values:
        task.steps(hook)
        task.end_phase(hook)
        task.end_phase(hook, **value)

    assert (tmp_path / "checkpoints/BEST").read_text() == f"{named}\n"


def test_a_number_of_which_nobody_knows_what_is_best_asks_for_best_is(tmp_path: Path) -> None:
    hook, task = CheckpointHook(best="roughness"), phases({10: {"roughness": 1.0}, 20: {"roughness": 2.0}}, tmp_path)
    with pytest.raises(ConfigError, match=r"best_is: .*'roughness'.*largest or smallest"):
        hook.on_start(task)  # type: ignore[arg-type]


def phases(values: dict[int, dict[str, float]], folder: Path) -> FakeTask:
    """A run to be continued: a checkpoint and a record of a val phase for each step."""
    task = FakeTask(folder)
    for step, numbers in values.items():
        task.progress.step = step
        task.save_checkpoint()
        append_json_line(folder / "metrics.jsonl", {"phase": "val", "epoch": step // 10, "step": step, **numbers})
    return task


MEASURED = {10: {"mean_iou": 0.9, "loss": 3.0}, 20: {"mean_iou": 0.5, "loss": 1.0}, 30: {"mean_iou": 0.7, "loss": 2.0}}


@pytest.mark.parametrize(
    ("before", "hook", "best"),
    [
        ("step-10 0.9", CheckpointHook(best="mean_iou"), "step-10 0.9"),
        ("step-10 0.9", CheckpointHook(best="loss"), "step-20 1.0"),  # another number than before
        ("step-10 0.9", CheckpointHook(best="mean_iou", best_is="smallest"), "step-20 0.5"),
        ("step-99 0.99", CheckpointHook(best="mean_iou"), "step-10 0.9"),  # which is not there any more
        ("", CheckpointHook(best="mean_iou"), "step-10 0.9"),
        ("step-10 nan", CheckpointHook(best="mean_iou"), "step-10 0.9"),
        ("step-10 0.9 \udcff", CheckpointHook(best="mean_iou"), "step-10 0.9"),
        (None, CheckpointHook(best="loss"), "step-20 1.0"),
    ],
)
def test_a_continued_run_finds_the_best_of_the_checkpoints_that_are_there(
    before: str | None, hook: CheckpointHook, best: str, tmp_path: Path
) -> None:
    task = phases(MEASURED, tmp_path)
    if before is not None:
        (tmp_path / "checkpoints/BEST").write_bytes(before.encode("utf-8", "surrogateescape"))

    hook.on_start(task)  # type: ignore[arg-type]

    assert (tmp_path / "checkpoints/BEST").read_text() == f"{best}\n"


def test_a_phase_that_is_measured_again_counts_once_by_the_number_that_is_asked_for_now(tmp_path: Path) -> None:
    task = phases({10: {"mean_iou": 0.5, "loss": 1.0}}, tmp_path)
    task.progress = Progress(2, "val", 20)
    task.save_checkpoint()
    (tmp_path / "checkpoints/BEST").write_text("step-20 0.9\n")  # a mean_iou, whose record is cut
    hook = CheckpointHook(best="loss")
    hook.on_start(task)  # type: ignore[arg-type]

    task.end_phase(hook, loss=1.5)

    assert (tmp_path / "checkpoints/BEST").read_text() == "step-10 1.0\n"


def test_former_bests_of_an_earlier_config_are_deleted_in_a_continued_run(tmp_path: Path) -> None:
    task = phases(MEASURED, tmp_path)
    task.progress = Progress(3, "val", 30)
    hook = CheckpointHook(best="loss", keep=1)
    hook.on_start(task)  # type: ignore[arg-type]

    task.end_phase(hook, loss=2.0)

    assert saved_steps(tmp_path) == [20, 30]


def test_a_best_that_cannot_be_named_leaves_the_former_one_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook, task = CheckpointHook(best="mean_iou", keep=1), FakeTask(tmp_path)
    run(hook, task, [0.1])
    task.steps(hook)
    task.end_phase(hook)
    with no_file_over(4):
        task.end_phase(hook, mean_iou=0.5)

    assert (tmp_path / "checkpoints/BEST").read_text() == "step-10 0.1\n"
    assert saved_steps(tmp_path) == [10, 20]
    assert "BEST: not written" in caplog.text


def test_an_unknown_best_value_is_an_error_that_lists_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^hooks: checkpoint: best: .*'miou'.* mean_iou"):
        run(CheckpointHook(best="miou"), FakeTask(tmp_path))


@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf")])
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


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_survives_a_disk_that_is_full_for_a_while(
    asynchronous: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook, task = CheckpointHook(every_steps=1, keep=9, asynchronous=asynchronous), FakeTask(tmp_path)
    for _ in range(2):
        task.steps(hook, 1)
        task.writer.wait()
        with no_file_over(16):
            task.steps(hook, 2)
            task.writer.wait()

    task.steps(hook, 1)
    task.writer.wait()

    assert saved_steps(tmp_path) == [1, 4, 7]
    assert caplog.text.count("not saved") == 4
    told = re.findall(
        r"step (\d) not saved: .*large.* \((\d+) bytes are free\); the newest is step-(\d); ", caplog.text
    )
    assert [(step, newest) for step, free, newest in told] == [("2", "1"), ("3", "1"), ("5", "4"), ("6", "4")]
    assert all(abs(int(free) - shutil.disk_usage(tmp_path).free) < 2**34 for step, free, newest in told)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("most", [1, 3])
def test_so_many_failed_saves_in_a_row_end_the_run(most: int, asynchronous: bool, tmp_path: Path) -> None:
    hook = CheckpointHook(every_steps=1, max_failures=most, asynchronous=asynchronous)
    task = FakeTask(tmp_path)
    task.steps(hook, 1)
    task.writer.wait()
    with no_file_over(16):
        task.steps(hook, most - 1 + asynchronous)  # a thread's failure is told at the next save

        with pytest.raises(WriteError, match=rf"step {most + 1} cannot be saved .*large.*the newest is step-1"):
            task.steps(hook, 1)

    assert newest_checkpoint(tmp_path / "checkpoints") == (tmp_path / "checkpoints/step-1", [])


def test_a_last_save_that_failed_in_its_thread_is_made_once_more_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook, task = CheckpointHook(asynchronous=True), FakeTask(tmp_path)
    task.steps(hook, 20)
    with no_file_over(16):
        task.end_phase(hook)
        task.writer.wait()

    hook.on_end(task)  # type: ignore[arg-type]

    assert saved_steps(tmp_path) == [20]
    assert "tried once more" in caplog.text


def test_a_folder_that_became_read_only_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hook, task = CheckpointHook(every_steps=1, keep=1), FakeTask(tmp_path)
    task.steps(hook, 1)
    before = (tmp_path / "checkpoints/step-1/manifest.json").read_bytes()

    def refuse(*arguments: Any, **options: Any) -> None:  # permissions do not hold back root, who runs tests in CI
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    with monkeypatch.context() as patch:
        for name in ("mkdir", "touch"):
            patch.setattr(Path, name, refuse)
        task.steps(hook, 1)
    assert "step 2 not saved: [Errno 30] Read-only file system" in caplog.text
    assert (tmp_path / "checkpoints/step-1/manifest.json").read_bytes() == before
    assert (tmp_path / "checkpoints/LATEST").read_text() == "step-1"

    task.steps(hook, 1)
    assert saved_steps(tmp_path) == [3]


def test_a_real_run_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    changes = {"num_epochs": 2, "hooks": [{"name": "checkpoint", "keep": 1, "best": "loss"}]}
    Trainer(tmp_path).train(tiny_task(changes))

    losses = {
        record["step"]: record["loss"]
        for record in read_records(tmp_path / "metrics.jsonl")
        if record["phase"] == "val"
    }
    step = min(losses, key=lambda step: losses[step])
    assert (tmp_path / "checkpoints/BEST").read_text() == f"step-{step} {losses[step]!r}\n"
    assert saved_steps(tmp_path) == sorted({step, 12})


def test_the_best_phase_is_saved_also_when_its_epoch_was_not(tmp_path: Path) -> None:
    run(CheckpointHook(every_epochs=4, best="mean_iou"), FakeTask(tmp_path), [0.1, 0.7, 0.5, 0.2])

    assert (tmp_path / "checkpoints" / "BEST").read_text(encoding="utf-8").split() == ["step-20", "0.7"]
    assert 20 in saved_steps(tmp_path)
