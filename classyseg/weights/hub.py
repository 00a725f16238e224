"""Models on the Hugging Face hub: the address `hf://owner/name@revision/folder`, downloads, uploads.

Only the files of a model's folder go either way: weights as safetensors, a description in JSON, a card.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

from classyseg.config import listed
from classyseg.console import MAX_NAME, printable, shown
from classyseg.errors import ConfigError
from classyseg.io import folder_written_whole
from classyseg.weights.cache import cache_folder

SCHEME = "hf://"
ADDRESS = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@\s]{1,200}))?"
    r"(?:/(?P<folder>[\w.-]+(?:/[\w.-]+)*))?/?"
)
EXPECTED = (
    f"accepted are such as {SCHEME}owner/name, {SCHEME}owner/name@revision and {SCHEME}owner/name@revision/folder"
)
CONFIG, WEIGHTS, README = "config.json", "model.safetensors", "README.md"
MODEL_FILES = (CONFIG, WEIGHTS)
MAX_BYTES = {CONFIG: 2**24, README: 2**20, WEIGHTS: 2**34}
"""The files that are ever downloaded, and the most bytes of each."""
TIMEOUT = 20.0
"""Seconds for what the hub says about a repository."""
COMMIT = re.compile(r"(?!\.)[\w.-]{1,64}")


class _TooLargeError(Exception):
    """A download grew beyond what its file may have."""


@dataclass(frozen=True)
class HubAddress:
    """A folder of a repository on the hub, at a revision: a branch, a tag, a commit; empty for the default branch."""

    repo: str
    revision: str = ""
    folder: str = ""

    @classmethod
    def of(cls, text: str) -> Self:
        """Reads `hf://owner/name@revision/folder`. Raises: `ConfigError`."""
        found = ADDRESS.fullmatch(text.removeprefix(SCHEME)) if text.startswith(SCHEME) else None
        if found is None or ".." in unquote(text) or not unquote(text).isprintable():
            raise ConfigError(f"found {shown(text, MAX_NAME)}; {EXPECTED}")
        return cls(found["repo"], unquote(found["revision"] or ""), found["folder"] or "")

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repo}{at}{f'/{self.folder}' if self.folder else ''}"

    def place(self, name: str) -> str:
        """The path of a file in the repository."""
        return f"{self.folder}/{name}" if self.folder else name


class Uploaded(NamedTuple):
    """What was uploaded, or would be: names and sizes in bytes; the address of the commit, empty for a dry run."""

    address: HubAddress
    files: dict[str, int]
    url: str


def is_hub_address(path: object) -> bool:
    return isinstance(path, str) and path.startswith(SCHEME)


def fetched(text: str, needed: Collection[str] = MODEL_FILES, *, token: str | None = None) -> Path:
    """A folder with the files `needed` of the model at an address, and its card, if it has one: plain files.

    They are downloaded into the hub's own cache, unless it has them, and linked from classyseg's. Without network, or
    with `HF_HUB_OFFLINE=1`, what the cache has is taken.

    Raises: `ConfigError` for a repository, a revision or a file that is not there or that is not to be seen, for files
    that are too large, for weights that are no safetensors, and where neither the hub nor the cache has them.
    """
    address = HubAddress.of(text)
    hub = _hub()
    with _told(address, hub):
        api = hub.HfApi(library_name="classyseg", token=token)
        wanted = _listed(api, hub, address, needed)
        revision, paths = address.revision or None, {}
        for name in wanted or (*needed, README):
            try:
                path = Path(_downloaded(api, address, name, revision, only_cached=wanted is None))
            except hub.errors.LocalEntryNotFoundError:
                if name != README:
                    raise
                continue
            _check_size(address, name, path.stat().st_size)
            paths[name] = path
            revision = path.parents[address.place(name).count("/")].name  # the commit: all are of the same one
    if revision is None or not COMMIT.fullmatch(revision):
        raise ConfigError(f"{address}: found {shown(revision)} where the cache of the hub names a commit")
    if WEIGHTS in paths:
        _check_safetensors(address, paths[WEIGHTS])
    return _linked(address, revision, paths)


def uploaded(
    files: Mapping[str, Path],
    address: HubAddress,
    *,
    private: bool = False,
    message: str = "",
    token: str | None = None,
    dry_run: bool = False,
) -> Uploaded:
    """Uploads `files` by name, in one commit, and nothing else. A repository or a branch that is missing is made.

    `private` is of a new repository; one that exists stays as it is. Raises: `ConfigError`.
    """
    if strange := sorted(set(files) - MAX_BYTES.keys()):
        raise ValueError(f"uploaded: found {strange}; a model's folder has {', '.join(MAX_BYTES)}")
    sizes = {name: path.stat().st_size for name, path in files.items()}
    for name, size in sizes.items():
        _check_size(address, name, size)
    hub = _hub()
    if dry_run:
        return Uploaded(address, sizes, "")
    with _told(address, hub):
        api = hub.HfApi(library_name="classyseg", token=token)
        api.create_repo(address.repo, private=private, exist_ok=True)
        if address.revision not in ("", "main"):
            api.create_branch(address.repo, branch=address.revision, exist_ok=True)
        operations = [hub.CommitOperationAdd(address.place(name), str(path)) for name, path in files.items()]
        commit = api.create_commit(
            address.repo,
            operations,
            commit_message=message or "A model of classyseg",
            revision=address.revision or None,
        )
    return Uploaded(address, sizes, str(commit.commit_url))


def _hub() -> Any:
    try:
        importlib.import_module("huggingface_hub.errors")
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise ConfigError(
            f"{SCHEME}: needs huggingface_hub, which is not installed: pip install 'classyseg[hub]'"
        ) from None


def _listed(api: Any, hub: Any, address: HubAddress, needed: Collection[str]) -> list[str] | None:
    """The files to download, whose sizes the hub tells; None where it cannot be asked.

    Raises: `ConfigError` for what is missing or too large.
    """
    httpx = importlib.import_module("huggingface_hub.utils").httpx
    try:
        info = api.model_info(address.repo, revision=address.revision or None, files_metadata=True, timeout=TIMEOUT)
    except hub.errors.HfHubHTTPError as error:
        if _status(error) < 500:
            raise
        return None
    except (hub.errors.OfflineModeIsEnabled, httpx.HTTPError):
        return None
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    missing = [address.place(name) for name in needed if address.place(name) not in sizes]
    if missing:
        within = f"{address.folder}/" if address.folder else ""
        found = sorted(name for name in sizes if name.startswith(within))
        raise ConfigError(
            f"{address}: has no {' and no '.join(missing)}, and is no model of classyseg; found "
            f"{printable(listed(found, limit=8), MAX_NAME) or 'nothing'}"
        )
    wanted = [*needed, *([README] if address.place(README) in sizes else [])]
    for name in wanted:
        _check_size(address, name, sizes[address.place(name)] or 0)
    return wanted


def _downloaded(api: Any, address: HubAddress, name: str, revision: str | None, *, only_cached: bool) -> str:
    found: str = api.hf_hub_download(
        address.repo,
        address.place(name),
        revision=revision,
        local_files_only=only_cached,
        tqdm_class=_bar_up_to(MAX_BYTES[name]),
    )
    return found


def _bar_up_to(most: int) -> type:
    """A bar of progress that breaks off a download which says one size and sends another."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        received = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.received += int(n or 0)
            if self.received > most:
                raise _TooLargeError(f"more than {most:,} bytes came")
            return super().update(n)

    return Bar


