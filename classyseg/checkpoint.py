"""Checkpoints: folders that are either whole or not there, read without executing anything."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.io import fsync_folder, sha256_of, write_atomically

MANIFEST = "manifest.json"
STATE = "state.json"
LATEST = "LATEST"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: groups of tensors (`model`, `optimizer`) and a tree of plain values."""

    folder: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Writes `root/step-{step}` and points `root/LATEST` at it.

    The files go to a temporary folder, the manifest with their sizes and sha256 last; everything is flushed to the disk
    before one rename makes it a checkpoint. A whole checkpoint of this step that is there already is kept as it is.

    Raises: `OSError` when something cannot be written; nothing half-written stays then.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"step-{step}"
    if folder.exists():
        if problem_of(folder) is None:
            write_atomically(root / LATEST, folder.name)
            return folder
        shutil.rmtree(folder)
    temporary = root / f"step-{step}.tmp-{os.getpid()}"
    try:
        temporary.mkdir()
        for name, group in tensors.items():
            path = temporary / f"{name}.safetensors"
            try:
                save_file(_with_own_storages(group), path)
            except SafetensorError as error:  # safetensors' own wrapping of what the disk said
                raise OSError(f"{path}: {error}") from None
        (temporary / STATE).write_text(json.dumps({"format": FORMAT, **state}, indent=1), encoding="utf-8")
        files = {
            path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(temporary.iterdir())
        }
        (temporary / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1), encoding="utf-8")
        for path in temporary.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        fsync_folder(temporary)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(root)
    write_atomically(root / LATEST, folder.name)
    return folder


def _with_own_storages(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`group` on the host, where tied tensors, which safetensors refuses, are copied: each name is saved whole."""
    found: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, value in group.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        found[key] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return found


def problem_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, naming the file; None when every file is as the manifest says."""
    manifest = folder / MANIFEST
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            path = folder / name
            if Path(name).name != name:
                return f"{manifest}: names '{name}', which is not in the folder"
            if not path.is_file():
                return f"{path}: missing"
            if path.stat().st_size != expected["size"]:
                return f"{path}: {path.stat().st_size} bytes, expected {expected['size']}"
            if sha256_of(path) != expected["sha256"]:
                return f"{path}: its sha256 is not the manifest's"
        missing = {STATE, "model.safetensors"} - files.keys()
        return f"{manifest}: lists no {' and no '.join(sorted(missing))}" if missing else None
    except FileNotFoundError:
        return f"{manifest}: missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{manifest}: cannot be read ({type(error).__name__})"


def checkpoint_folders(root: Path) -> list[Path]:
    """The committed checkpoints under `root`, oldest first, whole or not."""
    if not root.is_dir():
        return []
    folders = [path for path in root.iterdir() if path.name.removeprefix("step-").isdecimal() and path.is_dir()]
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
    """Renames the checkpoints after `step`, which cannot be used, to `step-N.damaged`: their numbers come again."""
    for folder in checkpoint_folders(root):
        if step_of(folder) > step:
            aside = folder.with_name(f"{folder.name}.damaged")
            if aside.exists():
                shutil.rmtree(aside)
            os.rename(folder, aside)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads a checkpoint. Raises: `ConfigError` naming the file that is missing, damaged or of a later format."""
    problem = problem_of(folder)
    if problem is not None:
        raise ConfigError(f"checkpoint {folder}: {problem}")
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if state.get("format") != FORMAT:
        raise ConfigError(f"{folder / STATE}: format {state.get('format')}; this version reads format {FORMAT}")
    try:
        tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    except SafetensorError as error:
        raise ConfigError(f"checkpoint {folder}: {error}") from None
    return Checkpoint(folder, tensors, state)


def remove_leftovers(root: Path) -> None:
    """Deletes what a killed process left half written."""
    if root.is_dir():
        for path in root.glob("*.tmp-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def prune(written: Path, keep: int, protected: str | None = None) -> None:
    """Deletes all checkpoints but the newest `keep` and the one named `protected`.

    `written`, the one just saved, counts as the newest whatever its number, so that it always stays.
    """
    folders = sorted(checkpoint_folders(written.parent), key=lambda folder: folder == written)
    for folder in folders[:-keep]:
        if folder.name != protected:
            shutil.rmtree(folder, ignore_errors=True)
