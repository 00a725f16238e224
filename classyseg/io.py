"""Files: where data lies, and writing such that a crash leaves the old content or the new."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from iopath.common.file_io import PathManager

from classyseg.config import CONFIG_SUFFIXES, closest, listed, user_path
from classyseg.console import printable, shown
from classyseg.errors import ConfigError
from classyseg.run_folder import LOCK, check_run_folder, open_plain

MAX_OWNER = 200
"""How much of a lock's file a message shows; a line that we wrote is shorter."""
MAX_DIGITS = 19
"""Integers in records must fit into 64 bits."""
NAMES_OF_KINDS = {int: "a whole number", str: "a text"}

DATA_ROOT_VARIABLE = "CLASSYSEG_DATA"

CONFIGS = "task_configs"
"""The folder of the packaged task configs."""

paths = PathManager()
"""iopath's manager of paths. It opens local ones; plugins may register handlers for remote ones."""


def data_root() -> Path:
    """The folder of data sets: `--data-root` (it sets `$CLASSYSEG_DATA`), else `./data`."""
    return user_path(os.environ.get(DATA_ROOT_VARIABLE) or "data")


def data_path(path: str) -> Path:
    """The absolute path of a file or folder of the user's, which lies under `data_root()` unless it is absolute itself.

    `~` is the home folder. The path need not exist. If one exists whose name differs only in its form of Unicode, it is
    taken.
    """
    return existing_path(data_root() / user_path(path)).absolute()


def existing_path(path: str | Path) -> Path:
    """A path of the user's. If only one exists whose names differ in their form of Unicode, it is taken."""
    given = user_path(path)
    return given if str(given).isascii() or os.path.exists(given) else in_other_form(given.absolute()) or given


def in_other_form(
    path: Path, folder: Path | None = None, listings: dict[Path, Mapping[str, list[str]]] | None = None
) -> Path | None:
    """The path that exists and differs from `path` in its form of Unicode alone, as macOS and Linux write names.

    `folder`, in which the path lies, is taken as it is. `listings` caches what folders hold, for callers that ask
    often. Raises: `ConfigError` if there are several.
    """
    listings = {} if listings is None else listings
    found = folder if folder is not None and path.is_relative_to(folder) else Path(path.anchor)
    for part in path.relative_to(found).parts:
        if os.path.exists(found / part):
            found /= part
            continue
        if found not in listings:
            listings[found] = _by_form(found)
        same = listings[found].get(unicodedata.normalize("NFC", part), [])
        if len(same) > 1:
            raise ConfigError(f"{found}: {told_apart(same)}")
        if not same:
            return None
        found /= same[0]
    return found


def told_apart(names: Iterable[str]) -> str:
    """What is wrong with names that look the same."""
    written = " and ".join(map(ascii, names))
    return f"{written} differ in their form of Unicode alone; it is not clear which one is meant, so rename one"


def _by_form(folder: Path) -> Mapping[str, list[str]]:
    """The names in a folder by their composed form; none if it cannot be read."""
    names: dict[str, list[str]] = {}
    with suppress(OSError):
        for name in sorted(os.listdir(folder)):
            names.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return names


def data_folder(folder: str) -> Path:
    """The absolute path of `folder`, which lies under `data_root()` unless it is absolute itself.

    Raises: `ConfigError` when it does not exist, or lies where this user may not look.
    """
    path = data_path(folder)
    hint = ""
    try:
        if path.is_dir():
            return path
        if path.parent.is_dir():
            near = closest(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_dir()])
            hint = f"; did you mean '{near}'?" if near else ""
    except OSError as error:
        raise ConfigError(f"{path}: cannot be looked up ({error.strerror})") from None
    raise ConfigError(
        f"{path}: no such folder{hint} (data folders are looked up under --data-root, else ${DATA_ROOT_VARIABLE}, "
        "else ./data)"
    )


def package_folder() -> Path:
    return Path(__file__).parent


def find_task_config(path: str) -> Path:
    """`path` if it is a file, else the task config of that name in the installed package.

    Raises: `ConfigError` if neither exists: one line, with the file that was probably meant.
    """
    given, name = existing_path(path), printable(path) or "''"
    relative = given.as_posix().removeprefix(f"{CONFIGS}/")
    packaged = next((f for f in (package_folder() / CONFIGS, package_folder().parent / CONFIGS) if f.is_dir()), None)
    try:
        if given.is_file():
            return given
        if packaged is not None and path and (packaged / relative).is_file():
            return packaged / relative
        if path and given.is_dir():
            inside = _configs_in(given)
            known = "config.yaml" if "config.yaml" in inside else listed(inside, limit=8)
            problem = "is a folder; name a task config" + (f" in it: {known}" if known else "")
        elif path and given.exists():
            problem = "is no regular file; a task config is a small text file"
        elif given.is_symlink():
            problem = "is a link that leads nowhere"
        else:
            problem = f"no such file{_config_hint(given, relative, packaged)}"
    except OSError as error:
        problem = f"cannot be looked up ({error.strerror})"
    raise ConfigError(f"{name}: {problem}")


def _configs_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.suffix in CONFIG_SUFFIXES and entry.is_file())


