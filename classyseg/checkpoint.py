"""Checkpoints: folders that are whole or not there, read without executing anything."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from classyseg.console import MAX_NAME, printable, shown
from classyseg.errors import ConfigError
from classyseg.io import folder_written_whole, sha256_of, write_atomically
from classyseg.run_folder import CHECKPOINT_NAME, LATEST, read_plain

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 2
READABLE = (1, FORMAT)
"""Format 1 says `test` where format 2 says `val`. `load_checkpoint` gives both in the words of format 2."""
OF_FORMAT_1 = "test_every_epochs"
"""A key that every config has in a checkpoint of format 1, and no config has in a later one."""
MAX_MANIFEST = 2**20
MAX_STATE = 2**24
"""The largest state in bytes. Most of it is the config and the names of the classes."""
VARIANCES = ("running_var", "_variance", "moving_var")
"""How the names of running variances end: in torch, Paddle, TensorFlow and MXNet."""
NUM_TENSORS = "num_tensors"
"""A key of the state: how many tensors each group has. It shows when a file lacks some."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: groups of tensors (`model`, `optimizer`) and a tree of plain values."""

    folder: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    format: int = FORMAT


def save_checkpoint(
    root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Writes `root/step-{step}` and points `root/LATEST` at it.

    The files go to a temporary folder; the manifest, with their sizes and sha256, comes last. All is flushed to the
    disk before one rename makes it a checkpoint. A whole checkpoint of this step that exists already is kept.

    Raises: `OSError` if something cannot be written. Nothing half-written stays.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"step-{step}"
    if folder.exists():
        if problem_of(folder) is None:
            write_atomically(root / LATEST, folder.name)
            return folder
        shutil.rmtree(folder)
    with folder_written_whole(folder) as temporary:
        for name, group in tensors.items():
            save_file(own_storages(group), temporary / f"{name}.safetensors")
        (temporary / STATE).write_text(json.dumps({"format": FORMAT, **state}, indent=1), encoding="utf-8")
        files = {
            path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(temporary.iterdir())
        }
        (temporary / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1), encoding="utf-8")
    write_atomically(root / LATEST, folder.name)
    return folder


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes `path` with the usual permissions of a new file: safetensors would let only the owner read it.

    Raises: `OSError` where the disk does not take it.
    """
    path.touch(exist_ok=False)
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        safetensors.torch.save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:  # safetensors wraps the disk's error
        raise OSError(f"{path}: {error}") from None
    path.chmod(mode)


def own_storages(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`group` on the host. Tied tensors, which safetensors refuses, are copied: each name is saved whole."""
    found: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, value in group.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        found[key] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return found


def problem_of(folder: Path, *, hashed: bool = True) -> str | None:
    """What is wrong with a checkpoint folder, naming the file; None if every file is as the manifest says.

    Without `hashed`, only the files' sizes are compared: for a caller that knows that they were hashed just now.
    """
    manifest = folder / MANIFEST
    try:
        files = _read_json(manifest, MAX_MANIFEST)["files"]
        for name, expected in files.items():
            path = folder / name
            if Path(name).name != name or not name.isprintable():
                return f"{manifest}: names {shown(name, MAX_NAME)}, which is not in the folder"
            if not path.is_file():
                return f"{path}: missing"
            if path.stat().st_size != expected["size"]:
                return f"{path}: {path.stat().st_size} bytes, expected {shown(expected['size'])}"
            if hashed and sha256_of(path) != expected["sha256"]:
                return f"{path}: its sha256 is not the manifest's"
        missing = {STATE, "model.safetensors"} - files.keys()
        return f"{manifest}: lists no {' and no '.join(sorted(missing))}" if missing else None
    except FileNotFoundError:
        return f"{manifest}: missing"
    except ConfigError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{manifest}: cannot be read ({type(error).__name__})"


def _read_json(path: Path, limit: int) -> dict[str, Any]:
    """The object in a file of JSON. Raises: `ConfigError` for anything else; `OSError`."""
    try:
        found = json.loads(read_plain(path, limit))
    except ConfigError:
        raise
    except (ValueError, RecursionError):  # not UTF-8, not JSON, numbers of thousands of digits, or a thousand brackets
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds no object in JSON")
    return found


