"""From a folder to a predictor: a run, one of its checkpoints, a model's folder, also of the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from classyseg.checkpoint import (
    MANIFEST,
    MAX_STATE,
    STATE,
    load_checkpoint,
    newest_checkpoint,
    problem_of,
    problem_of_tensor,
)
from classyseg.config import ConfigTree
from classyseg.console import MAX_NAME, shown
from classyseg.errors import ConfigError, within, written_in
from classyseg.inference.description import Description, checked_description, description_of_state
from classyseg.inference.device import torch_device
from classyseg.inference.exported.formats import format_of
from classyseg.inference.exported.model import is_exported, load_exported
from classyseg.inference.memory import bytes_of
from classyseg.inference.network import Precision, known_precision
from classyseg.inference.predictor import Predictor
from classyseg.io import existing_path
from classyseg.models import ClassyModel, build_model
from classyseg.registry import MODELS, PROTOCOLS
from classyseg.run_folder import BEST, CHECKPOINT_NAME, CHECKPOINTS, MODEL, MODEL_CONFIG, measured_group, read_plain
from classyseg.shapes import bounded
from classyseg.weights.hub import MAX_BYTES, README, WEIGHTS, fetched, is_hub_address
from classyseg.weights.read import read_tensors

EXPECTED = (
    f"accepted are a run's folder (with {MODEL}/ or {CHECKPOINTS}/), a checkpoint (with {MANIFEST}), a model's folder "
    f"(with {MODEL_CONFIG} and {WEIGHTS}), a file that `classyseg export` wrote, an address on the hub such as "
    "hf://owner/name"
)


def load(
    path: str | Path,
    *,
    device: str = "auto",
    precision: Precision | None = None,
    protocol: Any = None,
    max_memory: int | str | None = None,
    channels_last: bool | None = None,
) -> Predictor:
    """A trained model at work: `load("runs/streets").predict("photo.jpg")`.

    `path` is a run, a checkpoint, a model's folder, a file that `classyseg export` wrote, or a model on the hub,
    `hf://owner/name@revision`. Of a run, `model/` is taken, else its best checkpoint, else its newest one that is
    whole. By default, `precision`, `protocol` and `channels_last` (the layout of images and weights) are those with
    which the run was measured. `max_memory` (`"2G"`, or bytes) bounds what a prediction takes in addition to the model.
    No data set and no training config is needed. Nothing is unpickled, and no path or address that a file names is
    followed.

    Raises: `ConfigError` for a folder that is none of these, or is damaged; it names the file.
    """
    if not isinstance(path, str | Path) or path == "":
        raise ConfigError(f"load: found {shown(path)}; name a folder, as text or as a pathlib.Path")
    options: dict[str, Any] = {  # built here: a mistake of the caller must not name a file
        "device": torch_device(device),
        "precision": None if precision is None else known_precision(precision),
        "protocol": None if protocol is None else PROTOCOLS.build(protocol),
        "max_memory": None if max_memory is None else bytes_of(max_memory),
        "channels_last": channels_last,
    }
    if not is_hub_address(path) and is_exported(path):
        return load_exported(existing_path(path), **options)
    found, verified = trained_folder(found_folder(path))
    if (found / MODEL_CONFIG).is_file():
        return _model_folder(found, options)
    return _checkpoint(found, options, verified=verified)


def described(path: str | Path) -> Description:
    """What the folder of a trained model says about it, without its weights. Raises: `ConfigError` as `load`."""
    found, _ = trained_folder(found_folder(path))
    if (found / MODEL_CONFIG).is_file():
        return _described_folder(found)
    checkpoint = load_checkpoint(found, only=(), verified=True)  # whoever reads its weights hashes them
    return description_of_state(checkpoint.state, str(found / STATE))


def files_of(path: str | Path) -> list[Path]:
    """The files that `load` reads of what is at `path`. Raises: `ConfigError` as `load`."""
    file = existing_path(path)
    if (row := format_of(file)) is not None and file.is_file():
        return [file, *(file.with_suffix(end) for end in row.others)]
    found, _ = trained_folder(found_folder(path))
    if (found / MODEL_CONFIG).is_file():
        return [found / MODEL_CONFIG, found / WEIGHTS]
    return [found / STATE, found / f"{measured_group(found)}.safetensors"]


def found_folder(path: str | Path) -> Path:
    """The folder at `path`; that of an address on the hub is downloaded. Raises: `ConfigError`."""
    if is_hub_address(path):
        return fetched(str(path))
    folder = existing_path(path)
    if not folder.is_dir():
        found = "no folder" if folder.exists() else "no such folder"
        raise ConfigError(f"{folder}: {found}; {EXPECTED}")
    return folder


def trained_folder(folder: Path) -> tuple[Path, bool]:
    """The model's folder or checkpoint that `folder` stands for; and whether its files were hashed just now."""
    if (folder / MODEL / MODEL_CONFIG).is_file():
        return folder / MODEL, False
    if (folder / MODEL_CONFIG).is_file() or (folder / MANIFEST).is_file():
        return folder, False
    if (folder / CHECKPOINTS).is_dir():
        return _best_or_newest(folder / CHECKPOINTS), True
    raise ConfigError(f"{folder}: {_told(folder)}; {EXPECTED}")


