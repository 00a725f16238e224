"""Features of a frozen backbone on disk, so that later epochs need not compute them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import classyseg
from classyseg.config import ConfigError
from classyseg.models.classy_model import ClassyModel

GIGABYTE = 10**9
WITHOUT_EFFECT = {"training", "recompute", "activation_compression", "_frozen", "_frozen_norm"}
"""Attributes of modules that leave the features of a frozen backbone as they are."""


class FeatureCache:
    """What the heads of `model` read, for each image, in files under `folder`.

    A file's name is a hash of the image's own values after all transforms, in a folder whose name is a hash of the
    backbone's class, weights and layers' plain attributes (strides, dilations, epsilons), the blocks that heads read,
    and `settings` (all else that changes features: the model's config, normalisation, precision). Whatever changes,
    then, is computed anew; nothing old is read. Several processes may share the folder.
    Nothing is stored beyond `gigabytes`, and nothing removed.

    Raises: `ConfigError` where a part of the backbone trains.
    """

    def __init__(self, folder: Path, model: ClassyModel, *, settings: str, gigabytes: float) -> None:
        check_frozen(model)
        self.model = model
        self.names = sorted({b.name for head in model.heads.values() for b in head.blocks})  # type: ignore[union-attr]
        self.folder = folder / self._model_key(settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.free = gigabytes * GIGABYTE - sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
        self.hits = 0
        self.misses = 0

    def _model_key(self, settings: str) -> str:
        versions = f"{torch.__version__} {classyseg.__version__}"
        digest = hashlib.sha256(f"{versions} {settings} {self.names} {_structure(self.model)}".encode())
        for key, value in self.model.state_dict().items():
            if not key.startswith("heads."):
                digest.update(key.encode())
                digest.update(_bytes(value))
        return digest.hexdigest()[:16]

    def keys(self, images: Tensor) -> list[str]:
        """A key for each image (N, C, H, W) as it came from the transforms."""
        kind = f"{images.dtype} {tuple(images.shape[1:])}".encode()
        return [hashlib.sha256(kind + _bytes(image)).hexdigest()[:32] for image in images]

    def features(self, keys: Sequence[str], images: Tensor) -> dict[str, Tensor]:
        """The features of the normalised `images` (N, C, H, W): read, or computed and stored."""
        found = [self._read(key, images.device) for key in keys]
        missing = [i for i, features in enumerate(found) if features is None]
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            with torch.no_grad():
                computed = self.model.forward_features(images[missing])
            for position, i in enumerate(missing):
                found[i] = {name: computed[name][position] for name in self.names}
                self._store(keys[i], found[i])  # type: ignore[arg-type]
        stacked = {name: torch.stack([features[name] for features in found if features]) for name in self.names}
        layout = (
            torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.preserve_format
        )
        return {name: x.to(memory_format=layout) if x.dim() == 4 else x for name, x in stacked.items()}

    def _read(self, key: str, device: torch.device) -> dict[str, Tensor] | None:
        path = self.folder / f"{key}.safetensors"
        try:
            return {name: value.to(device) for name, value in load_file(path).items()}
        except (OSError, SafetensorError):  # not there, or another process is not done with it, or it is damaged
            return None

    def _store(self, key: str, features: dict[str, Tensor]) -> None:
        size = sum(value.numel() * value.element_size() for value in features.values())
        if size > self.free:
            return
        self.free -= size
        path = self.folder / f"{key}.safetensors"
        temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        save_file({name: value.detach().cpu().contiguous() for name, value in features.items()}, temporary)
        os.replace(temporary, path)


def check_frozen(model: ClassyModel) -> None:
    """Raises: `ConfigError` where a part of the backbone trains."""
    trains = [name for name, p in model.named_parameters() if p.requires_grad and not name.startswith("heads.")]
    if trains:
        raise ConfigError(
            f"runtime.cache_features: found a backbone of which {len(trains)} tensors train, such as {trains[0]}; only "
            "features of a frozen one stay the same. Set model.frozen: true"
        )


def _structure(model: ClassyModel) -> str:
    """The classes of the backbone's modules and their plain attributes, in a text."""
    lines = []
    for name, module in model.named_modules():
        if name.partition(".")[0] != "heads":
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            values = sorted((key, value) for key, value in vars(module).items() if _is_plain(value))
            lines.append(f"{name} {kind} {[(key, value) for key, value in values if key not in WITHOUT_EFFECT]}")
    return "\n".join(lines)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bool | int | float | str)


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
