"""A checkpoint is whole or not there, and reading one executes nothing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import classyseg.checkpoint
from classyseg.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    problem_of,
    prune,
    save_checkpoint,
)
from classyseg.config import ConfigError
from classyseg.run_folder import remove_leftovers
from classyseg.trainer import Trainer
from runs import tiny_task

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def tensors(value: float = 1.0) -> dict[str, dict[str, Tensor]]:
    image = torch.arange(24.0).view(1, 2, 3, 4) + value
    return {
        "model": {
            "weight": image.to(memory_format=torch.channels_last),
            "view": image[:, :, 1:],
            "half": image.bfloat16(),
            "count": torch.tensor(3),
        },
        "optimizer": {"weight/momentum_buffer": image},
    }


def save(root: Path, step: int = 4, value: float = 1.0) -> Path:
    return save_checkpoint(root, step, tensors(value), {"progress": {"step": step}, "value": value})


def test_tensors_and_values_come_back_as_they_were(tmp_path: Path) -> None:
    found = load_checkpoint(save(tmp_path))

    assert found.state["progress"] == {"step": 4}
    for group, expected in tensors().items():
        assert found.tensors[group].keys() == expected.keys()
        for key, value in expected.items():
            assert found.tensors[group][key].dtype == value.dtype
            assert torch.equal(found.tensors[group][key], value)


def test_files_of_tensors_have_the_permissions_of_any_other_file(tmp_path: Path) -> None:
    for umask in (0o022, 0o027):
        before = os.umask(umask)
        try:
            folder = save(tmp_path / oct(umask))
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}


def test_tensors_of_one_storage_come_back_under_each_name(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    group = {"a": whole, "b": whole, "row": whole[1], "more": torch.zeros(2), "empty": torch.zeros(0)}

    found = load_checkpoint(save_checkpoint(tmp_path, 0, {"model": group}, {})).tensors["model"]

    assert found.keys() == group.keys()
    assert all(torch.equal(found[key], value) for key, value in group.items())


def test_groups_without_tensors_come_back_empty(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 0, {"model": {}, "optimizer": {}}, {})

    assert load_checkpoint(folder).tensors == {"model": {}, "optimizer": {}}


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if path.name != "manifest.json" else 0] ^= 0x80
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip_a_byte, truncate, remove])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(
    damage: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    before = save(tmp_path, 3)
    folder = save(tmp_path, 4)
    assert newest_checkpoint(tmp_path) == (folder, [])

    damage(folder / name)

    problem = problem_of(folder)
    assert problem is not None
    assert str(folder / name) in problem
    assert newest_checkpoint(tmp_path) == (before, [problem])
    with pytest.raises(ConfigError, match=re.escape(str(folder / name))):
        load_checkpoint(folder)


@pytest.mark.parametrize("manifest", ["[]", '{"files": {}}', '{"files": {"../x": {"size": 1, "sha256": ""}}}', "{}"])
def test_a_manifest_that_vouches_for_nothing_is_a_problem(manifest: str, tmp_path: Path) -> None:
    folder = save(tmp_path)
    (folder / "manifest.json").write_text(manifest)

    assert "manifest.json" in (problem_of(folder) or "")


def test_a_step_folder_that_is_whole_is_kept(tmp_path: Path) -> None:
    save(tmp_path, 4, value=1.0)

    assert load_checkpoint(save(tmp_path, 4, value=2.0)).state["value"] == 1.0


def test_a_step_folder_that_is_damaged_is_replaced(tmp_path: Path) -> None:
    truncate(save(tmp_path, 4, value=1.0) / "model.safetensors")

    assert load_checkpoint(save(tmp_path, 4, value=2.0)).state["value"] == 2.0


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    newest = [save(tmp_path, step) for step in (9, 10)][-1]
    (tmp_path / "step-latest").mkdir()

    assert newest_checkpoint(tmp_path) == (newest, [])


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classyseg.checkpoint, "FORMAT", 3)
    folder = save(tmp_path)
    monkeypatch.undo()

    with pytest.raises(ConfigError, match=r"state\.json.*format 3.*1 to 2"):
        load_checkpoint(folder)


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        written = save(tmp_path, step)

    prune(written, keep=2, protected="step-1")

    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-1", "step-10", "step-3"]


def test_prune_keeps_the_one_just_written_whatever_its_number(tmp_path: Path) -> None:
    for step in (8, 9, 7):
        written = save(tmp_path, step)

    prune(written, keep=1)

    assert [path.name for path in tmp_path.glob("step-*")] == ["step-7"]
    assert (tmp_path / (tmp_path / "LATEST").read_text()).is_dir()


def test_no_file_of_a_checkpoint_names_an_import_path(tmp_path: Path) -> None:
    task = tiny_task()
    task.start(tmp_path)
    folder = task.save_checkpoint()
    assert folder is not None

    def texts(node: Any) -> list[str]:
        if isinstance(node, dict):
            return [text for item in node.items() for text in texts(item)]
        if isinstance(node, list | tuple):
            return [text for item in node for text in texts(item)]
        return [node] if isinstance(node, str) else []

    words = texts(json.loads((folder / "state.json").read_text()))
    assert "synthetic_shapes" in words
    assert [word for word in words if re.search(r"classyseg|torch\.|builtins|[a-z]\.[A-Z]|:[A-Za-z]", word)] == []


# -- interrupted saves -----------------------------------------------------------------------------------------------


class _Interruption:
    """Replaces a function by one that, at its call number `count`, does `then` instead."""

    def __init__(self, function: Callable[..., Any], count: int, then: Callable[[], object]) -> None:
        self.function, self.count, self.then = function, count, then

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count -= 1
        if self.count == 0:
            self.then()
        return self.function(*args, **kwargs)


STAGES = {
    "at the first file": ("save_file", 1),
    "after the first file": ("save_file", 2),
    "before the manifest": ("sha256_of", 1),
    "before the flush": ("os.fsync", 1),
    "before the rename": ("os.rename", 1),
    "before LATEST": ("write_atomically", 1),
    "in LATEST": ("os.replace", 1),
}


def _interrupt(patch: pytest.MonkeyPatch, stage: str, then: Callable[[], object]) -> None:
    name, count = STAGES[stage]
    owner: Any = os if name.startswith("os.") else classyseg.checkpoint
    name = name.removeprefix("os.")
    patch.setattr(owner, name, _Interruption(getattr(owner, name), count, then))


def _save_and_die(root: Path, stage: str) -> None:
    _interrupt(pytest.MonkeyPatch(), stage, lambda: os._exit(9))
    save(root, 4)


def _fail() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stage", STAGES)
def test_a_process_that_dies_in_a_save_leaves_only_whole_checkpoints(stage: str, tmp_path: Path) -> None:
    save(tmp_path, 3)
    process = get_context("fork").Process(target=_save_and_die, args=(tmp_path, stage))
    process.start()
    process.join(60)
    assert process.exitcode == 9

    newest, problems = newest_checkpoint(tmp_path)
    remove_leftovers(tmp_path)

    assert newest == tmp_path / ("step-4" if "LATEST" in stage else "step-3")
    assert problems == []
    assert {path.name for path in tmp_path.iterdir()} <= {"step-3", "step-4", "LATEST"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_save_that_fails_raises_and_can_be_tried_again(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 3)
    with monkeypatch.context() as patch:
        _interrupt(patch, stage, _fail)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path, 4)

    assert not [path.name for path in tmp_path.iterdir() if path.is_dir() and ".tmp-" in path.name]
    assert newest_checkpoint(tmp_path)[1] == []
    save(tmp_path, 4)
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-4"
    assert (tmp_path / "LATEST").read_text() == "step-4"


def test_starting_a_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    (root / "step-4.tmp-17").mkdir(parents=True)
    (root / "step-4.tmp-17" / "model.safetensors").write_bytes(b"half")
    (root / "LATEST.tmp-17").write_text("step-")

    tiny_task().start(tmp_path)

    assert list(root.iterdir()) == []


def test_a_resumed_run_hashes_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"num_epochs": 1, "dataset.train.num_samples": 8, "dataset.val": None}
    Trainer(tmp_path).train(tiny_task({**changes, "hooks": ["checkpoint"]}))
    hashed: list[str] = []
    sha256_of = classyseg.checkpoint.sha256_of
    monkeypatch.setattr("classyseg.checkpoint.sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    Trainer(tmp_path, resume=True).train(tiny_task({**changes, "hooks": []}))
    assert sorted(hashed) == ["model.safetensors", "optimizer.safetensors", "state.json"]
