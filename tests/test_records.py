"""A full disk and a folder that is gone: the run goes on where it can, and never ends as if nothing were lost."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from classyseg.checkpoint import newest_checkpoint
from classyseg.cli import train as command
from classyseg.config import ConfigError
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.records import RunRecords, WriteError
from classyseg.trainer import Trainer
from runs import SignalAt, read_records, tiny_task, write_config

SMALL: dict[str, Any] = {
    "num_epochs": 2,
    "batch_size": 4,
    "dataset.train.num_samples": 8,
    "dataset.val.num_samples": 1,
    "hooks": [{"name": "checkpoint"}, {"name": "log", "every": 1}],
    "meters": ["mean_iou", "confusion_matrix"],
}


def set_room(size: int) -> None:
    """As if the disk were full: no file grows beyond `size` bytes; root, too, has to stop there."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size < 0 else size, hard))


@contextmanager
def room(size: int) -> Iterator[None]:
    set_room(size)
    try:
        yield
    finally:
        set_room(-1)


@pytest.fixture(autouse=True)
def room_again() -> Iterator[None]:
    yield
    set_room(-1)


class At(ClassyHook):
    """Does something after one step."""

    def __init__(self, step: int, act: Callable[[Path], object]) -> None:
        self.step, self.act = step, act

    def on_step(self, task: WatchedTask) -> None:
        assert task.run_folder is not None
        if task.progress.phase == "train" and task.progress.step == self.step:
            self.act(task.run_folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    Trainer(folder).train(tiny_task(SMALL))
    return folder


def test_what_waits_is_written_in_order_once_there_is_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = RunRecords(tmp_path)
    records.append("a.jsonl", {"step": 1})
    with room(4):
        records.append("a.jsonl", {"step": 2})
        records.replace("b.txt", "old text")
        records.append("a.jsonl", {"step": 3}, durable=True)
        records.replace("b.txt", "new text")
        assert read_records(tmp_path / "a.jsonl") == [{"step": 1}]
        with pytest.raises(WriteError) as lost:
            records.finish()
    for name in ("a.jsonl", "b.txt"):
        assert caplog.text.count(f"{tmp_path / name}: cannot be written (File too large)") == 1
        assert f"{tmp_path / name}: cannot be written" in str(lost.value)

    records.append("a.jsonl", {"step": 4})

    assert read_records(tmp_path / "a.jsonl") == [{"step": step} for step in (1, 2, 3, 4)]
    assert (tmp_path / "b.txt").read_text(encoding="utf-8") == "new text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.txt"]
    records.finish()


def test_a_run_survives_a_disk_that_is_full_for_a_while(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full, empty = At(1, lambda folder: set_room(16)), At(3, lambda folder: set_room(-1))
    task = tiny_task(SMALL)
    task.hooks = [full, *task.hooks, empty]

    Trainer(tmp_path).train(task)

    for name in ("metrics.jsonl", "steps.jsonl", "confusion_matrix.csv"):
        assert f"{tmp_path / name}: cannot be written (File too large)" in caplog.text
        assert f"{tmp_path / name}: written now" in caplog.text
    for name in ("metrics.jsonl", "steps.jsonl"):
        assert read_records(tmp_path / name) == read_records(whole / name)
    model = "checkpoints/step-4/model.safetensors"
    assert (tmp_path / model).read_bytes() == (whole / model).read_bytes()


@pytest.mark.parametrize(
    ("step", "hooks", "words"),
    [
        (3, ["checkpoint"], ("checkpoints: the checkpoint of step 4 cannot be saved", "the newest is step-2")),
        (3, [], ("metrics.jsonl: cannot be written (File too large), 2 records are lost",)),
    ],
    ids=["the last checkpoint", "records"],
)
def test_a_run_that_loses_something_at_its_end_does_not_exit_0(
    step: int,
    hooks: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build = __import__("classyseg.tasks").tasks.build_task

    def build_and_watch(config: Any) -> Any:
        task = build(config)
        task.hooks = [At(step, lambda folder: set_room(16)), *task.hooks]
        return task

    monkeypatch.setattr("classyseg.tasks.build_task", build_and_watch)
    config = write_config(tmp_path, {**SMALL, "hooks": hooks})

    code = command.main([str(config), "--output", str(tmp_path / "run")])

    set_room(-1)
    message = capsys.readouterr().err
    assert code == 1
    assert all(f"{word}" in message for word in words)
    assert str(tmp_path / "run") in message
    assert "Traceback" not in message
    if hooks:
        assert newest_checkpoint(tmp_path / "run/checkpoints")[0] == tmp_path / "run/checkpoints/step-2"


def test_a_last_checkpoint_that_is_gone_is_saved_again(tmp_path: Path, whole: Path) -> None:
    class Deletes(ClassyHook):
        def on_phase_end(self, task: WatchedTask) -> None:
            if task.metrics["phase"] == "val":
                shutil.rmtree(tmp_path / "run/checkpoints")

    Trainer(tmp_path / "run").train(tiny_task(SMALL, Deletes()))

    model = "checkpoints/step-4/model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (whole / model).read_bytes()


def delete_config(folder: Path) -> None:
    (folder / "config.yaml").unlink()


def delete_records(folder: Path) -> None:
    (folder / "metrics.jsonl").unlink()


def delete_what_is_not_hidden(folder: Path) -> None:
    for path in folder.glob("[!.]*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def replace(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)


@pytest.mark.parametrize(
    "hooks", [[], ["checkpoint"], [{"name": "log", "every": 1}]], ids=["none", "checkpoint", "log"]
)
@pytest.mark.parametrize(
    "harm", [shutil.rmtree, delete_config, delete_records, delete_what_is_not_hidden, replace], ids=lambda f: f.__name__
)
def test_a_run_whose_folder_is_deleted_says_so_and_makes_no_half_of_it_again(
    harm: Callable[[Path], object], hooks: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(WriteError, match=rf"^{tmp_path / 'run'}.*deleted or replaced"):
        Trainer(tmp_path / "run").train(tiny_task({**SMALL, "hooks": hooks}, At(3, harm)))

    assert not (tmp_path / "run/checkpoints/step-4").exists()


def test_a_stop_whose_checkpoint_cannot_be_saved_is_an_error_that_names_it(tmp_path: Path) -> None:
    full = At(3, lambda folder: set_room(16))

    with pytest.raises(WriteError) as failed, room(-1):  # pytest's own output may be a file
        Trainer(tmp_path).train(tiny_task({**SMALL, "hooks": []}, full, SignalAt("train", 1, 1)))

    assert "asked to stop, but the checkpoint cannot be saved: " in str(failed.value)
    assert str(tmp_path) in str(failed.value)


def test_a_start_on_a_full_disk_names_the_folder_and_leaves_none(tmp_path: Path) -> None:
    with room(0), pytest.raises(ConfigError, match=rf"{tmp_path}/run.*File too large"):
        Trainer(tmp_path / "run").train(tiny_task(SMALL))

    assert list(tmp_path.iterdir()) == []
