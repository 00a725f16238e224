"""Public and saved weights into a model: strictly, with every difference named."""

from __future__ import annotations

import pickle
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from classyseg.config import ConfigError, closest
from classyseg.io import paths
from classyseg.models.classy_model import ClassyModel

MAX_LISTED = 8


def load_weights(model: ClassyModel, weights: str, *, variant: str = "", classifier: str | None = None) -> None:
    """Loads `weights`: a name that the registered name `variant` knows, a file, a checkpoint folder or a URL.

    A file is safetensors, or torch's own format read without executing anything. Its tensors are those of the
    backbone, or of the whole model when it holds `heads.*`. Every tensor must fit: the reference's own classifier is
    the one thing that may be left over, unless `classifier` names the head that takes it.

    Raises: `ConfigError` listing the missing, unexpected and mismatched keys; for a file that cannot be read; for a
    name that does not exist; for a download whose hash is wrong. The model is unchanged then.
    """
    known = model.known_weights(variant)
    state = _download(known[weights]) if weights in known else _read(weights, known)
    expected = model.state_dict()
    if classifier is not None:
        state = {
            f"heads.{classifier}.{k}" if k.startswith(model.classifier_prefixes) else k: v for k, v in state.items()
        }
    if not any(key.startswith("heads.") for key in state):
        expected = {key: value for key, value in expected.items() if not key.startswith("heads.")}
    left_over = [key for key in state if key.startswith(model.classifier_prefixes) and key not in expected]
    state = {key: value for key, value in state.items() if key not in left_over}
    problems = _differences(expected, state)
    if problems:
        raise ConfigError(
            f"model.weights: '{weights}' does not fit {variant or type(model).__name__}: {'; '.join(problems)}"
        )
    model.load_state_dict(state, strict=False)


def _differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    # Old files lack the count of batches that batch norm keeps, which nothing here reads.
    missing = [key for key in expected if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key} is {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    groups = (("missing keys", missing), ("unexpected keys", unexpected), ("other shapes", shapes))
    return [f"{len(keys)} {title}: {_listed(keys)}" for title, keys in groups if keys]


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:MAX_LISTED]) + (", ..." if len(keys) > MAX_LISTED else "")


def _read(weights: str, known: dict[str, str]) -> dict[str, Tensor]:
    if urlparse(weights).scheme in ("http", "https", "file"):
        return _download(weights)
    path = Path(paths.get_local_path(weights)) if "://" in weights else Path(weights)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        near = closest(weights, known)
        raise ConfigError(
            f"model.weights: found '{weights}', which is no file and no known name"
            f"{f'; did you mean {near!r}?' if near else '.'} Known: {', '.join(known) or 'none'}"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(f"model.weights: {path} cannot be read as weights: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        kinds = sorted({type(value).__name__ for value in state.values()}) if isinstance(state, dict) else []
        found = f"a dict of {', '.join(kinds)}" if kinds else f"a {type(state).__name__}"
        raise ConfigError(f"model.weights: {path} holds {found}; expected a state dict of tensors by key")
    return state


def _download(url: str) -> dict[str, Tensor]:
    """The state dict at `url`, from torch.hub's cache or downloaded; a hash at the end of the file name is checked."""
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True, progress=False
        )
    except (URLError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"model.weights: {url} could not be downloaded and verified: {reason}; "
            "download it yourself and give its path, or set weights: null"
        ) from None