def checkpoint_folders(root: Path) -> list[Path]:
    """The committed checkpoints under `root`, oldest first, whole or not."""
    if not root.is_dir():
        return []
    folders = [path for path in root.iterdir() if CHECKPOINT_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=step_of)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def newest_checkpoint(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint under `root` that verifies, and what is wrong with the newer ones."""
    problems: list[str] = []
    for folder in reversed(checkpoint_folders(root)):
        problem = problem_of(folder)
        if problem is None:
            return folder, problems
        problems.append(problem)
    return None, problems


def set_aside_newer(root: Path, step: int) -> None:
    """Renames the checkpoints after `step`, which are damaged, to `step-N.damaged`: their steps will be saved again.

    Then `LATEST` names that of `step`; with -1, which means no checkpoint, it is removed.
    """
    for folder in checkpoint_folders(root):
        if step_of(folder) > step:
            aside = folder.with_name(f"{folder.name}.damaged")
            if aside.exists():
                shutil.rmtree(aside)
            os.rename(folder, aside)
    latest, name = root / LATEST, f"step-{step}"
    if step < 0:
        latest.unlink(missing_ok=True)
    elif not latest.exists() or latest.read_bytes() != name.encode():
        write_atomically(latest, name)


def load_checkpoint(folder: Path, *, only: Collection[str] | None = None, verified: bool = False) -> Checkpoint:
    """Reads a checkpoint; of its groups of tensors only those in `only`, if given.

    `verified` says that its files were hashed just now, by this process or another one, as in `newest_checkpoint`.

    Raises: `ConfigError` naming the file that is missing, damaged or of a later format.
    """
    problem = problem_of(folder, hashed=not verified)
    if problem is not None:
        raise ConfigError(f"checkpoint {folder}: {problem}")
    manifest, state = _read_json(folder / MANIFEST, MAX_MANIFEST), _read_json(folder / STATE, MAX_STATE)
    for name, values in ((STATE, state), (MANIFEST, manifest)):
        found = values.get("format")
        if type(found) is not int or found not in READABLE:
            raise ConfigError(f"{folder / name}: format {shown(found)}; this version reads formats 1 to {FORMAT}")
    tensors = {}
    for path in sorted(folder / name for name in manifest["files"] if name.endswith(".safetensors")):
        if only is not None and path.stem not in only:
            continue
        try:
            tensors[path.stem] = load_file(path)
        except Exception as error:  # somebody else's file may raise anything
            raise ConfigError(f"{path}: cannot be read ({printable(str(error), MAX_NAME)})") from None
    number = state["format"]
    return Checkpoint(folder, tensors, _in_words_of_format_2(state) if number == 1 else state, number)


def _in_words_of_format_2(state: dict[str, Any]) -> dict[str, Any]:
    """The `state` of format 1, where validation was called `test` and had no protocol, in the words of format 2.

    Wrong values in it stay as they are.
    """
    progress, config = state.get("progress"), state.get("config")
    if isinstance(progress, dict) and progress.get("phase") == "test":
        state = state | {"progress": progress | {"phase": "val"}}
    if isinstance(config, dict):
        state = state | {"config": config_in_words_of_format_2(config)}
    return state


def config_in_words_of_format_2(config: dict[str, Any]) -> dict[str, Any]:
    """A config from a checkpoint of format 1 in the words of format 2."""
    config = {"protocol": {"name": "whole"}} | _renamed(config, OF_FORMAT_1, "val_every_epochs")
    if isinstance(config.get("dataset"), dict):
        config["dataset"] = _renamed(config["dataset"], "test", "val")
    return config


def _renamed(values: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if key == old and new not in values else key: value for key, value in values.items()}


def check_tensors(checkpoint: Checkpoint, group: str, expected: Mapping[str, Tensor]) -> None:
    """Checks that the tensors of `group` fit a model whose own tensors are `expected`.

    Raises: `ConfigError` that names the file and a tensor that is missing, unknown, of another shape or type, or not
        finite where the model's own is; also for a running variance below 0.
    """
    path = checkpoint.folder / f"{group}.safetensors"
    found = checkpoint.tensors.get(group)
    if found is None:
        raise ConfigError(f"{checkpoint.folder / MANIFEST}: lists no {path.name}; {_DELETE} {checkpoint.folder}")
    problem = next((f"lacks '{key}'" for key in expected if key not in found), None)
    problem = problem or next(
        (f"holds {shown(key, MAX_NAME)}, which the model has not" for key in found if key not in expected), None
    )
    for key, own in expected.items():
        problem = problem or problem_of_tensor(key, found[key], own)
    if problem:
        raise ConfigError(f"{path}: {problem}; {_DELETE} {checkpoint.folder}")


_DELETE = "to go on from an earlier checkpoint, delete"


def problem_of_tensor(key: str, found: Tensor, own: Tensor) -> str | None:
    """What is wrong with a saved tensor that will replace a model's own."""
    if found.shape != own.shape or found.dtype != own.dtype:
        kinds = (f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}" for tensor in (found, own))
        return "'{}': found {}; expected {}".format(key, *kinds)
    problem = problem_of_values(key, found)
    return f"'{key}' holds {problem}" if problem and problem_of_values(key, own) is None else None


def problem_of_values(key: str, tensor: Tensor) -> str | None:
    """What is wrong with the numbers of the tensor `key`, of any library; None if nothing is."""
    values = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor  # torch has no isfinite
    if not bool(values.isfinite().all()):
        return "values that are not finite"
    if key.endswith(VARIANCES) and not values.is_complex() and bool((values < 0).any()):
        return "a variance below 0"
    return None


def prune(written: Path, keep: int, protected: str | None = None) -> None:
    """Deletes all checkpoints but the newest `keep` and the one named `protected`.

    `written`, which was saved just now, counts as the newest whatever its number: it always stays.
    """
    folders = sorted(checkpoint_folders(written.parent), key=lambda folder: folder == written)
    for folder in folders[:-keep]:
        if folder.name != protected:
            shutil.rmtree(folder, ignore_errors=True)
