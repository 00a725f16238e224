"""Downloads: whole or not at all, once, resumed where that is safe, and verified."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zipfile
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlparse
from urllib.request import Request, build_opener

from tqdm import tqdm

from classyseg.errors import ConfigError
from classyseg.locks import alone

CHUNK = 2**20
TIMEOUT_SECONDS = 60
MAX_NAME = 120
MAX_GROWTH = 10
"""A zip archive that claims to unpack to more than this times its size is not unpacked to hash its content."""

log = logging.getLogger(__name__)


def file_name(url: str) -> str:
    """The name under which the file at `url` is kept."""
    return re.sub(r"[^\w.-]", "_", Path(unquote(urlparse(url).path)).name)[-MAX_NAME:].lstrip(".") or "file"


def download(url: str, folder: Path, digest: str = "", *, place: str = "") -> Path:
    """The file at `url` in `folder`, downloaded unless it is there.

    An interrupted download goes on where it stopped, unless the file has changed since. `digest` is `ALGORITHM:HEX`
    with the first 8 or more digits; several algorithms are separated by `|`. A file that is there is not verified
    again, and needs no network. If several processes ask at once, one downloads. `place` describes the folder in
    messages.

    Raises: `ConfigError` for a download that fails, and for one whose hash is wrong, which is removed.
    """
    path = folder / file_name(url)
    if path.is_file():
        return path
    try:
        with alone(folder / f"{path.name}.lock"):  # one process downloads, the others find the file
            if not path.is_file():
                log.info("downloading %s to %s", url, path)
                _download(url, path, digest)
    except ConfigError:
        raise
    except (HTTPException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(
            f"{url} could not be downloaded: {reason}{place and f'; {place}'}. Call again to go on where it stopped, "
            f"or download it yourself to {path}"
        ) from None
    return path


def _download(url: str, path: Path, digest: str) -> None:
    """Downloads to `path`, by way of a file `path.part` that stays when the connection breaks."""
    part = path.with_name(f"{path.name}.part")
    resumed = _append(url, part, verifiable=bool(digest))
    problem = hash_problem(part, digest)
    if problem and resumed:  # the file may have changed without notice of the server: once more, from its start
        _restart(url, part)
        problem = hash_problem(part, digest)
    _version_file(part).unlink(missing_ok=True)
    if problem:
        part.unlink()
        raise ConfigError(f"{url}: {problem}; the download was removed")
    os.replace(part, path)


def _append(url: str, part: Path, *, verifiable: bool) -> bool:
    """Downloads what is missing of `part`; returns whether some of it was kept from before.

    Only the rest of the same version is taken. What the server called the version (`ETag`, else the time of the last
    change) is kept in a file next to the part. Where it gave none, and no hash makes the whole `verifiable`, the
    download starts again.
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
        continues = is_the_rest(response.headers.get("Content-Range", ""), have)
        if resumes and not (continues and _version(response.headers) in ("", version)):
            return _restart(url, part)
        length = response.headers.get("Content-Length")
        with open(part, "ab" if resumes else "wb") as file:
            if not resumes:  # only after the old part was cut: else a crash would pair it with the new version
                version_file.write_text(_version(response.headers), encoding="utf-8")
            before = file.tell()
            with _progress(part, before, length) as progress:
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    progress.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
            received = file.tell() - before
    if length is not None and received != int(length):
        raise OSError(f"the connection ended after {received} of {length} bytes")
    return resumes


def is_the_rest(content_range: str, have: int) -> bool:
    """Whether a part of a file that a server sends begins after `have` bytes and goes on to the end."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range)
    return found is not None and int(found[1]) == have and found[3] in ("*", str(int(found[2]) + 1))


def _progress(part: Path, before: int, length: str | None) -> tqdm[Any]:
    """A bar on a terminal."""
    total = None if length is None else before + int(length)
    name = part.name.removesuffix(".part")
    return tqdm(desc=name, total=total, initial=before, unit="B", unit_scale=True, disable=None, leave=False)


def _restart(url: str, part: Path) -> bool:
    part.unlink()
    return _append(url, part, verifiable=False)


def _version(headers: HTTPMessage) -> str:
    """The version for `If-Range`: a strong `ETag`, or the time of the last change."""
    tag = headers.get("ETag") or ""
    return tag if tag.startswith('"') else headers.get("Last-Modified") or ""


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def hash_problem(path: Path, digest: str) -> str:
    """What is wrong with the hash of `path`; empty if it is right, or if none is known."""
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
    """The hash of the only file in a zip archive: PyTorch-Encoding names archives by it. Empty for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = [info for info in archive.infolist() if not info.is_dir()]
            if len(files) != 1 or files[0].file_size > MAX_GROWTH * path.stat().st_size:
                return ""
            with archive.open(files[0]) as file:
                return hashlib.file_digest(file, algorithm).hexdigest()  # type: ignore[arg-type]  # has readinto
    except Exception:  # no archive, or a damaged one
        return ""
