"""Parts of one folder of files: train, val and test as fractions, or k folds, without one scene on two sides."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Strict, Tag, model_validator

from classyseg.config import MAX_SEED, ConfigRecord, Float, Int, Text, listed
from classyseg.console import MAX_NAME, printable, shown
from classyseg.datasets.files.lists import normal
from classyseg.errors import ConfigError, DataError, within

ROBOFLOW_COPY = re.compile(r"(?:_(?:jpe?g|png|bmp|webp|tiff?))?\.rf\.[0-9A-Za-z]+$", re.IGNORECASE)
"""What Roboflow appends to the name of an image, another text for each augmented copy: `_jpg.rf.0a1b2c`."""
NUMBERS = re.compile(
    r"(?:^\d+|(?<=[^\W\d_])\d+|(?:[ _.-]+\(?(?:frame|img|image|slice|tile|crop|patch|aug|row|col|[fxyzrct])?\d+\)?)+)$",
    re.IGNORECASE,
)
"""The numbers at the end of a name: each after a separator, or one after a letter, or the whole name."""
Share = Annotated[Float, Field(ge=0, lt=1)]


class SplitConfig(ConfigRecord):
    r"""A part of the files of one folder, chosen by their names: fractions (`val`, `test`), or k folds (`folds`).

    All data sets of a config give the same keys, and another `part`; so each file is in exactly one of them. Other keys
    of the same files are refused. A group of files (`by`) is never divided. A group's place depends on its name and
    `seed` alone: files that are added later move no other one. So fractions hold for many groups, not exactly; of a few
    groups, a part may be empty, which is an error.

    Args:
        part: `train`, `val` or `test`.
        val: The fraction of groups that `val` takes.
        test: The fraction of groups that `test` takes. With `folds`, they are in no fold.
        folds: In place of `val`: `val` is one of so many folds, and `train` all others.
        fold: Which one: 0 to `folds` - 1.
        seed: Another number draws other parts.
        by: What makes files a group. `stem`: names that are the same without the numbers at their end, as frames
            (`street_0001`), tiles (`a_x0_y512`) and the copies of Roboflow (`a_jpg.rf.1b2c`) are, in one subfolder.
            `folder`: files of one subfolder. `file`: each file alone (with its Roboflow copies). Or a regular
            expression with one group in parentheses, such as `'^(patient\d+)_'`, that is searched in the path under
            the folder: what it finds names the group.
        of: The name of the split, list or subset that is divided, such as `train`, where the files have some. The
            others are left alone. null: all files.
    """

    part: Literal["train", "val", "test"]
    val: Share | None = None
    test: Share = 0.0
    folds: Annotated[int, Strict(), Field(ge=2, le=1000)] | None = None
    fold: Annotated[Int, Field(ge=0)] | None = None
    seed: Annotated[int, Strict(), Field(ge=0, le=MAX_SEED)] = 0
    by: Text = "stem"
    of: Text | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.folds is None) == (self.val is None):
            found = "neither val nor folds" if self.val is None else "val and folds, which are two ways to divide"
            raise ValueError(f"found {found}; give val, such as 0.2, or folds and fold, such as 5 and 0")
        if (self.folds is None) != (self.fold is None):
            raise ValueError("folds and fold belong together, such as folds: 5 and fold: 0, the first of five")
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold is {self.fold}; accepted are 0 to {self.folds - 1}, as folds is {self.folds}")
        if (self.val or 0.0) + self.test >= 1:
            raise ValueError("val and test are together 1 or more, so that nothing is left for train")
        if (self.part == "val" and self.val == 0) or (self.part == "test" and not self.test):
            raise ValueError(f"part is {self.part}, and {self.part}: 0 leaves nothing for it; give {self.part}: 0.2")
        if self.by not in GROUPS:
            _group_pattern(self.by)
        return self


def _split_form(value: Any) -> str:
    return "parts" if isinstance(value, Mapping | SplitConfig) else "name"


Split = Annotated[Annotated[Text, Tag("name")] | Annotated[SplitConfig, Tag("parts")], Discriminator(_split_form)]
"""The type of a key `split` that takes the name of a split of a table, or a `SplitConfig`."""
_recorded: ContextVar[list[list[str]] | None] = ContextVar("recorded", default=None)


def named_split(split: str | SplitConfig | None) -> str | None:
    """The named split that a key `split` reads files of, whole or divided; None: all files."""
    return split.of if isinstance(split, SplitConfig) else split


def name_key(split: str | SplitConfig | None) -> str:
    """The key in which `split` names a split, for messages."""
    return "split.of" if isinstance(split, SplitConfig) else "split"


def refuse_of(split: SplitConfig) -> None:
    """Raises: `ConfigError` for the key `of`, of files that have no named splits."""
    if split.of is not None:
        raise ConfigError("split.of", f"found {shown(split.of)}, but its files name no parts; leave it out")


@contextmanager
def recording_names() -> Iterator[list[list[str]]]:
    """Inside, the names that data sets divide are listed: for each `split` those of all files, in their order."""
    names: list[list[str]] = []
    token = _recorded.set(names)
    try:
        yield names
    finally:
        _recorded.reset(token)


def indices_of_part(names: Sequence[str], split: SplitConfig, place: object) -> list[int]:
    """The indices of the `names` that are in the part that `split` describes, rising.

    A name is the path of a file under its folder, with `/` and its suffix. Messages call the files' folder or list
    `place`.

    Raises: `ConfigError` for a part without files, and where all files are one group; `DataError` for a name that the
    regular expression does not fit.
    """
    if (recorded := _recorded.get()) is not None:
        recorded.append([*names])
    with within("split"):
        groups = [_group_of(name, split, place) for name in names]
        parts = {group: _part_of(group, split) for group in dict.fromkeys(groups)}
        if len(parts) == 1 and len(names) > 1:
            raise ConfigError("by", f"{_one_group(names, groups[0], split)} ({place})")
        chosen = [i for i, group in enumerate(groups) if parts[group] == split.part]
        if not chosen:
            raise ConfigError(
                f"no file for {split.part}: of the {len(parts)} groups of {len(names)} files in {place}, by "
                f"{printable(split.by, MAX_NAME)}, "
                f"chance put none there; take another seed, a larger part or fewer folds, or more groups"
            )
    return chosen


def take_part(items: Sequence[Any], paths: Sequence[Path], split: SplitConfig, folder: Path) -> list[Any]:
    """The `items` whose images, the files `paths`, are in the part that `split` describes. Raises as above."""
    names = [path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix() for path in paths]
    return [items[i] for i in indices_of_part(names, split, folder)]


# -- groups ------------------------------------------------------------------------------------------------------------


def _original(name: str) -> str:
    """The path of a file without its suffix, and without what Roboflow adds to copies of an image."""
    path = PurePosixPath(name)
    return ROBOFLOW_COPY.sub("", path.with_suffix("").as_posix() if path.name else name)


def _beginning(name: str) -> str:
    folder, slash, stem = _original(name).rpartition("/")
    return folder + slash + NUMBERS.sub("", stem)


GROUPS: Mapping[str, Callable[[str], str]] = {
    "file": _original,
    "folder": lambda name: PurePosixPath(name).parent.as_posix(),
    "stem": _beginning,
}
"""The group of a file's path, by the words that `by` takes."""


