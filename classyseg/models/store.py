"""Public weights: what is known of them, and a cache that downloads, resumes and verifies."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

import torchvision

from classyseg.config import ConfigError

CACHE_VARIABLE = "CLASSYSEG_CACHE"
CHUNK = 2**20
TIMEOUT_SECONDS = 60
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")


@dataclass(frozen=True)
class PublicWeights:
    """Weights that somebody published, and how images are prepared for them.

    `digest` is `sha256:` or `sha1:` and the first 8 or more hexadecimal digits, or empty where the publisher gives
    none. `resize` and `crop` are the sides in pixels at which the classifier was measured.
    """

    url: str
    digest: str
    licence: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"


def torchvision_weights(variant: str) -> dict[str, PublicWeights]:
    """The weights that torchvision publishes for the model that it calls `variant`; empty where it has none."""
    if variant not in torchvision.models.list_models(torchvision.models):
        return {}
    found: dict[str, PublicWeights] = {}
    for entry in torchvision.models.get_model_weights(variant):
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


def cache_folder() -> Path:
    """`$CLASSYSEG_CACHE`, else `classyseg` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(home) / "classyseg") / "weights"


def fetch(url: str, digest: str = "") -> Path:
    """The file at `url`, from the cache or downloaded into it; an interrupted download goes on where it stopped.

    `digest` is `ALGORITHM:HEX`, of which any first 8 or more digits; without one, a hash at the end of the file name
    (torch.hub's habit) is taken. A file in the cache is not verified again, and needs no network.

    Raises: `ConfigError` for a download that fails, and for one whose hash is wrong, which is removed.
    """
    name = Path(unquote(urlparse(url).path)).name
    if not digest and (in_name := HASH_IN_NAME.search(name)):
        digest = f"sha256:{in_name[1]}"
    folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:8]  # other servers use the same file names
    path = folder / name
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process downloads, the others find the file
            if not path.is_file():
                _download(url, path, digest)
    except (URLError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(
            f"{url} could not be downloaded: {reason}; the cache is {cache_folder()} (${CACHE_VARIABLE}). "
            "Call again to go on where it stopped, or download it yourself and give its path"
        ) from None
    return path


def _download(url: str, path: Path, digest: str) -> None:
    part = path.with_name(f"{path.name}.part")
    resumed = part.is_file() and part.stat().st_size > 0
    _append(url, part)
    if resumed and not _verified(part, digest):  # the file may have changed since: once more, from its start
        part.unlink()
        _append(url, part)
    if not _verified(part, digest):
        algorithm, _, expected = digest.partition(":")
        found = _hash(part, algorithm)
        part.unlink()
        raise ConfigError(
            f"{url}: found the {algorithm} {found[: len(expected)]}, expected {expected}; the download was removed"
        )
    os.replace(part, path)


def _append(url: str, part: Path) -> None:
    """Downloads what is missing of `part`."""
    have = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response: Any = urlopen(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # nothing was missing
            return
        raise
    with response:
        resumes = getattr(response, "status", None) == HTTPStatus.PARTIAL_CONTENT
        length = response.headers.get("Content-Length")
        with open(part, "ab" if resumes else "wb") as file:
            before = file.tell()
            while chunk := response.read(CHUNK):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            received = file.tell() - before
    if length is not None and received != int(length):
        raise OSError(f"the connection ended after {received} of {length} bytes")


def _hash(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _verified(path: Path, digest: str) -> bool:
    algorithm, _, expected = digest.partition(":")
    return not expected or _hash(path, algorithm).startswith(expected)
