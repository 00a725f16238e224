"""Which mask belongs to which image: by name, by a list of names, or by a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from classyseg.config import listed
from classyseg.console import MAX_NAME, printable
from classyseg.datasets.files.images import IMAGE_SUFFIXES, LOSSY_SUFFIXES, MASK_SUFFIXES
from classyseg.datasets.files.lists import (
    BLANKS,
    Files,
    Row,
    bare,
    cell,
    has_column,
    lines_of,
    normal,
    read_table,
    refuse_forms,
    same_names,
    spellings,
)
from classyseg.errors import ConfigError, DataError

Pair = tuple[Path, Path]
ImageAndMask = tuple[Path, Path | None]
"""The mask is None where a split has no masks: those of test images are seldom public."""

T = TypeVar("T")


@dataclass(frozen=True)
class PairFault:
    """`files` that have no partner, or several, or do not exist. `message` is the error that others raise for it.

    `place` is the place of their data set within the one that was built; empty for that one itself.
    """

    kind: str
    message: str
    files: tuple[str, ...]
    place: str = ""


_collected: ContextVar[list[PairFault] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting_pair_faults() -> Iterator[list[PairFault]]:
    """Inside, files without a partner are no errors: they are left out, and listed."""
    faults: list[PairFault] = []
    token = _collected.set(faults)
    try:
        yield faults
    finally:
        _collected.reset(token)


@contextmanager
def faults_within(place: str) -> Iterator[None]:
    """Puts `place` before the places of the faults that are collected inside."""
    faults = _collected.get()
    before = len(faults or ())
    yield
    for i, fault in enumerate(faults or ()):
        if faults is not None and i >= before:
            faults[i] = replace(fault, place=f"{place}.{fault.place}".removesuffix("."))


def report_fault(kind: str, message: str, files: Sequence[str]) -> None:
    """Notes `files` that must be left out. Raises: `DataError` unless such faults are collected."""
    faults = _collected.get()
    if faults is None:
        raise DataError(message)
    faults.append(PairFault(kind, message, tuple(files)))


def matched_pairs(
    images: Path,
    masks: Path,
    mask_suffix: str = "",
    *,
    image_suffix: str = "",
    nested: bool = False,
    mask_suffixes: tuple[str, ...] = MASK_SUFFIXES,
    longer: Sequence[str] = (),
) -> list[Pair]:
    """The image files of a folder with their masks, in the order of their names.

    `NAME{image_suffix}.jpg` belongs to `NAME{mask_suffix}.png`. `nested` searches subfolders, which must be the same on
    both sides. If a suffix is given, files without it are skipped, and so are those with one of the `longer` ones,
    which other masks have. In one folder of images and masks, those with the mask's suffix are no images. Raises:
    `DataError` for an empty folder, an image without a mask, a mask without an image, two files with one name, and a
    folder that may not be read.
    """
    by_name = _images_of(images, masks, mask_suffix, image_suffix, nested=nested)
    masks_by_name = files_by_name(masks, mask_suffixes, "mask", mask_suffix, nested=nested, longer=longer)
    partners = _partners(by_name, masks_by_name, masks, f"NAME{image_suffix}.jpg is NAME{mask_suffix}.png")
    used = {*partners.values()}
    unused = [str(path) for name, path in masks_by_name.items() if name not in used]
    if unused:
        message = f"{images}: no image for {len(unused)} of {len(masks_by_name)} masks: {listed(unused, limit=5)}"
        report_fault("missing_image", message, unused)
    return [(by_name[name], masks_by_name[partner]) for name, partner in partners.items()]


def _images_of(
    images: Path, masks: Path | None, mask_suffix: str, image_suffix: str = "", *, nested: bool
) -> dict[str, Path]:
    found = files_by_name(images, IMAGE_SUFFIXES, "image", image_suffix, nested=nested)
    if images != masks or not mask_suffix:
        return found
    return {name: path for name, path in found.items() if not path.stem.endswith(mask_suffix)}


def _partners(images: Mapping[str, Path], masks: Mapping[str, Path], folder: Path, rule: str) -> dict[str, str]:
    """The mask in `folder` for each image, by name. `rule` tells in messages which mask belongs to which image.

    Raises: `DataError` for images without one.
    """
    partners = same_names(images, masks, str(folder))
    alone = [str(path) for name, path in images.items() if name not in partners]
    if alone:
        report_fault(
            "missing_mask",
            f"{folder}: no mask for {len(alone)} of {len(images)} images: {listed(alone, limit=5)}; the mask of {rule} "
            "(or another lossless format, not JPEG)",
            alone,
        )
    return partners


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
    chosen = same_names(names, by_name, str(images))
    partners = same_names(names, masks_by_name, str(masks))
    for folder, found, what in ((images, chosen, "image"), (masks, partners, "mask")):
        missing = [name for name in names if name not in found]
        if missing:
            message = f"{folder}: no {what} for {len(missing)} of the {len(names)} names: {listed(missing, limit=5)}"
            report_fault(f"missing_{what}", message, missing)
    return {
        name: (by_name[chosen[name]], masks_by_name[partners[name]])
        for name in names
        if name in chosen and name in partners
    }


def chosen_pairs(
    names: Path,
    images: Path,
    masks: Path | None,
    mask_suffix: str = "",
    *,
    nested: bool = False,
    mask_suffixes: tuple[str, ...] = MASK_SUFFIXES,
    longer: Sequence[str] = (),
) -> list[ImageAndMask]:
    """The pairs of `matched_pairs` that a list names, in the order of the list. Other files are left out.

    A line is the name of an image, with its subfolders where `nested`, and with or without its suffix. Raises:
    `DataError` as `matched_pairs`, for names without an image, and for a list that names one twice.
    """
    by_name = _images_of(images, masks, mask_suffix, nested=nested)
    lines = [line for _, line in lines_of(names)]
    if not lines:
        raise DataError(
            f"{names}: an empty list; one name of an image a line is expected, such as {next(iter(by_name))}"
        )
    chosen = _named(lines, by_name, names)
    missing = [line for line in lines if line not in chosen]
    if missing:
        # If no line is right, the path may lead to any file of the machine: its lines are not shown.
        some = "" if not chosen else f": {listed([printable(line, MAX_NAME, exact=True) for line in missing], limit=5)}"
        report_fault(
            "missing_file",
            f"{names}: {images} has no image for {len(missing)} of its {len(lines)} lines{some}; a line is the name of "
            f"an image, such as {printable(next(iter(by_name)), MAX_NAME, exact=True)}",
            missing if chosen else [str(names)],
        )
    counts = Counter(chosen[line] for line in lines if line in chosen)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        report_fault("listed_twice", f"{names}: names {listed(twice, limit=5)} more than once", twice)
    if masks is None:
        return [(by_name[name], None) for name in counts]
    masks_by_name = files_by_name(masks, mask_suffixes, "mask", mask_suffix, nested=nested, longer=longer)
    taken = {name: by_name[name] for name in counts}
    partners = _partners(taken, masks_by_name, masks, f"NAME.jpg is NAME{mask_suffix}.png")
    return [(by_name[name], masks_by_name[partners[name]]) for name in counts if name in partners]


def _named(lines: Sequence[str], by_name: Mapping[str, Path], place: Path) -> dict[str, str]:
    """For each line its name in `by_name`; lines without one are left out. Raises: `DataError`."""
    full = {f"{name}{path.suffix}": name for name, path in by_name.items()}
    known = {**full, **{name: name for name in by_name}}  # a name without a suffix goes before one with it
    forms: dict[str, list[str]] = {}
    for text in known:
        forms.setdefault(normal(text), []).append(text)
    chosen: dict[str, str] = {}
    for line in dict.fromkeys(lines):
        spelled = list(spellings(line))
        exact = [text for text in spelled if text in known]
        found = exact[:1] or next((forms[normal(text)] for text in spelled if normal(text) in forms), [])
        if len(found) > 1:
            refuse_forms(place, found)
        if found:
            chosen[line] = known[found[0]]
    return chosen


def read_names(path: Path) -> list[str]:
    """The lines of a list of names. Raises: `DataError` for a list that is missing, empty, or names one twice."""
    names = [line.strip(BLANKS) for _, line in lines_of(path)]
    if not names:
        raise DataError(f"{path}: an empty list; one name a line, without a suffix, is expected")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        report_fault("listed_twice", f"{path}: names {listed(twice, limit=5)} more than once", twice)
    return list(dict.fromkeys(names))


def tabled_pairs(table: Path, images: Path, masks: Path, split: str | None) -> list[Pair]:
    """The pairs of a CSV table with the columns `image` and `mask`: paths under the two folders.

    If the table has a column `split`, only rows with `split` there are taken. Raises: `DataError` for another kind of
    table, for files that do not exist, and for a pair that comes twice; `ConfigError` for a split that no row has, or
    if a split is needed and none is given.
    """
    has_splits = split is not None or has_column(table, "split")
    rows = read_table(table, ["image", "mask", *(["split"] if has_splits else [])])
    if has_splits:
        rows = _rows_of_split(table, rows, split)
    pairs: list[Pair] = []
    missing, twice = [], []
    seen: set[Pair] = set()
    folders = Files(images), Files(masks)
    for row in rows:
        written = cell(table, row, "image"), cell(table, row, "mask")
        image, mask = (files.find(name) for files, name in zip(folders, written, strict=True))
        if image is None or mask is None:
            looked_for = zip(folders, written, (image, mask), strict=True)
            missing += [str(files.folder / name.strip(BLANKS)) for files, name, path in looked_for if path is None]
            continue
        if (image, mask) in seen:
            twice.append(f"{printable(written[0].strip(BLANKS), MAX_NAME, exact=True)} (line {row[0]})")
            continue
        seen.add((image, mask))
        pairs.append((image, mask))
    if missing:
        names = listed([printable(name, MAX_NAME, exact=True) for name in missing], limit=5)
        report_fault("missing_file", f"{table}: names {len(missing)} files that do not exist: {names}", missing)
    if twice:
        message = f"{table}: names {listed(twice, limit=5)} with the same mask more than once"
        report_fault("listed_twice", message, twice)
    return pairs


def _rows_of_split(table: Path, rows: Sequence[Row], split: str | None) -> list[Row]:
    splits = [cell(table, row, "split").strip(BLANKS) for row in rows]
    alike = [other for other in {*splits} - {split} if split is not None and bare(other) == bare(split)]
    if alike:
        number, _ = rows[splits.index(alike[0])]
        raise DataError(
            f"{table}, line {number}: the split is {alike[0]!a}, where {split!a} is asked for; they differ in capitals "
            "or in characters that do not show: write them alike"
        )
    chosen = [row for row, found in zip(rows, splits, strict=True) if found == split]
    if not chosen:
        found = "nothing" if split is None else f"'{split}'"
        known = listed([printable(one, MAX_NAME, exact=True) for one in sorted({*splits})])
        raise ConfigError("split", f"found {found}, but {table} has the splits {known}; name one")
    return chosen


def files_by_name(
    folder: Path,
    suffixes: tuple[str, ...],
    what: str,
    ending: str = "",
    *,
    nested: bool = False,
    longer: Sequence[str] = (),
) -> dict[str, Path]:
    """The files `NAME{ending}.SUFFIX` of a folder, by NAME; with `nested`, NAME includes subfolders.

    Files whose names end in one of the `longer` endings are passed over.
    """
    found: dict[str, Path] = {}
    for path in _walk(folder, suffixes, nested):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if any(normal(name).endswith(normal(other)) for other in longer):
            continue
        if not name.endswith(ending):
            if not normal(name).endswith(normal(ending)):
                continue
            name = normal(name)
        name = name.removesuffix(ending if name.endswith(ending) else normal(ending))
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
    """Raises: `DataError` for a link to a folder above it: its files would be found again and again."""
    if path.is_symlink() and path.resolve() in [folder.resolve() for folder in path.parents]:
        raise DataError(f"{path}: a link to a folder that it lies in; remove it")


def existing_files(place: object, folder: Path, labelled: Sequence[tuple[str, T]]) -> list[tuple[str, T]]:
    """The paths of the files of `folder` that a list of (name, label) names. Messages call the list `place`.

    Raises: `DataError` for those that are missing.
    """
    files = Files(folder)
    found = [(files.find(name), label) for name, label in labelled]
    if missing := [name for (name, _), (path, _) in zip(labelled, found, strict=True) if path is None]:
        some = listed([printable(name, MAX_NAME, exact=True) for name in missing], limit=5)
        message = f"{place}: names {len(missing)} of {len(labelled)} files not in {folder}: {some}"
        report_fault("missing_file", message, [str(folder / name) for name in missing])
    return [(str(path), label) for path, label in found if path is not None]
