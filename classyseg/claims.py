"""The folder of a run: which run may start in it, what belongs to a run, and how a failed start leaves it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from pathlib import Path

from classyseg import launcher
from classyseg.config import listed
from classyseg.errors import ConfigError
from classyseg.io import FolderLock, write_atomically
from classyseg.run_folder import (
    BAD_SAMPLES,
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    GIVEN,
    LOCK,
    METRICS,
    MODEL,
    MODEL_CONFIG,
    NON_FINITE,
    POINTS,
    PREDICTIONS,
    REPORT,
    REPORT_FILES,
    REPORT_PAGE,
    STARTED,
    STEPS,
    TRACKERS,
    given_files,
    read_plain,
)

RECORDS = (CONFIG, METRICS, STEPS, BAD_SAMPLES, NON_FINITE)
SIGNS = (*RECORDS, CHECKPOINTS)
"""A folder with one of these holds a run, or files that a run would overwrite."""
MOVING, BEFORE, REPLACED = ".before-moving", ".before", ".replaced"
"""The places of a run that `overwrite` replaces: while it is moved, before the new run's first step, and after it."""

CHECKPOINT = re.compile(r"step-\d+(\.damaged|\.tmp-.*)?|(LATEST|BEST)(\.tmp-.*)?")
"""What a run has in its folder of checkpoints."""
SHARED = {
    CHECKPOINTS: CHECKPOINT,
    PREDICTIONS: re.compile(r"step-\d+(\.tmp-.*)?"),
    REPORT: re.compile(rf"({'|'.join(map(re.escape, REPORT_FILES))})(\.tmp-.*)?"),
}
"""The folders in a run's folder where others may have files, too, and the names there that are the run's."""

log = logging.getLogger(__name__)