def _told(folder: Path) -> str:
    names = sorted(os.listdir(folder))
    return f"found {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "an empty folder"


def _best_or_newest(root: Path) -> Path:
    """The checkpoint of a run that is named the best, if it is whole, else the newest whole one."""
    best = best_of(root)
    if best is not None and problem_of(best) is None:
        return best
    newest, problems = newest_checkpoint(root)
    if newest is None:
        raise ConfigError(f"{root}: holds no whole checkpoint{''.join(f'; {problem}' for problem in problems[:3])}")
    return newest


def best_of(root: Path) -> Path | None:
    """The checkpoint under `root` that is named the best, whole or not; None where none is named."""
    if not (root / BEST).is_file():
        return None
    name = read_plain(root / BEST, 1000).decode("utf-8", "replace").partition(" ")[0]
    return root / name if CHECKPOINT_NAME.fullmatch(name) else None


def _checkpoint(folder: Path, options: Mapping[str, Any], *, verified: bool = False) -> Predictor:
    group = measured_group(folder)
    checkpoint = load_checkpoint(folder, only=(group,), verified=verified)
    tensors, path = checkpoint.tensors.get(group), folder / f"{group}.safetensors"
    if tensors is None:
        raise ConfigError(f"{folder / MANIFEST}: lists no {path.name}, which is in the folder")
    description = description_of_state(checkpoint.state, str(folder / STATE))
    return _predictor(description, tensors, folder / STATE, path, options)


def _model_folder(folder: Path, options: Mapping[str, Any]) -> Predictor:
    description = _described_folder(folder)
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder / WEIGHTS}: missing; a model's folder holds it and {MODEL_CONFIG}")
    predictor = _predictor(
        description, read_tensors(folder / WEIGHTS), folder / MODEL_CONFIG, folder / WEIGHTS, options
    )
    predictor.readme = _readme(folder / README)
    return predictor


def _readme(path: Path) -> str:
    """The card of a model's folder; empty where there is none."""
    if not os.path.lexists(path):
        return ""
    return read_plain(path, MAX_BYTES[README]).decode("utf-8", "replace")


def _described_folder(folder: Path) -> Description:
    path = folder / MODEL_CONFIG
    try:
        values = json.loads(read_plain(path, MAX_STATE))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no object in JSON; {EXPECTED}")
    return checked_description(values, str(path))


def _predictor(
    description: Description, tensors: Mapping[str, Tensor], source: Path, weights: Path, options: Mapping[str, Any]
) -> Predictor:
    with written_in(str(source)):
        model = _built(description, sum(tensor.numel() for tensor in tensors.values()), str(source))
    _fill(model, tensors, weights)
    given = None if options["protocol"] is None else "protocol"  # the caller's, not the file's
    try:
        return Predictor.from_description(model, description, **options)
    except ConfigError as error:
        error.change(
            lambda each: each if each.path[:1] == (given,) else each._replace(source=each.source or str(source))
        )
        raise


def _built(description: Description, num_weights: int, source: str) -> ClassyModel:
    with within("model"):
        config = MODELS.validate(ConfigTree(dict(description.model), source), placed=True)
    if getattr(config, "weights", None) is not None:
        raise ConfigError(
            "model.weights", "found a source of weights, which a trained model has no use for; take it out"
        )
    # The config comes from anybody: it may build a model a little larger than its weights, not one that fills the
    # memory.
    with bounded(most=4 * num_weights + 10**7):
        return build_model(config, len(description.classes), load=False)


def _fill(model: ClassyModel, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Gives `model` its weights, but for heads that only train. Raises: `ConfigError`, naming the file."""
    own = model.state_dict()
    problem = next((f"lacks '{key}'" for key in own if key not in tensors), None)
    for key, tensor in tensors.items():
        if problem is None and key in own:
            problem = problem_of_tensor(key, tensor, own[key])
        elif problem is None and not key.startswith("heads."):
            problem = f"holds {shown(key, MAX_NAME)}, which the model has not"
    if problem:
        raise ConfigError(f"{path}: {problem}; the file is of another model than its config says")
    model.load_state_dict({key: tensors[key] for key in own})
