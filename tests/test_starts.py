"""Who may start in a folder, what `overwrite` replaces, and how a start that fails leaves it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from classyseg import launcher
from classyseg.claims import RunFolder
from classyseg.cli.train import main
from classyseg.config import ConfigError
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.io import FolderLock
from classyseg.trainer import Stopped, Trainer
from runs import read_records, slow_imports, start_job, tiny_task, write_config

SMALL = {
    "num_epochs": 2,
    "batch_size": 4,
    "dataset.train.num_samples": 8,
    "dataset.val.num_samples": 1,
    "hooks": [{"name": "checkpoint", "best": "mean_iou"}, {"name": "log", "every": 1}],
    "meters": ["mean_iou", "confusion_matrix"],
}
OTHER = {**SMALL, "seed": 1, "num_epochs": 1, "hooks": ["checkpoint"], "meters": ["mean_iou"]}
"""A run that leaves fewer files, and checkpoints of other numbers."""


class Fails(ClassyHook):
    """A hook that fails, or is interrupted, at one event."""

    def __init__(self, event: str, number: int | None = None) -> None:
        self.event, self.number = event, number

    def __getattribute__(self, name: str) -> Any:
        if name != object.__getattribute__(self, "event"):
            return object.__getattribute__(self, name)
        return self._fail

    def _fail(self, task: WatchedTask) -> None:
        assert task.run_folder is not None
        (task.run_folder / "steps.jsonl").touch()
        if self.number is None:
            raise RuntimeError("as asked")
        signal.raise_signal(self.number)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def train(folder: Path, changes: dict[str, Any], *hooks: ClassyHook, **keys: bool) -> None:
    Trainer(folder, **keys).train(tiny_task(changes, *hooks))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the other run leaves in a fresh folder."""
    folder = tmp_path_factory.mktemp("other") / "run"
    train(folder, OTHER)
    return shape(folder)


def shape(folder: Path) -> dict[str, Any]:
    """A run but for its times."""
    found: dict[str, Any] = {name: content for name, content in contents(folder).items() if name != ".started"}
    found["metrics.jsonl"] = read_records(folder / "metrics.jsonl")
    card = found["model/README.md"].decode()
    title = next(line for line in card.splitlines() if line.startswith("# ")).removeprefix("# ")
    assert title.startswith(f"{folder.name}, step ")  # the card's title names the run
    how = re.compile(r"\n(Its command is not told\.|```bash\n.*?\n```)", re.DOTALL)
    assert how.search(card)
    found["model/README.md"] = how.sub("", card.replace(title, "TITLE"))
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "run"
    train(folder, SMALL)
    return folder


@pytest.fixture
def used(small: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "used"
    shutil.copytree(small, folder)
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "checkpoints/mine").mkdir()
    return folder