def _group_pattern(by: str) -> re.Pattern[str]:
    """Raises: `ValueError` for a text that is no regular expression with one group."""
    try:
        pattern = re.compile(by)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"by is {by!r}, which is no regular expression ({error})") from None
    if pattern.groups != 1:
        raise ValueError(
            f"by is {by!r}; accepted are {', '.join(sorted(GROUPS))}, and a regular expression with one group in "
            r"parentheses, such as '^(patient\d+)_'"
        )
    return pattern


def _group_of(name: str, split: SplitConfig, place: object) -> str:
    name = normal(name)
    if split.by in GROUPS:
        return GROUPS[split.by](name)
    match = _group_pattern(split.by).search(name)
    if match is None or match[1] is None:
        raise DataError(
            f"{place}: {printable(name, MAX_NAME, exact=True)} does not fit the expression {split.by!r} of split.by; "
            "every file needs a group"
        )
    return match[1]


def _one_group(names: Sequence[str], group: str, split: SplitConfig) -> str:
    some = listed([printable(name, MAX_NAME, exact=True) for name in names], limit=2)
    if split.by == "folder":
        return f"all {len(names)} files lie in one folder, so that no part can be made; take by: stem or by: file"
    if split.by == "stem":
        told = f"begin with '{printable(group, MAX_NAME)}'" if group else "are numbers"
        return (
            f"the names of all {len(names)} files {told} ({some}), as the frames of one scene do, so that no part can "
            "be made; take by: file if they do not belong together"
        )
    return f"found one group for all {len(names)} files ({some}); two at least are needed"


# -- chance ------------------------------------------------------------------------------------------------------------


def _chance(*parts: object) -> int:
    """A whole number below 2**64 that depends on `parts` alone."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _part_of(group: str, split: SplitConfig) -> str:
    drawn = _chance("part", split.seed, group) / 2**64
    if drawn < split.test:
        return "test"
    if split.folds is not None:
        return "val" if _chance("fold", split.seed, group) % split.folds == split.fold else "train"
    return "val" if drawn < split.test + (split.val or 0.0) else "train"
