"""Reads tensors by key from files of weights. Files are recognised by their content, and nothing is executed."""

from __future__ import annotations

import gzip
import io
import json
import mmap
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from safetensors.torch import load, load_file
from torch import Tensor

from classyseg.config import user_path
from classyseg.console import MAX_NAME, printable, shown
from classyseg.errors import ConfigError
from classyseg.pickled import LazyTensor, UnreadableError, dict_of, steps_of
from classyseg.run_folder import measured_group
from classyseg.weights.paddle_file import read_paddle
from classyseg.weights.torch_file import LEGACY_MAGIC, is_torch_zip, read_legacy_torch, read_torch_zip

MAX_GROWTH = 10
MAX_SMALL_ARCHIVE = 2**20
"""An archive may unpack to so many times its size, or to so many bytes. Weights compress to two thirds at best."""
MAX_SMALL = 16 * 2**20
"""Bytes that a file's header may take, and that its tensors may claim together, however small the file is."""
MAX_CLAIMED = 4
"""How often, in total, tensors may share the bytes of a file."""
MAX_KEY = 500
MAX_DEPTH = 20
MAX_ITEMS = 200_000
MAX_TENSORS = 50_000
"""The largest number of keys, as each costs time: ten times that of the largest models with optimizer state."""
MEMBER_SUFFIXES = (".pth", ".pt", ".bin", ".pdparams", ".safetensors", ".tar")
EXPECTED = "expected safetensors, torch's .pth/.pt, Paddle's .pdparams, or a zip or tar archive with one of them"
STRANGERS = (
    (b"<", "a web page or XML; was the download an error message?"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with `git lfs pull`"),
    (b"\x89HDF", "HDF5"),
    (b"\x08\x08", "a protocol buffer"),
    (b"\x93NUMPY", "one numpy array"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by dotted key, on the CPU; nested mappings are flattened, what is no tensor is left out.

    Reads safetensors, torch's formats (old and new), Paddle's `.pdparams`, a zip or tar archive with one such file,
    and a checkpoint folder of classyseg, of which the averaged weights are taken, if it has some. Nothing is unpacked
    to the disk. The memory taken is a few times the size of the file for weights; for what is made to take more, up to
    some 50 times, and some 60 MB however small it is.

    Raises: `ConfigError` for a file that is none of these, is damaged, wants to run code, or holds no tensors.
    """
    path = user_path(path)
    if path.is_dir():
        path = path / f"{measured_group(path)}.safetensors"
    if not path.is_file():
        found = "found no regular file" if path.exists() else "no such file"
        raise ConfigError(f"{path}: {found}; {EXPECTED}, or a checkpoint folder of classyseg")
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            return _read(file, size, steps_of(size), path)
    except Exception as error:  # a hostile file may raise anything
        told = next((part for part in error.args if isinstance(part, str)), "")  # other messages may be endless
        text = printable(told.partition("\n")[0], MAX_NAME)
        reason = text if isinstance(error, UnreadableError) else f"damaged ({type(error).__name__}: {text})"
        raise ConfigError(f"{path}: cannot be read as weights: {reason}") from None


def _read(file: IO[bytes], size: int, max_steps: int, path: Path | None = None) -> dict[str, Tensor]:
    """The tensors of the file at `path`, or of the member of an archive, which is in memory then.

    `max_steps` is for the size on the disk, also in an archive.
    """
    start = file.read(512)
    file.seek(0)
    if not start:
        raise UnreadableError("it is empty")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        _check_header(file)
        return _flatten(load_file(path) if path else load(file.read()), size)
    if start[:1] == b"\x80":
        return _from_pickle(file, size, max_steps)
    if start[:2] == b"PK":
        with zipfile.ZipFile(file) as archive:
            _check_zip(archive, _limit(size))
            if is_torch_zip(archive.namelist()):
                return _flatten(read_torch_zip(archive, max_steps), size)
            _refuse_nested(path)
            return _from_zip(archive, max_steps)
    packed = start[:2] == b"\x1f\x8b"
    if packed or start[257:262] == b"ustar" or (path is not None and path.suffix == ".tar"):
        _refuse_nested(path)
        return _from_tar(_unpacked(file, _limit(size)) if packed else file, max_steps)
    if start[8:9] == b"{":
        raise UnreadableError("it ends within the header of a safetensors file")
    text = start.lstrip()
    found = next((what for begin, what in STRANGERS if text.startswith(begin)), "a file of unknown format")
    raise UnreadableError(f"found {found}; {EXPECTED}")


def _check_header(file: IO[bytes]) -> None:
    """Checks what safetensors does not: the header's length, the number of tensors, and keys that come twice."""
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_SMALL:
        raise UnreadableError(f"its header has {length} bytes; no weights have so many keys")
    header = file.read(length)
    _check_count(header.count(b'"data_offsets"'))
    json.loads(header, object_pairs_hook=dict_of)
    file.seek(0)


def _check_count(number: int) -> None:
    if number > MAX_TENSORS:
        raise UnreadableError(f"it has more than {MAX_TENSORS} tensors; no weights have so many")


def _from_pickle(file: IO[bytes], size: int, max_steps: int) -> dict[str, Tensor]:
    """Reads a file that is one pickle (Paddle), or several and raw numbers (torch before 1.6)."""
    if isinstance(file, io.BytesIO):
        return _flatten(_unpickled(file, size, max_steps), size)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:  # reading from it makes up no data
        return _flatten(_unpickled(content, size, max_steps), size)


def _unpickled(content: Any, size: int, max_steps: int) -> Any:
    found = read_paddle(content, max_steps)
    return read_legacy_torch(content, size, max_steps) if found == LEGACY_MAGIC else found


# -- archives --------------------------------------------------------------------------------------------------------


def _limit(size: int) -> int:
    return max(MAX_SMALL_ARCHIVE, MAX_GROWTH * size)


def _refuse_nested(path: Path | None) -> None:
    if path is None:
        raise UnreadableError("found an archive in an archive; unpack it")


def _check_zip(archive: zipfile.ZipFile, limit: int) -> None:
    """Raises: `UnreadableError` for names that lead out, and for more content than `limit` bytes."""
    names = archive.namelist()
    _check_names(names)
    if len(set(names)) < len(names):
        raise UnreadableError("found two members of one name")
    if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in archive.infolist()):
        raise UnreadableError("found members that are neither stored nor deflated")
    total = sum(info.file_size for info in archive.infolist())
    if total > limit:
        raise UnreadableError(f"it says that it unpacks to {total} bytes; no weights compress so well")


def _check_names(names: list[str]) -> None:
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise UnreadableError(f"found the member {shown(name)}, which leads out of the archive")


def _from_zip(archive: zipfile.ZipFile, max_steps: int) -> dict[str, Tensor]:
    content = archive.read(_only(archive.namelist()))
    return _read(io.BytesIO(content), len(content), max_steps)


def _unpacked(file: IO[bytes], limit: int) -> IO[bytes]:
    with gzip.GzipFile(fileobj=file) as packed:
        content = packed.read(limit + 1)
    if len(content) > limit:
        raise UnreadableError(f"it unpacks to more than {limit} bytes; no weights compress so well")
    return io.BytesIO(content)


def _from_tar(file: IO[bytes], max_steps: int) -> dict[str, Tensor]:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        members: dict[str, tarfile.TarInfo] = {}
        end = -1
        for member in archive:
            if not end < member.offset <= member.offset_data <= size or not 0 <= member.size <= size:
                raise UnreadableError(f"its member {shown(member.name)} says that it has {member.size} bytes")
            if member.name in members:
                raise UnreadableError("found two members of one name")
            end, members[member.name] = member.offset, member
        _check_names(list(members))
        content = archive.extractfile(_only([name for name, member in members.items() if member.isfile()]))
        assert content is not None  # a regular file, as chosen above
        return _read(io.BytesIO(content.read()), size, max_steps)


def _only(names: list[str]) -> str:
    weights = [name for name in names if name.endswith(MEMBER_SUFFIXES)]
    if len(weights) != 1:
        raise UnreadableError(f"found {len(weights)} files of weights in this archive; expected exactly one")
    return weights[0]


# -- flattening ------------------------------------------------------------------------------------------------------


def _flatten(tree: Any, size: int) -> dict[str, Tensor]:
    """Reads every tensor in nested mappings, by its dotted key. The file's `size` limits what tensors may claim.

    Paddle writes tensors in nested places as pairs (name, array).
    """
    found: dict[str, Tensor] = {}
    claimed = 0
    for key, value in _leaves(tree):
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], LazyTensor):
            value = value[1]
        if not isinstance(value, Tensor | LazyTensor):
            continue
        if key in found:
            raise UnreadableError(f"found the key {shown(key)} twice")
        _check_count(len(found) + 1)
        claimed += value.nbytes if isinstance(value, Tensor) else value.num_bytes
        if claimed > max(MAX_SMALL, MAX_CLAIMED * size):
            raise UnreadableError(f"its tensors say that they have more than {claimed} bytes; it has {size}")
        found[key] = value.tensor() if isinstance(value, LazyTensor) else value
    if not found:
        kind = type(tree).__name__
        raise UnreadableError(f"found a {kind} without tensors; expected a state dict of tensors by key")
    return found


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """The values in nested mappings that are no mappings, in order, with their dotted keys."""
    pending = [("", tree, 0)]
    count = characters = 0
    while pending:
        key, value, depth = pending.pop()
        if not isinstance(value, Mapping):
            yield key, value
            continue
        count += len(value)
        if depth >= MAX_DEPTH or count > MAX_ITEMS:
            raise UnreadableError(f"it nests deeper than {MAX_DEPTH} mappings, or has more than {MAX_ITEMS} items")
        children = [(f"{key}.{name}" if key else str(name), item, depth + 1) for name, item in value.items()]
        if any(len(name) > MAX_KEY or not name.isprintable() for name, _, _ in children):
            raise UnreadableError(f"it has a key of more than {MAX_KEY} characters, or of some that cannot be printed")
        characters += sum(len(name) for name, _, _ in children)
        if characters > MAX_SMALL:
            raise UnreadableError(f"its keys have more than {MAX_SMALL} characters")
        pending += reversed(children)
