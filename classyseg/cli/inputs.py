"""The inputs of `classyseg predict` (files, folders, patterns), and the output paths of each."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classyseg.config import closest, listed, user_path
from classyseg.console import MAX_NAME, printable
from classyseg.datasets.files.images import IMAGE_SUFFIXES
from classyseg.datasets.files.videos import VIDEO_SUFFIXES
from classyseg.errors import ConfigError
from classyseg.io import existing_path
from classyseg.run_folder import KINDS, kind_of

SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)


@dataclass(frozen=True)
class Input:
    """A file to predict. `name` is its path in the output folder, the same as in the given folder.

    `is_named` says that the user named the file itself, not a folder or a pattern. `is_frames`: it is a folder, whose
    images are the frames of a video.
    """

    path: Path
    name: Path
    is_named: bool = False
    is_frames: bool = False

    @property
    def is_video(self) -> bool:
        return self.is_frames or self.path.suffix.lower() in VIDEO_SUFFIXES


@dataclass
class Inputs:
    """The found `files`, in the order of their names, and what was left out.

    `skipped` counts files in folders whose suffix is not of an image or video, by suffix. `problems` are folders and
    files that cannot be read, with the reasons.
    """

    files: list[Input] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    problems: dict[Path, str] = field(default_factory=dict)


def find_inputs(words: Sequence[str], output: Path) -> Inputs:
    """The files that `words` name: files, folders with all below them, and patterns such as 'photos/**/*.jpg'.

    A named file is taken whatever its suffix. In folders, also those that patterns match, only files with the suffixes
    of images and videos are taken, without hidden files and without the folder `output`. A file that is found twice is
    taken once, by its first name.

    Raises: `ConfigError` for a word that matches nothing, or something else than files and folders.
    """
    found = Inputs()
    search = _Search(found, os.path.realpath(output))
    for word in words:
        before = search.count
        path = _existing(word)
        if path is not None:
            search.add(path, Path(path.name))
        elif glob.has_magic(word):
            search.add_pattern(word)
        else:
            raise ConfigError(_nothing(word))
        if search.count == before:
            skipped = f"; skipped: {_counted(found.skipped)}" if found.skipped else ""
            raise ConfigError(
                f"{printable(word)}: found no image and no video{skipped}; accepted in folders: {', '.join(SUFFIXES)}"
            )
    once: dict[str, Input] = {}
    for file in found.files:  # a link is a file of its own, with an output of its own
        once.setdefault(os.path.abspath(file.path), file)
    found.files = [*once.values()]
    return found


def _existing(word: str) -> Path | None:
    """The path of a word; None if it does not exist. Raises: `ConfigError` if it cannot be looked up."""
    if not word:
        raise ConfigError("inputs: found ''; name a file or a folder")
    try:
        path = existing_path(word)
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # too long a name, a null byte, a folder without read permission
        raise ConfigError(f"{printable(word, MAX_NAME)}: cannot be looked up ({error})") from None
    return path


def _nothing(word: str) -> str:
    path = user_path(word)
    if "://" in word:
        return f"{printable(word)}: is an address; download it, and name the file"
    if os.path.lexists(path):
        return f"{printable(word)}: is a link that leads nowhere"
    names = os.listdir(path.parent) if path.parent.is_dir() and os.access(path.parent, os.R_OK) else []
    near = closest(path.name, names)
    hint = f"; did you mean '{printable(str(path.with_name(near)))}'?" if near else ""
    return f"{printable(word)}: no such file or folder{hint}"


def _counted(skipped: Mapping[str, int]) -> str:
    return listed([f"{count} {suffix or 'without a suffix'}" for suffix, count in sorted(skipped.items())], limit=8)


class _Search:
    """Adds the found files to `found`, and counts them."""

    def __init__(self, found: Inputs, output: str) -> None:
        self.found = found
        self.output = output
        self.count = 0

    def add(self, path: Path, name: Path) -> None:
        """A path that the user named: a file with any suffix, or a folder; names are relative to that folder."""
        if path.is_dir():
            if os.path.realpath(path) == self.output:
                raise ConfigError(
                    f"--output: {printable(str(path))} is an input; choose another folder for the outputs"
                )
            self._add_folder(path, Path())
        elif path.is_file():
            self._take(path, name, is_named=True)
        else:
            raise ConfigError(f"{printable(str(path))}: is {kind_of(path)}; accepted are files and folders")

    def add_pattern(self, word: str) -> None:
        """The files and folders that match; names are relative to the folder in front of the pattern."""
        pattern = user_path(word)
        fixed = []
        for part in pattern.parts[:-1]:
            if glob.has_magic(part):
                break
            fixed.append(part)
        base = Path(*fixed)
        self._refuse_output(base)
        matches = sorted(map(Path, glob.glob(str(pattern), recursive=True)))
        if not matches:
            raise ConfigError(f"{printable(word)}: matches no file")
        for path in matches:
            name = path.relative_to(base)
            if self._is_output_below(base, path):
                continue
            if not path.is_dir():
                self._take_by_suffix(path, name)
            elif "**" not in pattern.parts:  # `**` already yields what is in the folders
                self._add_folder(path, name)

    def _add_folder(self, folder: Path, name: Path) -> None:
        for path, relative in self._below(folder, name, {os.path.realpath(folder)}):
            self._take_by_suffix(path, relative)

    def _below(self, folder: Path, name: Path, parents: set[str]) -> Iterator[tuple[Path, Path]]:
        """All files in a folder and its subfolders, with their names; links are followed, but not in a circle."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.found.problems[folder] = f"cannot be read ({error.strerror})"
            return
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                real = os.path.realpath(path)
                if real in parents:
                    self.found.problems[path] = "is a link to a folder that it lies in"
                elif real != self.output:
                    yield from self._below(path, name / entry.name, parents | {real})
            else:
                yield path, name / entry.name

    def _refuse_output(self, folder: Path) -> None:
        if os.path.realpath(folder) == self.output:
            raise ConfigError(f"--output: inputs are looked for in {printable(str(folder))}; choose another folder")

    def _is_output_below(self, base: Path, path: Path) -> bool:
        """Whether `path` is in the output folder, if that is below the `base` of a pattern."""
        is_below = self.output.startswith(os.path.join(os.path.realpath(base), ""))
        return is_below and os.path.join(os.path.realpath(path), "").startswith(os.path.join(self.output, ""))

    def _take_by_suffix(self, path: Path, name: Path) -> None:
        if not path.name.lower().endswith(SUFFIXES):
            self.found.skipped[path.suffix.lower()] += 1
        else:
            self._take(path, name)

    def _take(self, path: Path, name: Path, *, is_named: bool = False) -> None:
        self.count += 1
        try:
            kind = KINDS.get(os.stat(path).st_mode & 0o170000, "something unknown")
            problem = "" if kind == "a file" else f"is {kind}; accepted are files"
        except OSError as error:
            problem = "is a link that leads nowhere" if path.is_symlink() else f"cannot be read ({error.strerror})"
        if problem:
            self.found.problems[path] = problem
        else:
            self.found.files.append(Input(path, name, is_named))