def _config_hint(given: Path, relative: str, packaged: Path | None) -> str:
    """What a path of a task config that does not exist may have meant."""
    siblings = {Path(name).stem: name for name in _configs_in(given.parent)}
    near = closest(given.stem, siblings)
    if near is not None:
        return f"; did you mean '{printable(str(given.with_name(siblings[near])))}'?"
    known = [] if packaged is None else sorted(p.relative_to(packaged).as_posix() for p in packaged.rglob("*.yaml"))
    folder = relative if packaged is not None and (packaged / relative).is_dir() else relative.rpartition("/")[0]
    inside = [name for name in known if name.startswith(f"{folder}/")] if folder != "." else []
    if inside:
        return f"; packaged there: {', '.join(inside)}"
    if not given.parent.is_dir():
        return f": '{printable(str(given.parent))}' is no folder"
    by_stem = {Path(name).stem: name for name in known}
    near = closest(given.stem, by_stem)
    if near is not None:
        return f"; did you mean the packaged '{by_stem[near]}'?"
    tops = sorted({f"{top}/" if more else top for top, _, more in (name.partition("/") for name in known)})
    return f", and no packaged task config; packaged: {', '.join(tops)}" if tops else ""


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces `path` by `content`, in one rename after the bytes are on the disk.

    Leaves nothing else when that fails.
    """
    with written_atomically(path) as temporary, open(temporary, "xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Gives the name of a new file to write. At the end, when its bytes are on the disk, it becomes `path`.

    For content that is too large for one text. Leaves nothing else when that fails.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.unlink(missing_ok=True)  # an earlier process with this number left it; or it is a link
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # the message then names this path
        with suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Gives a new folder to fill with files. At the end it becomes `folder`, in one rename.

    The rename comes when all bytes are on the disk. A folder that exists already is replaced. Leaves nothing else when
    something fails.
    """
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of an earlier process with this number
    try:
        temporary.mkdir()
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_dir():
                fsync_folder(path)
                continue
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        fsync_folder(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(folder.parent)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_line(record: dict[str, Any]) -> str:
    """`record` as one line of JSON. Numbers that are not finite become null: JSON has none.

    Bytes of a file's name that are no text (surrogates in Python) are escaped; reading the JSON gives them back.
    """
    text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def append_bytes(path: Path, content: bytes, *, makes: bool = False, durable: bool = False) -> None:
    """Adds `content` to `path`: whole, or with a full disk (`OSError`) not at all. It `makes` a file that is not there.

    `durable` content is on the disk when this returns; that takes milliseconds.
    """
    with open(open_plain(path, os.O_WRONLY | os.O_APPEND | makes * os.O_CREAT), "ab", buffering=0) as file:
        end = file.tell()
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(end)
            raise
        if durable:
            os.fsync(file.fileno())
            fsync_folder(path.parent)  # which may have named the file just now


def append_json_line(path: Path, record: dict[str, Any], *, durable: bool = False) -> None:
    """Adds `record` to `path`, which is made if it is not there, as `append_bytes` does."""
    append_bytes(path, json_line(record).encode(), makes=True, durable=durable)


def read_json_lines(path: Path, required: Mapping[str, type] | None = None) -> list[dict[str, Any]]:
    """The whole records of `path`, without a last line that a crash cut short; none without the file.

    `required` are keys that each record has, and their types.

    Raises: `ConfigError` that names a line that is no record, or lacks a required key.
    """
    if not os.path.lexists(path):
        return []
    try:
        with open(open_plain(path, os.O_RDONLY), "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    return [_record(line, f"{path}, line {i}", required or {}) for i, line in enumerate(lines[:-1], 1) if line.strip()]


def _record(line: bytes, place: str, required: Mapping[str, type]) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"), parse_int=_int)
    except (ValueError, RecursionError):  # not UTF-8, not JSON, integers too large for a float, or a thousand brackets
        record = None
    if not isinstance(record, dict):
        raise ConfigError(f"{place}: found no record in JSON; mend the line, or delete it")
    for key, kind in required.items():
        if type(record.get(key)) is not kind:
            found = shown(record[key]) if key in record else "nothing"
            raise ConfigError(f"{place}: {key}: found {found}; expected {NAMES_OF_KINDS[kind]}; mend or delete it")
    return record


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


class FolderLock:
    """A lock that keeps two runs out of one folder. The kernel frees it when its process ends, in any way."""

    def __init__(self, folder: Path) -> None:
        check_run_folder(folder)
        self.path = folder / LOCK
        self._file: IO[bytes] = open(open_plain(self.path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            told = self._file.read(MAX_OWNER).decode("utf-8", "replace").strip()
            self._file.close()
            owner = printable(told)[:MAX_OWNER] or "another process"
            raise ConfigError(f"{folder}: in use by {owner}; wait for it, end it, or choose another --output") from None
        if not self.is_in_place():  # a failed start has just removed it
            self._file.close()
            raise ConfigError(f"{folder}: another process has just left it; try again")
        with suppress(OSError):  # on a full disk, the lock holds without its owner's name
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        # A worker may outlive its killed parent for some seconds: it must not keep the lock, or --resume would fail.
        os.register_at_fork(after_in_child=self._file.close)

    def is_in_place(self) -> bool:
        """Whether the locked file is still in the folder: nobody deleted or replaced it."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except OSError:
            return False

    def release(self) -> None:
        self._file.close()
