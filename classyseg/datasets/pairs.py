"""Which mask belongs to which image: by name, by a list of names, or by a table."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

from classyseg.config import ConfigError, DataError, listed
from classyseg.datasets.files import IMAGE_SUFFIXES, LOSSY_SUFFIXES, MASK_SUFFIXES

Pair = tuple[Path, Path]
ImageAndMask = tuple[Path, Path | None]
"""None where a split has no masks: those of test images are seldom public."""


@dataclass(frozen=True)
class PairFault:
    """`files` that have no partner, more than one, or do not exist; `message` is the error that it is elsewhere.

    `place` is that of their data set within the one that was built: nothing for that itself.
    """

    kind: str
    message: str
    files: tuple[str, ...]
    place: str = ""


_collected: ContextVar[list[PairFault] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting_pair_faults() -> Iterator[list[PairFault]]:
    """For whoever wants to see the rest, too: inside, files without a partner are left out and listed, no errors."""
    faults: list[PairFault] = []
    token = _collected.set(faults)
    try:
        yield faults
    finally:
        _collected.reset(token)


@contextmanager
def faults_within(place: str) -> Iterator[None]:
    """Puts `place` before that of the faults that are collected inside."""
    faults = _collected.get()
    before = len(faults or ())
    yield
    for i, fault in enumerate(faults or ()):
        if faults is not None and i >= before:
            faults[i] = replace(fault, place=f"{place}.{fault.place}".removesuffix("."))


def report_fault(kind: str, message: str, files: Sequence[str]) -> None:
    """Notes `files` that have to be left out. Raises: `DataError` unless somebody collects such faults."""
    faults = _collected.get()
    if faults is None:
        raise DataError(message)
    faults.append(PairFault(kind, message, tuple(files)))


def matched_pairs(
    images: Path, masks: Path, mask_suffix: str = "", *, image_suffix: str = "", nested: bool = False
) -> list[Pair]:
    """The image files of a folder with their masks, in the order of their names.

    `NAME{image_suffix}.jpg` goes with `NAME{mask_suffix}.png`; `nested` searches subfolders, which must be the same on
    both sides. Where suffixes are given, files without them are passed over. Raises: `DataError` for an empty folder,
    an image without a mask, a mask without an image, two files of one name, and a folder that may not be read.
    """
    by_name = files_by_name(images, IMAGE_SUFFIXES, "image", image_suffix, nested=nested)
    masks_by_name = files_by_name(masks, MASK_SUFFIXES, "mask", mask_suffix, nested=nested)
    alone = [str(path) for name, path in by_name.items() if name not in masks_by_name]
    if alone:
        report_fault(
            "missing_mask",
            f"{masks}: no mask for {len(alone)} of {len(by_name)} images: {listed(alone, limit=5)}; the mask of "
            f"NAME{image_suffix}.jpg is NAME{mask_suffix}.png (or another lossless format, not JPEG)",
            alone,
        )
    unused = [str(path) for name, path in masks_by_name.items() if name not in by_name]
    if unused:
        message = f"{images}: no image for {len(unused)} of {len(masks_by_name)} masks: {listed(unused, limit=5)}"
        report_fault("missing_image", message, unused)
    return [(path, masks_by_name[name]) for name, path in by_name.items() if name in masks_by_name]


def images_alone(images: Path, *, image_suffix: str = "", nested: bool = False) -> list[ImageAndMask]:
    """The image files of a folder without masks, otherwise as `matched_pairs`."""
    found = files_by_name(images, IMAGE_SUFFIXES, "image", image_suffix, nested=nested)
    return [(path, None) for path in found.values()]


def listed_pairs(
    names: Sequence[str], images: Path, masks: Path, *, mask_suffixes: tuple[str, ...] = MASK_SUFFIXES
) -> list[Pair]:
    """The files of `names` in two folders. Raises: `DataError` naming those that are missing."""
    return list(pairs_by_name(names, images, masks, mask_suffixes=mask_suffixes).values())


def pairs_by_name(
    names: Sequence[str], images: Path, masks: Path, *, mask_suffixes: tuple[str, ...] = MASK_SUFFIXES
) -> dict[str, Pair]:
    """As `listed_pairs`, by the names."""
    by_name = files_by_name(images, IMAGE_SUFFIXES, "image")
    masks_by_name = files_by_name(masks, mask_suffixes, "mask")
    for folder, found, what in ((images, by_name, "image"), (masks, masks_by_name, "mask")):
        missing = [name for name in names if name not in found]
        if missing:
            message = f"{folder}: no {what} for {len(missing)} of the {len(names)} names: {listed(missing, limit=5)}"
            report_fault(f"missing_{what}", message, missing)
    return {name: (by_name[name], masks_by_name[name]) for name in names if name in by_name and name in masks_by_name}


def read_names(path: Path) -> list[str]:
    """The lines of a list of names. Raises: `DataError` for a list that is missing, empty, or names one twice."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path}: an empty list; one name a line, without a suffix, is expected")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        report_fault("listed_twice", f"{path}: names {listed(twice, limit=5)} more than once", twice)
    return list(dict.fromkeys(names))