def as_videos(inputs: Inputs) -> None:
    """Makes the images of each found folder the frames of one video, for a model of clips.

    Images that the user named are problems.
    """
    videos: dict[Path, Input] = {}
    for given in inputs.files:
        if given.is_video:
            videos[given.path] = given
        elif given.is_named:
            inputs.problems[given.path] = "is an image; this model takes videos: files, or folders of frames"
        else:
            folder = given.path.parent
            name = given.name.parent if given.name.parent.name else Path(folder.name)
            videos.setdefault(folder, Input(folder, name, is_frames=True))
    inputs.files = [*videos.values()]


@dataclass(frozen=True)
class Plan:
    """The files to write for an input. With `in_frames`, `labels` and `scores` are folders of a file for each frame.

    Where pixels have several classes, `flags` has a file (a folder) for each class, in place of `labels`. With
    `in_bands`, the image is too large to be held: it is read, and its labels are written, a part at a time. `geo` are
    the tags that place a GeoTIFF on the earth; its labels get them too.
    """

    labels: Path | None = None
    flags: tuple[Path, ...] = ()
    overlay: Path | None = None
    scores: Path | None = None
    geo: Mapping[int, Any] = field(default_factory=dict)
    in_frames: bool = False
    in_bands: bool = False

    def paths(self) -> set[Path]:
        return {path for path in (self.labels, *self.flags, self.overlay, self.scores) if path is not None}


def check_plans(plans: Mapping[Input, Plan], summaries: Sequence[Path], *, overwrite: bool) -> None:
    """Plans all outputs before anything is written; `summaries` are files about all of them.

    Raises: `ConfigError` for two inputs with the same output file, for an output that would overwrite an input, and,
    without `overwrite`, for outputs that exist.
    """
    writers: dict[Path, str] = dict.fromkeys(summaries, "the summary")
    folders = {
        path: given
        for given, plan in plans.items()
        for path in (plan.labels, *plan.flags, plan.scores)
        if plan.in_frames and path is not None
    }
    sources = {os.path.realpath(given.path): given for given in plans}
    for given, plan in plans.items():
        for path in sorted(plan.paths()):
            other = writers.get(path)
            inside = next((folders[folder] for folder in path.parents if folder in folders), None)
            if other is not None or inside is not None:
                others = other or (inside and inside.path)
                raise ConfigError(
                    f"{given.path} and {others} would both write {path}; predict them into two folders, or rename one"
                )
            writers[path] = str(given.path)
            if os.path.realpath(path) in sources:
                raise ConfigError(f"--output: {path} is an input, and would be overwritten; choose another folder")
    _check_folders({folder for path in writers for folder in path.parents})
    there = [path for path in writers if _exists(path)]
    if there and not overwrite:
        raise ConfigError(
            f"--output: {len(there)} of {len(writers)} files exist, such as {printable(str(there[0]))}; give "
            "--overwrite to replace them, or another folder"
        )
    for path in there:
        if path.is_dir() and path not in folders:
            raise ConfigError(f"--output: {printable(str(path))} is a folder, where a file is to be written")


def _exists(path: Path) -> bool:
    """Whether something at the path would be lost; an empty folder would not."""
    return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))


def _check_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        if os.path.lexists(folder) and not folder.is_dir():
            raise ConfigError(f"--output: {printable(str(folder))} is no folder, where one is needed")
