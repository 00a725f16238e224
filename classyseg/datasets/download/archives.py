"""Unpacks archives that strangers made: nothing is written outside the target, and never more than a limit."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO, Any

from classyseg.console import shown
from classyseg.errors import ConfigError, DataError

CHUNK = 2**20
MAX_MEMBERS = 1_000_000
MAX_BYTES = 200 * 10**9
MAX_NAME = 1000
MAX_PART = 255
MAX_DEPTH = 50
MAX_DIRECTORY = 2**24
"""Bytes of the list of files in a zip, which is held in memory; COCO's 118,287 files take 12 * 10**6."""
MAX_HEADERS = 2**20
"""Bytes of the headers of one file in a tar."""
MAX_GLOBAL_HEADERS = 100
ITS_OWN_FAULTS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EINVAL, errno.EILSEQ)
"""Errors of writing that the names in an archive lead to; others are the disk's."""
OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
"""Compressions of tar that take little memory, whatever the stream holds; xz may ask for gigabytes."""


def unpack(
    archive: Path, target: Path, *, move: str = "", to: str = "", max_bytes: int = MAX_BYTES, members: int = MAX_MEMBERS
) -> int:
    """Unpacks a zip or tar archive into `target`; returns the number of files. What lies under `move` comes under `to`.

    It unpacks into the folder `unpacking(archive, target)` first. When all is unpacked, files of the same names in
    `target` are replaced. With `move`, other members are left out. Only one process may do so at a time. The folder is
    removed when all or nothing is done. A process that is stopped in between leaves it: it says that `target` is not
    whole.

    Raises: `DataError`, with nothing left behind, for a broken archive; for links, devices, encrypted and sparse files,
    names that are absolute, climb with `..` or come twice; for what takes much memory (xz, zips that are packed by
    other means than deflate); and for more than `members`, or `max_bytes` when unpacked. `ConfigError` for a disk that
    is full, or may not be written.
    """
    temporary = unpacking(archive, target)
    try:
        remove(temporary)
        temporary.mkdir(parents=True)
        count = _extract(archive, temporary, move, to, max_bytes, members)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, DataError) or not isinstance(error, Exception):
            raise
        if isinstance(error, OSError) and error.errno is not None and error.errno not in ITS_OWN_FAULTS:
            raise ConfigError(f"{archive}: cannot be unpacked to {target} ({error.strerror})") from None
        reason = f"{type(error).__name__}: {error}"[:300]  # readers may raise anything for a broken archive
        raise DataError(f"{archive}: cannot be unpacked ({reason})") from None
    try:
        _move(temporary, target)
    except OSError as error:
        raise ConfigError(
            f"{error.filename2 or error.filename}: cannot be written ({error.strerror}); {target} is not whole yet"
        ) from None
    return count


def unpacking(archive: Path, target: Path) -> Path:
    """The folder in `target` that is there while `archive` is unpacked, or where that was broken off."""
    return target / f".unpacking-{archive.name}"


def _extract(archive: Path, folder: Path, move: str, to: str, max_bytes: int, members: int) -> int:
    count, left = 0, max_bytes
    for name, source in _members(archive, members, max_bytes):
        if not name.startswith(move):
            continue
        path = folder / _safe(archive, to + name.removeprefix(move))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            raise DataError(f"{archive}: holds {shown(name, MAX_NAME)} twice")
        left -= write_file(source, path, left, f"{archive}: unpacks to more than {max_bytes} bytes")
        count += 1
    return count


def _move(folder: Path, target: Path) -> None:
    """All files below `folder` to the same places below `target`; `folder` goes last."""
    for path in folder.iterdir():
        goal = target / path.name
        if not path.is_dir():
            try:
                os.replace(path, goal)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                shutil.copyfile(path, goal)  # a link in `target` leads to another disk
                path.unlink()
        else:
            goal.mkdir(parents=True, exist_ok=True)
            _move(path, goal)
    folder.rmdir()


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
        raise DataError(f"{archive}: holds {shown(name, MAX_NAME)}, which would be written outside; nothing was")
    if len(name) > MAX_NAME or max(map(len, map(os.fsencode, path.parts))) > MAX_PART:
        raise DataError(f"{archive}: holds a name of {len(name)} characters, {shown(name)}")
    if len(path.parts) > MAX_DEPTH:
        raise DataError(f"{archive}: holds folders in folders, {len(path.parts)} deep")
    return path


