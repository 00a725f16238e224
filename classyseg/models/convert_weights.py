"""Any readable file of weights to safetensors."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from classyseg.checkpoint import save_file
from classyseg.config import user_path
from classyseg.errors import ConfigError
from classyseg.io import sha256_of
from classyseg.models.build import build_model
from classyseg.models.load_weights import load_weights, require_sound
from classyseg.models.public_weights import WeightsSource, public_weights
from classyseg.weights.read import read_tensors


def convert_weights(source: str, target: str | Path, *, model: str = "", force: bool = False) -> str:
    """Writes the tensors of `source` to the safetensors file `target`; returns one line about what was done.

    Without `model`, the keys stay as they are, nested ones dotted. With the registered name `model`, they become that
    model's own, and every one must fit; the rest of the file (classifiers, heads that the name does not bring,
    optimizers) is left out. The file's metadata tell the source's name and sha256, and which library's names it used.

    Raises: `ConfigError` as `load_weights` does; for values that are not finite; and for a target that exists (without
    `force`) or cannot be written.
    """
    target = user_path(target)
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: ends with '{target.suffix}'; expected .safetensors")
    if target.exists() and not force:
        raise ConfigError(f"{target}: exists already; choose another name, or --force to replace it")
    built = build_model(model) if model else None
    weights = WeightsSource(source, public_weights(type(built), model) if built else {})
    path = weights.path
    metadata = {"format": "pt", "source": path.name, "model": model}
    if path.is_file():
        metadata["source_sha256"] = sha256_of(path)
    if built:
        report = load_weights(built, weights, variant=model)
        tensors = {key: built.state_dict()[key] for key in report.loaded}
        metadata |= {"library": report.library, "prefix": report.prefix}
        told = report.summary()
    else:
        tensors = read_tensors(path)
        require_sound(f"{path}", tensors)
        told = f"{len(tensors)} tensors"
    _save(tensors, target, {key: value for key, value in metadata.items() if value})
    return f"{target}: {told}"


def _save(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
    """Writes to another name and renames it, so that a crash leaves no half of a file."""
    part = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        part.unlink(missing_ok=True)  # an earlier process with this number left it; or it is a link
        save_file(_separate(tensors), part, metadata)
        os.replace(part, target)
    except Exception as error:  # safetensors wraps what the disk said in an exception of its own
        raise ConfigError(f"{target}: cannot be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors`, each with a whole storage of its own, as safetensors needs it: tied ones are written twice."""
    seen: set[int] = set()
    found = {}
    for key, value in tensors.items():
        storage = value.untyped_storage()
        alone = value.is_contiguous() and storage.nbytes() == value.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        found[key] = value if alone else value.clone(memory_format=torch.contiguous_format)
    return found
