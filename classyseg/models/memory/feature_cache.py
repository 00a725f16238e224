"""Features of a frozen backbone on the disk, so that later epochs need not compute them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from classyseg.errors import ConfigError
from classyseg.layers import BATCH_NORMS, FollowsProgress
from classyseg.models.classy_model import ClassyModel
from classyseg.tensor_files import TensorFiles

WITHOUT_EFFECT = {"training", "recompute", "activation_compression"}
"""Attributes of modules that do not change the features of a frozen backbone."""

log = logging.getLogger(__name__)


class FeatureCache:
    """The features that the heads of `model` read, for each image, in files under `folder`.

    A file's name is a hash of the image's values after all transforms. The name of its folder is a hash of the
    backbone's class, weights and layers' plain attributes (strides, dilations, epsilons), the blocks that heads read,
    and `settings` (all else that changes features: the model's config, normalisation, precision). So after any change
    features are computed again, and nothing old is read. Several processes may share the folder. All files in the
    folder, of all processes and runs, stay within `gigabytes` together. No whole file is removed.

    Raises: `ConfigError` where a part of the backbone trains, and where the folder cannot be made.
    """

    def __init__(self, folder: Path, model: ClassyModel, *, settings: str, gigabytes: float) -> None:
        check_frozen(model)
        self.model = model
        self.names = sorted({b.name for head in model.heads.values() for b in head.blocks})  # type: ignore[union-attr]
        self.files = TensorFiles(
            folder,
            self._model_key(settings),
            gigabytes,
            option="runtime.cache_features",
            limit_option="runtime.cache_gigabytes",
        )
        self.hits = 0
        self.misses = 0
        self._reported = (0, 0)
        self._epochs = 0

    def _model_key(self, settings: str) -> str:
        digest = hashlib.sha256(f"{torch.__version__} {settings} {self.names} {_structure(self.model)}".encode())
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
        found = [self.files.read(key, self.names, images.device) for key in keys]
        missing = [i for i, features in enumerate(found) if features is None]
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            with torch.no_grad():
                computed = self.model.forward_features(images[missing])
            for position, i in enumerate(missing):
                found[i] = {name: computed[name][position] for name in self.names}
                self.files.store(keys[i], found[i])  # type: ignore[arg-type]
        stacked = {name: torch.stack([features[name] for features in found if features]) for name in self.names}
        layout = (
            torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.preserve_format
        )
        return {name: x.to(memory_format=layout) if x.dim() == 4 else x for name, x in stacked.items()}

    def counts_of_phase(self) -> tuple[int, int]:
        """How many images were read and how many computed since the last call, in this process."""
        now, before = (self.hits, self.misses), self._reported
        self._reported = now
        return now[0] - before[0], now[1] - before[1]

    def report(self, phase: str, hits: int, misses: int) -> None:
        """Logs the counts of a phase, of the whole job. Warns once if the second epoch found nothing."""
        log.info("feature cache: %d of %d images read in this %s phase", hits, hits + misses, phase)
        if phase != "train":
            return
        self._epochs += 1
        if self._epochs == 2 and misses and not hits:  # the first epoch that can find something
            log.warning(
                "runtime.cache_features: a second epoch found none of its images in %s; random transforms, which make "
                "each image new, or a full folder leave the cache without use",
                self.files.root,
            )


def check_frozen(model: ClassyModel) -> None:
    """Raises: `ConfigError` where a part of the backbone trains, draws or counts statistics in training."""
    trains = [name for name, p in model.named_parameters() if p.requires_grad and not name.startswith("heads.")]
    if trains:
        raise ConfigError(
            "runtime.cache_features",
            f"found {len(trains)} tensors of the backbone that train, such as {trains[0]}; set "
            "model.frozen: true, as only the features of a frozen backbone stay the same",
        )
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    live = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if module.training and not name.startswith("heads.") and _differs_in_training(module)
    ]
    for module, mode in modes:
        module.training = mode
    if live:
        raise ConfigError(
            "runtime.cache_features",
            f"found {len(live)} modules of the backbone that work otherwise in training, such "
            f"as {live[0]}; features must stay the same. Set model.frozen: true",
        )


def _differs_in_training(module: nn.Module) -> bool:
    if isinstance(module, _NormBase):
        return isinstance(module, _BatchNorm) or module.running_mean is not None
    if isinstance(module, FollowsProgress):  # such as DropBlock, which changes with the training
        return True
    rates = [getattr(module, key, 0) for key in ("dropout", "attention_dropout")]  # attention has plain numbers
    from torchvision.ops import StochasticDepth  # whose import takes a second

    if isinstance(module, _DropoutNd | StochasticDepth):
        rates.append(module.p)
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


def _structure(model: ClassyModel) -> str:
    """A text of the classes of the backbone's modules and their plain attributes."""
    lines = []
    for name, module in model.named_modules():
        if name.partition(".")[0] != "heads":
            # Which batch norm a model has depends on the device and the number of processes: all count as one.
            kind = _BatchNorm if type(module) in BATCH_NORMS else type(module)
            values = sorted((key, value) for key, value in vars(module).items() if _is_plain(value))
            title = f"{kind.__module__}.{kind.__qualname__}"
            lines.append(f"{name} {title} {[(key, value) for key, value in values if key not in WITHOUT_EFFECT]}")
    return "\n".join(lines)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bool | int | float | str)


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
