"""A run's folder may come from somebody else: reading it follows no link, and waits for no pipe."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from classyseg.console import MAX_NAME, printable
from classyseg.errors import ConfigError

CHECKPOINTS = "checkpoints"
EVALUATION = "evaluation-"
"""The beginning of the names of files and folders that `classyseg evaluate` writes."""
MODEL = "model"
"""The folder for other people: weights, `config.json`, a model card."""
MODEL_CONFIG = "config.json"
CONFIG = "config.yaml"
LOCK = ".lock"
METRICS = "metrics.jsonl"
STEPS = "steps.jsonl"
BAD_SAMPLES = "bad_samples.jsonl"
NON_FINITE = "non_finite.jsonl"
PREDICTIONS = "predictions"
"""The folder of pictures that the hook `sample_predictions` draws, with a folder for each step."""
REPORT, REPORT_PAGE = "report", "report.html"
"""The folder of what a report needs in addition to the records, and the page itself."""
FACTS, CONFUSION, IMAGES = REPORT_FILES = ("facts.json", "confusion.json", "images.json")
"""What is in that folder."""
TRACKERS = ("csv", "mlflow", "tensorboard", "wandb")
"""The folders of trackers."""
POINTS = ".points.jsonl"
"""The file in a tracker's folder that has what metrics.jsonl lacks; a folder with it is a tracker's."""
COMPLEXITY = "model_complexity.md"
PROFILE, PROFILE_TABLE = "profile.json.gz", "profile.txt"
STARTED = ".started"
"""When the run began, in seconds since 1970."""
GIVEN = ".files"
"""The names of the files that meters wrote, one per line."""
ASIDE = ".before"
"""The beginning of the name of a folder with a replaced run, kept until the new run has begun."""
MAX_GIVEN = 2**20
FILES = (CONFIG, LOCK, METRICS, STEPS, BAD_SAMPLES, NON_FINITE, STARTED, GIVEN, REPORT_PAGE)
LATEST = "LATEST"
BEST = "BEST"
CHECKPOINT_NAME = re.compile(r"step-(0|[1-9][0-9]{0,17})")
"""The folder of a checkpoint: its step, which fits into 64 bits."""
AVERAGE = "average"
"""The group of a checkpoint that holds averaged weights, where a run averages them."""
LEFTOVER = "*.tmp-*"
"""The names of files while they are written."""

KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
}


def measured_group(checkpoint: Path) -> str:
    """The group of tensors in a checkpoint that the run measured: the averaged weights, if there are some."""
    return AVERAGE if (checkpoint / f"{AVERAGE}.safetensors").exists() else "model"


def check_run_folder(folder: Path) -> None:
    """Checks what is in a run's folder, before anything in it is opened. The folder itself may be a link.

    Raises: `ConfigError` for a link, pipe, socket or device directly in the folder, in one of the run's folders there,
        in a checkpoint or in a run that is put aside; for a folder where a run has a file, or the reverse; for a path
        that cannot be read.
    """
    try:
        _check(folder)
    except OSError as error:
        raise ConfigError(f"{_told(Path(error.filename or folder))}: cannot be looked at ({error.strerror})") from None


def _check(folder: Path) -> None:
    files = {*FILES, *given_files(folder)}
    for path in _plain_entries(folder):
        if path.name in files:
            require(path, "a file")
        if path.name == LOCK and path.lstat().st_nlink > 1:
            raise ConfigError(f"{path}: has another name elsewhere (a hard link), and a run writes it; delete it")
        if path.name.startswith(ASIDE):
            require(path, "a folder")
            _check(path)
    if os.path.lexists(folder / MODEL):
        require(folder / MODEL, "a folder")
        for path in _plain_entries(folder / MODEL):
            require(path, "a file")
    for name in (PREDICTIONS, REPORT, *TRACKERS):
        if os.path.lexists(folder / name):
            require(folder / name, "a folder")
            for _ in _plain_entries(folder / name):
                pass
    root = folder / CHECKPOINTS
    if not os.path.lexists(root):
        return
    require(root, "a folder")
    for path in _plain_entries(root):
        if path.name in (LATEST, BEST):
            require(path, "a file")
        if CHECKPOINT_NAME.fullmatch(path.name):
            require(path, "a folder")
            for _ in _plain_entries(path):
                pass


def given_files(folder: Path) -> list[str]:
    """The names of the files that meters wrote in `folder`, without those that every run has.

    Raises: `ConfigError` as `read_plain`.
    """
    noted = folder / GIVEN
    if not os.path.lexists(noted):
        return []
    names = read_plain(noted, MAX_GIVEN).decode("utf-8", "replace").splitlines()
    return [name for name in names if name not in FILES]


def _plain_entries(folder: Path) -> Iterator[Path]:
    """The paths in `folder`, sorted. Raises: `ConfigError` for one that is neither a file nor a folder."""
    for path in sorted(folder.iterdir()):
        found = kind_of(path)
        if found == "a link":
            target = printable(os.readlink(path), MAX_NAME)
            raise ConfigError(
                f"{_told(path)}: found a link to '{target}'; no link is followed within a run's folder: put the file "
                "or folder itself there, or remove the link"
            )
        if found not in ("a file", "a folder"):
            raise ConfigError(f"{_told(path)}: found {found}; a run's folder holds files and folders only: remove it")
        yield path


def _told(path: Path) -> str:
    """The path on one line: somebody else may have chosen the name."""
    return printable(str(path))


def kind_of(path: Path) -> str:
    """The kind of `path`, without following links: `a file`, `a folder`, `a link`, `a pipe`, or as in `KINDS`."""
    return KINDS.get(stat.S_IFMT(path.lstat().st_mode), "something unknown")


def require(path: Path, kind: str) -> None:
    """Raises: `ConfigError` if `path`, which must exist, is not of this `kind`."""
    found = kind_of(path)
    if found != kind:
        raise ConfigError(f"{_told(path)}: found {found}; expected {kind}: move it away, or delete it")


def open_plain(path: Path, flags: int) -> int:
    """A descriptor of the file at `path`, as from `os.open`. Opening never waits and never follows a link.

    Raises: `ConfigError` for a link, and for anything else than a file; `OSError` as `os.open` does.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError:
        if os.path.lexists(path):
            require(path, "a file")
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        require(path, "a file")
        raise ConfigError(f"{path}: changed its kind just now; expected a file")
    return descriptor


def read_plain(path: Path, limit: int) -> bytes:
    """The content of the file at `path`. Raises: as `open_plain`; `ConfigError` for more than `limit` bytes."""
    with open(open_plain(path, os.O_RDONLY), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ConfigError(f"{path}: has more than {limit} bytes; no run writes so much there")
    return content


def remove_leftovers(folder: Path, pattern: str = LEFTOVER) -> None:
    """Deletes what a killed process left half written in `folder`; a link is deleted, not its target."""
    if not folder.is_dir():
        return
    for path in folder.glob(pattern):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Raises: `OSError` if no file can be made in `folder`."""
    descriptor, name = tempfile.mkstemp(prefix=".writable-", dir=folder)
    os.close(descriptor)
    os.unlink(name)
