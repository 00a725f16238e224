"""Unpacking archives that strangers made: nothing is written outside the target, and nothing without a limit."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO, Any

from classyseg.config import ConfigError, DataError

CHUNK = 2**20
MAX_MEMBERS = 1_000_000
MAX_BYTES = 200 * 10**9
MAX_NAME = 1000
THE_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
"""Errors that are no fault of the archive."""
OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def unpack(
    archive: Path, target: Path, *, move: str = "", to: str = "", max_bytes: int = MAX_BYTES, members: int = MAX_MEMBERS
) -> int:
    """Unpacks a zip or tar archive into `target`, what lies under `move` under `to` instead; how many files it holds.

    First into a temporary folder beside, which replaces nothing; files of the same names in `target` are replaced when
    all is unpacked. With `move`, other members are left out.

    Raises: `DataError`, with nothing left behind, for a broken archive; for links, devices, encrypted and sparse files,
    names that are absolute, climb with `..` or come twice; and for more than `members`, or `max_bytes` when unpacked.
        `ConfigError` for a disk that is full, or may not be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".unpacking-") as temporary:
        written: set[str] = set()
        left = max_bytes
        try:
            for name, source in _members(archive, members, max_bytes):
                if not name.startswith(move):
                    continue
                path = _safe(archive, to + name.removeprefix(move))
                if str(path) in written:
                    raise DataError(f"{archive}: holds '{name}' twice")
                written.add(str(path))
                left -= _write(
                    source, Path(temporary, path), left, f"{archive}: unpacks to more than {max_bytes} bytes"
                )
            for done in sorted(written):
                (target / done).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(temporary, done), target / done)
        except DataError:
            raise
        except Exception as error:  # readers raise whatever a broken archive leads to
            if isinstance(error, OSError) and error.errno in THE_DISKS:
                raise ConfigError(f"{target}: cannot be written ({error.strerror})") from None
            raise DataError(f"{archive}: cannot be unpacked ({type(error).__name__}: {error})") from None
    return len(written)


def _safe(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or ".." in path.parts
        or not path.parts
        or "\\" in name
        or "\0" in name
        or ":" in path.parts[0]
    ):
        raise DataError(f"{archive}: holds '{name[:MAX_NAME]}', which would be written outside; nothing was")
    if len(name) > MAX_NAME:
        raise DataError(f"{archive}: holds a name of {len(name)} characters")
    return path


def _write(source: IO[bytes], path: Path, left: int, message: str) -> int:
    """How many bytes were written. Counted while they come: headers may say anything."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with open(path, "xb") as file:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > left:
                raise DataError(message)
            file.write(chunk)
    return size


def _members(archive: Path, limit: int, max_bytes: int) -> Iterator[tuple[str, IO[bytes]]]:
    """The regular files of an archive with their contents, in its order."""
    with open(archive, "rb") as file:
        start = file.read(6)
    listed = _zip_members(archive) if start[:2] == b"PK" else _tar_members(archive, start, max_bytes)
    for count, member in enumerate(listed, start=1):
        if count > limit:
            raise DataError(f"{archive}: holds more than {limit} files")
        yield member


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{archive}: holds '{info.filename}', a link or a device; accepted are files")
            if info.flag_bits & 1:
                raise DataError(f"{archive}: holds '{info.filename}', which is encrypted")
            if info.is_dir():
                continue
            with opened.open(info) as source:
                yield info.orig_filename, source


def _tar_members(archive: Path, start: bytes, max_bytes: int) -> Iterator[tuple[str, IO[bytes]]]:
    opener = next((opener for mark, opener in OPENERS.items() if start.startswith(mark)), open)
    with closing(opener(archive, "rb")) as stream:
        forward: Any = _Forward(archive, stream, max_bytes)
        opened = tarfile.TarFile(fileobj=forward)
        for info in opened:
            opened.members = []  # type: ignore[attr-defined]  # else it remembers all of them
            if info.isdir():
                continue
            source = opened.extractfile(info) if info.isfile() and not info.issparse() else None
            if source is None:
                raise DataError(
                    f"{archive}: holds '{info.name}', a link, a device or a sparse file; accepted are files"
                )
            yield info.name, source


class _Forward:
    """A stream for `tarfile` that only goes forward, within limits: of all bytes, and of those of a header."""

    def __init__(self, archive: Path, stream: IO[bytes], max_bytes: int) -> None:
        self.archive, self.stream, self.position = archive, stream, 0
        self.max_bytes = 2 * max_bytes + 2**20  # headers and padding come on top
        self.mode, self.name = "rb", str(archive)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= CHUNK:
            raise DataError(f"{self.archive}: has a header of {size} bytes")
        data = self.stream.read(size)
        self.position += len(data)
        if self.position > self.max_bytes:
            raise DataError(f"{self.archive}: unpacks to more than {self.max_bytes} bytes")
        return data

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        if position < self.position:
            raise DataError(f"{self.archive}: has headers that lead back")
        while position > self.position and self.read(min(CHUNK, position - self.position)):
            pass


def remove(path: Path) -> None:
    """A file or a folder with all that is in it; nothing where nothing is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