def _check_size(address: HubAddress, name: str, size: int) -> None:
    if size > MAX_BYTES[name]:
        raise ConfigError(f"{address}: {name} has {size:,} bytes; accepted are up to {MAX_BYTES[name]:,}")


def _check_safetensors(address: HubAddress, path: Path) -> None:
    """Raises: `ConfigError` for another format under this name: nothing else is read from a hub."""
    with open(path, "rb") as file:
        start = file.read(9)
    size = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
    if start[8:] != b"{" or size > path.stat().st_size:
        raise ConfigError(f"{address}: {WEIGHTS} is no file of safetensors, and nothing else is read from a hub")


def _linked(address: HubAddress, commit: str, paths: Mapping[str, Path]) -> Path:
    """A folder of plain files in classyseg's cache: the hub's cache has links, which the reader of a folder refuses."""
    name = "+".join([commit, *address.folder.split("/")]) if address.folder else commit  # no name has a plus
    folder = cache_folder().parent / "hub" / address.repo.replace("/", "--") / name
    same = {name: os.path.realpath(path) for name, path in paths.items()}
    if all((folder / file).is_file() and _as_large(folder / file, path) for file, path in same.items()):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder_written_whole(folder) as temporary:
            for file, path in same.items():
                try:
                    os.link(path, temporary / file)
                except OSError:  # another disk
                    shutil.copyfile(path, temporary / file)
    except OSError as error:
        raise ConfigError(f"{folder}: the cache cannot be written ({error.strerror or error})") from None
    return folder


def _as_large(one: Path, other: str) -> bool:
    return one.stat().st_size == os.stat(other).st_size


def _status(error: Any) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


@contextmanager
def _told(address: HubAddress, hub: Any) -> Iterator[None]:
    """Turns errors of the hub's library into one `ConfigError` each."""
    errors, httpx = hub.errors, importlib.import_module("huggingface_hub.utils").httpx
    where = f"{SCHEME}{address.repo}"
    try:
        yield
    except ConfigError:
        raise
    except errors.GatedRepoError:
        raise ConfigError(
            f"{where}: its owner grants access one by one: ask on the page of the repository, then `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{where}: has no revision {shown(address.revision or 'main', MAX_NAME)}") from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"{where}: no such repository, or a private one that you may not see: check the name, or `hf auth login`"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise ConfigError(f"{address}: the hub cannot be reached, and its cache does not have all files") from None
    except errors.HfHubHTTPError as error:
        status = _status(error)
        what = (
            "you may not do that: check `hf auth login`, and the token's rights" if status in (401, 403) else "failed"
        )
        raise ConfigError(f"{where}: {what} (status {status}: {_first_line(error)})") from None
    except errors.HFValidationError as error:
        raise ConfigError(f"{where}: {_first_line(error)}") from None
    except (errors.OfflineModeIsEnabled, httpx.HTTPError) as error:
        raise ConfigError(f"{where}: the hub cannot be reached ({_first_line(error)})") from None
    except _TooLargeError as error:
        raise ConfigError(f"{address}: {error}, more than accepted") from None
    except (OSError, ValueError, RuntimeError) as error:  # the library's own, such as a size that is not as told
        raise ConfigError(f"{where}: {type(error).__name__}: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    with suppress(IndexError):
        return printable(lines[0], MAX_NAME)
    return type(error).__name__