def test_a_used_folder_is_refused_in_python_as_by_the_command_and_loses_nothing(
    used: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(used)

    with pytest.raises(ConfigError) as refused:
        train(used, OTHER)
    assert main([str(write_config(tmp_path, OTHER)), "--output", str(used)]) == 2

    assert capsys.readouterr().err == f"error: {refused.value}\n"
    assert "--resume" in str(refused.value)
    assert "--overwrite" in str(refused.value)
    assert contents(used) == before


@pytest.mark.parametrize("command", [False, True], ids=["Python", "command"])
def test_overwrite_replaces_a_run_whole_and_nothing_else(
    command: bool, used: Path, other: dict[str, Any], tmp_path: Path
) -> None:
    if command:
        assert main([str(write_config(tmp_path, OTHER)), "--output", str(used), "--overwrite"]) == 0
    else:
        train(used, OTHER, overwrite=True)

    found = shape(used)
    assert found.pop("notes.txt") == b"mine"
    assert found.pop("checkpoints/mine", "gone") is None
    assert found == other


def test_overwrite_of_a_folder_without_a_run_starts_one_and_of_anything_else_is_refused(
    other: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        train(tmp_path / name, OTHER, overwrite=True)
        assert shape(tmp_path / name) == other
    project = tmp_path / "project"
    (project / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "train.py", "checkpoints/best.pth"):
        (project / name).write_text("mine", encoding="utf-8")
        before = contents(project)
        with pytest.raises(ConfigError, match=r"project.*--overwrite.*holds none"):
            train(project, OTHER, overwrite=True)
        assert contents(project) == before
        assert not (project / ".lock").exists()


def test_overwrite_follows_no_link(used: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    os.rename(used / "checkpoints", elsewhere)
    (used / "checkpoints").symlink_to(elsewhere)
    before = contents(elsewhere)

    with pytest.raises(ConfigError, match="no link is followed"):
        train(used, OTHER, overwrite=True)

    assert contents(elsewhere) == before
    assert (used / "metrics.jsonl").is_file()


def test_resume_and_overwrite_together_are_refused(used: Path, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, OTHER))

    assert main([config, "--output", str(used), "--resume", "--overwrite"]) == 2


def wrong_data(folder: Path, keys: dict[str, bool]) -> None:
    changes = {**SMALL, "dataset.train": {"name": "synthetic_shapes", "split": "train", "num_samples": 8}}
    with pytest.raises(ConfigError):  # images of another size than those of the validation set cannot be collated
        train(folder, {**changes, "runtime.eval_batch_size": 1, "model.weights": "none.pth"}, **keys)


def hook_fails_at_the_start(folder: Path, keys: dict[str, bool]) -> None:
    with pytest.raises(RuntimeError, match="as asked"):
        train(folder, SMALL, Fails("on_start"), **keys)


def hook_fails_at_the_first_phase(folder: Path, keys: dict[str, bool]) -> None:
    with pytest.raises(RuntimeError, match="as asked"):
        train(folder, SMALL, Fails("on_phase_start"), **keys)


def first_step_fails(folder: Path, keys: dict[str, bool]) -> None:
    with pytest.raises(RuntimeError, match="as asked"):
        train(folder, {**SMALL, "hooks": [{"name": "checkpoint", "every_steps": 1}]}, Fails("on_step"), **keys)


def interrupted(folder: Path, keys: dict[str, bool]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(Stopped) as stopped:
            train(folder, SMALL, Fails("on_phase_start", number), **keys)
        assert (stopped.value.exit_code, stopped.value.saved) == (128 + number, False)


FAILURES = [
    wrong_data,
    hook_fails_at_the_start,
    hook_fails_at_the_first_phase,
    first_step_fails,
    interrupted,
]


@pytest.mark.parametrize("fail", FAILURES)
def test_a_start_that_fails_before_the_first_step_leaves_no_run(
    fail: Callable[[Path, dict[str, bool]], None], tmp_path: Path
) -> None:
    for keys in ({}, {"resume": True}, {"overwrite": True}):
        fail(tmp_path / "above/new", keys)
        assert list(tmp_path.iterdir()) == []

    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for keys in ({}, {"resume": True}):
        fail(tmp_path, keys)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("fail", "keys"),
    [
        (wrong_data, {"overwrite": True}),  # with resume, the checkpoint is of another run, which other tests hold
        *(
            (fail, {key: True})
            for fail in (hook_fails_at_the_start, first_step_fails, interrupted)
            for key in ("overwrite", "resume")
        ),
    ],
)
def test_a_start_that_fails_leaves_the_run_that_was_there(
    fail: Callable[[Path, dict[str, bool]], None], keys: dict[str, bool], used: Path
) -> None:
    before = contents(used)

    fail(used, keys)

    assert contents(used) == before


def killed_in(work: Callable[[], None]) -> None:
    """Runs `work` in a process that ends where it stands, at its end at the latest, and lets its locks go."""
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(9)
    os.waitpid(process, 0)


@pytest.mark.parametrize("moment", ["put aside", "replaced"])
def test_a_start_that_was_killed_is_undone_or_finished_by_the_next(
    moment: str, used: Path, other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(used)

    def begin() -> None:
        start = RunFolder(used, overwrite=True)
        (used / "config.yaml").write_text("half", encoding="utf-8")
        if moment == "replaced":
            monkeypatch.setattr(shutil, "rmtree", lambda path: os._exit(9))  # just before the old run is deleted
            start.keep()

    killed_in(begin)

    if moment == "put aside":
        with pytest.raises(ConfigError, match="holds a run already"):
            train(used, OTHER)
        RunFolder(used, resume=True).close()
        assert contents(used) == before
    train(used, OTHER, overwrite=True)
    found = shape(used)
    assert {name for name in found if "mine" not in name and name != "notes.txt"} == {*other}


def test_a_fresh_start_that_was_killed_before_its_first_step_is_no_run(tmp_path: Path) -> None:
    def begin() -> None:
        assert RunFolder(tmp_path).is_in_place()
        (tmp_path / "config.yaml").write_text("half", encoding="utf-8")

    killed_in(begin)

    train(tmp_path, OTHER)

    assert [record["phase"] for record in read_records(tmp_path / "metrics.jsonl")] == ["train", "val"]


def test_a_lock_that_was_taken_away_is_not_held(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    assert lock.is_in_place()
    (tmp_path / ".lock").unlink()
    assert not lock.is_in_place()
    FolderLock(tmp_path).release()
    lock.release()


@pytest.mark.slow
def test_a_start_of_two_processes_that_fails_in_one_leaves_no_run(tmp_path: Path) -> None:
    config = write_config(tmp_path, {**SMALL, "model.weights": str(tmp_path / "none.pth")})

    job = start_job([config, "--output", tmp_path / "run"], tmp_path)

    assert [command.wait() for command in job] == [2, 2]
    assert "none.pth" in job[0].text
    assert not (tmp_path / "run").exists()


def test_only_a_restart_of_the_same_job_continues_by_itself(
    used: Path, other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = float((used / ".started").read_text(encoding="utf-8"))

    for began in (None, started + 1):  # no restart; the restart of a later job, whose first start was refused
        monkeypatch.setattr(launcher, "restarted_job_began", lambda began=began: began)
        with pytest.raises(ConfigError, match="holds a run already"):
            train(used, SMALL)
    monkeypatch.setattr(launcher, "restarted_job_began", lambda: started - 1)
    before = contents(used)
    train(used, SMALL)
    train(used, SMALL, overwrite=True)

    found = contents(used)
    for name in ("checkpoints/step-4/model.safetensors", ".started"):
        assert found[name] == before[name]


@pytest.mark.parametrize("count", ["", "0"])
def test_a_process_that_was_not_restarted_has_no_such_launcher(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)

    assert launcher.restarted_job_began() is None


@pytest.mark.parametrize("script", [False, True], ids=["torchrun", "a script that torchrun started"])
def test_the_launcher_of_a_restarted_process_is_found(script: bool) -> None:
    code = "from classyseg import launcher; print(launcher.restarted_job_began())"
    command = ["bash", "-c", f"'{sys.executable}' -c '{code}'; true"] if script else [sys.executable, "-c", code]

    environment = {**os.environ, "TORCHELASTIC_RESTART_COUNT": "1"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    age = subprocess.run(["ps", "-o", "etimes=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    began = time.time() - int(age.stdout)
    assert float(answer) == pytest.approx(began, abs=3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_run_of_a_users_own_model_imports_nothing_that_takes_a_second(optimizer: str, tmp_path: Path) -> None:
    model = {"name": "my_model", "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}}
    config = write_config(tmp_path, {**SMALL, "model": model, "optimizer": {"name": optimizer, "lr": 0.01}})
    code = (
        "sys.path.insert(0, 'tests'); from tiny_backbone import TinyBackbone; "
        "from classyseg.registry import MODELS; MODELS.register('my_model')(type('Mine', (TinyBackbone,), {})); "
        "from classyseg.cli.train import main; status = main(sys.argv[1:])"
    )
    assert slow_imports(code, config, "--output", tmp_path / "run") == "0"
    assert [record["phase"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == ["train", "val"] * 2