def tabled_pairs(table: Path, images: Path, masks: Path, split: str | None) -> list[Pair]:
    """The pairs of a CSV table with the columns `image` and `mask`: paths under the two folders.

    Where the table has a column `split`, the rows that hold `split` there. Raises: `DataError` for a table that is not
    so, and for files that do not exist; `ConfigError` for a split that no row has, or for none where there are some.
    """
    rows = list(csv.DictReader(read_text(table).splitlines()))
    columns = set(rows[0]) if rows else set()
    wanted = {"image", "mask"} | ({"split"} if split is not None else set())
    if not wanted <= columns:
        raise DataError(
            f"{table}: found the columns {', '.join(sorted(map(str, columns))) or 'none'}; the first line must name "
            f"{', '.join(sorted(wanted))}, and rows must follow"
        )
    if "split" in columns:
        known = sorted({row["split"] or "" for row in rows})
        rows = [row for row in rows if row["split"] == split]
        if not rows:
            found = "nothing" if split is None else f"'{split}'"
            raise ConfigError(f"split: found {found}, but {table} has the splits {', '.join(known)}; name one")
    pairs = [(images / (row["image"] or ""), masks / (row["mask"] or "")) for row in rows]
    missing = [str(path) for pair in pairs for path in pair if not path.is_file()]
    if missing:
        report_fault(
            "missing_file",
            f"{table}: names {len(missing)} files that do not exist: {listed(missing, limit=5)}",
            missing,
        )
    return [pair for pair in pairs if not missing or all(path.is_file() for path in pair)]


def files_by_name(
    folder: Path, suffixes: tuple[str, ...], what: str, ending: str = "", *, nested: bool = False
) -> dict[str, Path]:
    """The files `NAME{ending}.SUFFIX` of a folder by NAME, which holds the subfolders where `nested`."""
    found: dict[str, Path] = {}
    for path in _walk(folder, suffixes, nested):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if not name.endswith(ending):
            continue
        name = name.removesuffix(ending)
        if name in found:
            message = f"{folder}: two {what} files of one name: {found[name].name} and {path.name}"
            report_fault("same_name", message, [str(found[name]), str(path)])
        found.setdefault(name, path)
    if not found:
        lossy = sum(path.stem.endswith(ending) for path in _walk(folder, LOSSY_SUFFIXES, nested))
        raise DataError(
            f"{folder}: found no {what} file{' in any subfolder' if nested else ''}"
            f"{f' but {lossy} of JPEG, which changes labels' if lossy and what == 'mask' else ''}; accepted: "
            f"{', '.join(ending + suffix for suffix in suffixes)}"
        )
    return found


def _walk(folder: Path, suffixes: tuple[str, ...], nested: bool) -> Iterator[Path]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in suffixes:
            yield path
        elif nested and path.is_dir():
            refuse_loop(path)
            yield from _walk(path, suffixes, nested)


def refuse_loop(path: Path) -> None:
    """Raises: `DataError` for a link to a folder that it lies in: what is there would be found again and again."""
    if path.is_symlink() and path.resolve() in [folder.resolve() for folder in path.parents]:
        raise DataError(f"{path}: a link to a folder that it lies in; remove it")


def existing_files(place: object, folder: Path, labelled: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The files of `folder` in a list of (name, label), as paths; `place` is the list in messages.

    Raises: `DataError` for those that are missing.
    """
    found = [(name, label) for name, label in labelled if (folder / name).is_file()]
    if len(found) < len(labelled):
        missing = [name for name, _ in labelled if not (folder / name).is_file()]
        message = f"{place}: names {len(missing)} of {len(labelled)} files not in {folder}: {listed(missing, limit=5)}"
        report_fault("missing_file", message, [str(folder / name) for name in missing])
    return [(str(folder / name), label) for name, label in found]


def read_text(path: Path) -> str:
    """The text of a list or table. Raises: `DataError` for a file that is missing, unreadable or no UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 text, byte {error.start}"
        raise DataError(f"{path}: cannot be read ({reason})") from None