def write_file(source: IO[bytes], path: Path, left: int, message: str) -> int:
    """Writes a file; returns how many bytes. They are counted while they come: headers may lie."""
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


class _ZipFile(io.BufferedReader):
    """A file for `zipfile` that limits one read: `zipfile` reads the whole list of files at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise DataError(f"{self.name}: has a list of files of {size} bytes; accepted are {MAX_DIRECTORY}")
        return super().read(size)


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with _ZipFile(io.FileIO(archive)) as file, zipfile.ZipFile(file) as opened:
        for info in opened.infolist():
            kind, name = stat.S_IFMT(info.external_attr >> 16), info.orig_filename
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{archive}: holds {shown(name, MAX_NAME)}, a link or a device; accepted are files")
            if info.flag_bits & 1:
                raise DataError(f"{archive}: holds {shown(name, MAX_NAME)}, which is encrypted")
            if info.is_dir():
                continue
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"{archive}: holds {shown(name, MAX_NAME)}, packed by method {info.compress_type}; "
                    "accepted is deflate"
                )
            with opened.open(info) as source:
                yield name, source


def _tar_members(archive: Path, start: bytes, max_bytes: int) -> Iterator[tuple[str, IO[bytes]]]:
    opener = next((opener for mark, opener in OPENERS.items() if start.startswith(mark)), open)
    with closing(opener(archive, "rb")) as stream:
        forward = _Forward(archive, stream, max_bytes)
        opened = tarfile.TarFile(fileobj=forward)  # type: ignore[arg-type]
        while (info := forward.next_member(opened)) is not None:
            if info.isdir():
                continue
            source = opened.extractfile(info) if info.isfile() and not info.issparse() else None
            if source is None:
                raise DataError(
                    f"{archive}: holds {shown(info.name, MAX_NAME)}, a link, a device or a sparse file; "
                    "accepted are files"
                )
            yield info.name, source
        forward.finish()


class _Forward:
    """A stream for `tarfile` that only goes forward, with limits for all bytes and for those of headers."""

    def __init__(self, archive: Path, stream: IO[bytes], max_bytes: int) -> None:
        self.archive, self.stream, self.position = archive, stream, 0
        self.max_bytes = 2 * max_bytes + 2**20  # headers and padding come on top
        self.mode, self.name = "rb", str(archive)
        self._header_bytes: int | None = 0
        self._last = b""

    def next_member(self, opened: tarfile.TarFile) -> tarfile.TarInfo | None:
        self._header_bytes = 0
        info = opened.next()
        self._header_bytes = None
        opened.members = []  # type: ignore[attr-defined]  # else it remembers all of them
        if len(opened.pax_headers) > MAX_GLOBAL_HEADERS:
            raise DataError(f"{self.archive}: has {len(opened.pax_headers)} headers for all files")
        return info

    def finish(self) -> None:
        """Reads what follows the last member, so that checksums of the whole are verified.

        Raises: `DataError` if what follows the last member is broken or cut off: `tarfile` takes that for the end.
        """
        if self._last != bytes(tarfile.BLOCKSIZE):
            raise DataError(f"{self.archive}: cannot be unpacked (it is cut off or broken after {self.position} bytes)")
        while self._take(CHUNK):
            pass

    def read(self, size: int = -1) -> bytes:
        if self._header_bytes is not None:
            self._header_bytes += size
        if not 0 <= size <= CHUNK or (self._header_bytes or 0) > MAX_HEADERS:
            raise DataError(f"{self.archive}: has a header of {max(size, self._header_bytes or 0)} bytes")
        self._last = self._take(size)
        return self._last

    def _take(self, size: int) -> bytes:
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
        while position > self.position and self._take(min(CHUNK, position - self.position)):
            pass


def remove(path: Path) -> None:
    """A file or a folder with all that is in it; nothing where nothing is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