def check_free(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Checks that a run may start in `folder`; changes nothing.

    Raises: `ConfigError` when it holds a run and neither `resume` nor `overwrite` is asked for, when it holds something
    else that `overwrite` would replace, or when it cannot be written.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite: found both; one continues the run in a folder, one replaces it")
    try:
        names = _names(folder)
    except OSError as error:
        raise ConfigError(f"--output {folder}: cannot be written ({error.strerror})") from None
    above = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        problem = "Permission denied" if above.is_dir() else "Not a directory"
        raise ConfigError(f"--output {folder}: cannot be written ({problem})")
    if overwrite:
        _check_is_a_run(folder, names)
    elif not resume and names & {*SIGNS} and not is_of_this_job(folder):
        raise ConfigError(
            f"--output {folder}: holds a run already; continue it with --resume, or choose another folder, or replace "
            "it with --overwrite"
        )


def _names(folder: Path) -> set[str]:
    """The names in `folder`; if a start was killed before its first step, the names before that start."""
    if not os.path.lexists(folder):
        return set()
    names = {path.name for path in folder.iterdir()}
    folders = [folder / name for name in (BEFORE, MOVING) if name in names and not (folder / name).is_symlink()]
    aside = {path.name for kept in folders for path in kept.iterdir()}
    if BEFORE in names:
        names -= {*SIGNS}
    return (names | aside) - {BEFORE, MOVING, REPLACED, STARTED, GIVEN}


def _check_is_a_run(folder: Path, names: set[str]) -> None:
    """Raises: `ConfigError` for a folder that is no run's: `--overwrite` must not delete anything there."""
    was_run = LOCK in names or any((folder / CHECKPOINTS).glob("step-*/manifest.json"))
    if names - {LOCK} and not (was_run and CONFIG in names):
        raise ConfigError(
            f"--output {folder}: --overwrite replaces a run, but this folder holds none (a run has {CONFIG} and "
            f"{LOCK}); found {listed(sorted(names), limit=5)}; choose another folder"
        )


def is_of_this_job(folder: Path) -> bool:
    """Whether `torchrun` has restarted this process, and the run in `folder` belongs to the same job."""
    began = launcher.restarted_job_began()
    try:
        return began is not None and float(read_plain(folder / STARTED, 100)) >= began
    except (OSError, ValueError):  # an older version, which had no such file, or somebody else began it
        return False


class RunFolder:
    """A run's folder, locked by this process. Before `keep` is called, `close` restores it as before the start.

    Raises: `ConfigError` as `check_free` does, and when another run is at work in it.
    """

    def __init__(self, folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        check_free(folder, resume=resume, overwrite=overwrite)
        self.folder = folder
        self._kept = False
        self._lock: FolderLock | None = None
        self._made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
        self._had_lock = os.path.lexists(folder / LOCK)
        self._contents: dict[str, bytes] = {}
        self._undoes = False
        try:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._lock = FolderLock(folder)
                self._take(resume=resume, overwrite=overwrite)
            except OSError as error:
                raise ConfigError(f"--output {folder}: cannot be written ({error.strerror})") from None
        except BaseException:
            self.close()
            raise

    def _take(self, *, resume: bool, overwrite: bool) -> None:
        self._finish_what_was_begun()
        check_free(self.folder, resume=resume, overwrite=overwrite)  # nobody else can change the answer now
        self.resumes = resume or is_of_this_job(self.folder)
        self._is_new = not (self.resumes and any(os.path.lexists(self.folder / name) for name in SIGNS))
        self._undoes = True
        if self._is_new:
            self._put_aside()
            write_atomically(self.folder / STARTED, f"{time.time()!r}\n")
        else:
            paths = [self.folder / name for name in RECORDS]
            self._contents = {path.name: path.read_bytes() for path in paths if path.is_file()}

    def is_in_place(self) -> bool:
        """Whether the folder is still the one that was claimed."""
        return self._lock is not None and self._lock.is_in_place()

    def keep(self) -> None:
        """Called when the run has done a step: the run that it replaces is deleted."""
        if self._kept:
            return
        self._kept = True
        self._contents = {}
        if (self.folder / BEFORE).is_dir():
            os.rename(self.folder / BEFORE, self.folder / REPLACED)
            _remove(self.folder / REPLACED)

    def close(self) -> None:
        """Frees the folder. Without `keep`, it is then as before the start: removed if the start has made it."""
        if not self._kept:
            try:
                self._undo()
            except OSError as error:  # the error that ended the start is more important
                log.warning("%s: not as before the start (%s)", self.folder, error)
        if self._lock is not None:
            self._lock.release()

    def _undo(self) -> None:
        if self._made:
            if self._lock is not None:
                shutil.rmtree(self.folder, ignore_errors=True)
            for path in self._made:
                _remove_if_empty(path)
            return
        if self._undoes and self._is_new:
            self._finish_what_was_begun()
        elif self._undoes:
            for name in RECORDS:
                path, content = self.folder / name, self._contents.get(name)
                if content is None:
                    path.unlink(missing_ok=True)
                elif path.read_bytes() != content:
                    write_atomically(path, content)
        if self._lock is not None and not self._had_lock:
            (self.folder / LOCK).unlink(missing_ok=True)

    # -- the run that is replaced ------------------------------------------------------------------------------------

    def _finish_what_was_begun(self) -> None:
        """Finishes the replacement of a run that a killed start had begun: one whole run is left, old or new."""
        before, moving, replaced = (self.folder / name for name in (BEFORE, MOVING, REPLACED))
        if replaced.is_dir():
            _remove(replaced)
        if before.is_dir():
            for path in _own(self.folder):
                _remove(path)
            for name in SHARED:
                _remove_if_empty(self.folder / name)
            os.rename(before, moving)
        if moving.is_dir():
            _move(_own(moving), moving, self.folder)
            moving.rmdir()

    def _put_aside(self) -> None:
        """Moves the files of the old run out of the way; an empty folder means that there was none."""
        (self.folder / MOVING).mkdir()
        _move(_own(self.folder), self.folder, self.folder / MOVING)
        os.rename(self.folder / MOVING, self.folder / BEFORE)


def _own(folder: Path) -> list[Path]:
    """The paths in `folder` that belong to a run; links themselves, not their targets."""
    names = {*RECORDS, STARTED, GIVEN, REPORT_PAGE, *given_files(folder)}
    own = [
        path
        for path in folder.iterdir()
        if path.name.partition(".tmp-")[0] in names or path.name.startswith(EVALUATION)
    ]
    if (folder / MODEL / MODEL_CONFIG).is_file():
        own.append(folder / MODEL)
    own += [folder / name for name in TRACKERS if os.path.lexists(folder / name / POINTS)]
    for name, belongs in SHARED.items():
        if (folder / name).is_dir():
            own += [path for path in (folder / name).iterdir() if belongs.fullmatch(path.name)]
    return own


def _move(paths: list[Path], source: Path, target: Path) -> None:
    for path in paths:
        place = target / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        os.rename(path, place)
    for name in SHARED:
        _remove_if_empty(source / name)


def _remove(path: Path) -> None:
    """Deletes a file or a folder; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it does not exist, or holds other files
        folder.rmdir()
