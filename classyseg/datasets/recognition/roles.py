"""What people mean by the names of folders: images or masks, and train, val or test."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from classyseg.config import listed
from classyseg.console import MAX_NAME, printable

Role = Literal["images", "masks"]

WORDS: dict[str, tuple[str, ...]] = {
    "images": (
        *("images", "image", "imgs", "img", "jpegimages", "jpgs", "jpg", "pngimages", "photos", "photo", "pictures"),
        *("rgb", "raw", "inputs", "input", "frames", "frame", "sat", "x"),
    ),
    "masks": (
        *("masks", "mask", "labels", "label", "lbl", "annotations", "annotation", "annots", "annot", "anns", "ann"),
        *("segmentationclass", "segmentationclassaug", "segmentationclasspng", "segmentations", "segmentation"),
        *("segmaps", "segs", "seg", "semantic", "groundtruth", "gts", "gt", "truth", "targets", "target", "y"),
    ),
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
"""Words in names of folders, in small letters."""
MEANING = {word: meaning for meaning, words in WORDS.items() for word in words}
PARTS = ("train", "val", "test")
_GLUED = re.compile(rf"({'|'.join(sorted((w for p in PARTS for w in WORDS[p]), key=len, reverse=True))})(\D{{2,}})")


class Meaning(NamedTuple):
    """What the names on a path say. `rest` are the words that say neither; two folders of one data set share them."""

    role: Role | None
    part: str | None
    rest: tuple[str, ...]


def meaning_of(folder: str) -> Meaning:
    """Of a path relative to the data set's folder. The deepest word of a kind counts."""
    role, part, rest = None, None, []
    for name in PurePosixPath(folder).parts:
        told, own_rest = _words_of(name)
        for word in told:
            if word in PARTS:
                part = word
            else:
                role = word
        if own_rest:
            rest.append(own_rest)
    return Meaning(role, part, tuple(rest))  # type: ignore[arg-type]


def part_of(name: str) -> str | None:
    """The part that a folder or a list of this name is."""
    return next((part for part in PARTS if name.lower() in WORDS[part]), None)


def part_named(text: str) -> str | None:
    """The part that a word of a file's or a folder's name says; None if none does, or several do."""
    found = {part for word in re.split(r"[^a-z]+", text.lower()) if (part := part_of(word))}
    return found.pop() if len(found) == 1 else None


def one_of_each(told: Mapping[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """From the part that each name says: the name of each part, and the names that are left.

    A name that says no part is train where others are val or test, and none is train.
    """
    parts: dict[str, str] = {}
    for name in sorted(told, key=lambda name: name.lower() not in MEANING):  # train goes before train_extra
        if (part := told[name]) is not None:
            parts.setdefault(part, name)
    plain = [name for name, part in told.items() if part is None]
    if parts and plain:
        parts.setdefault("train", plain[0])
    return {part: parts[part] for part in PARTS if part in parts}, [n for n in told if n not in parts.values()]


def not_taken(names: Sequence[str]) -> tuple[str, ...]:
    """The note about files, folders or lists that no data set takes."""
    return (f"also there, not taken: {listed(_shown(names), limit=5)}",) if names else ()


def divided_anew(kind: str, names: Sequence[str]) -> str:
    """The note about images that all count together, whatever parts some of the `names` say."""
    some = listed(_shown(names), limit=5)
    return f"the {kind} {some} are not one train, one val and one test: the images of all are divided anew"


def _shown(names: Sequence[str]) -> list[str]:
    return [printable(name, MAX_NAME) or "(without a name)" for name in names]


def is_plain(name: str) -> bool:
    """Whether the name of a folder says neither images, masks nor a part."""
    return not _words_of(name)[0]


def _words_of(name: str) -> tuple[list[str], str]:
    """What the words of one name mean, and its other words."""
    told, rest = [], []
    for word in re.split(r"[\s_.\-]+", name.lower()):
        glued = _GLUED.fullmatch(word)
        if word in MEANING:
            told.append(MEANING[word])
        elif glued and glued[2] in MEANING:
            told += [MEANING[glued[1]], MEANING[glued[2]]]
        elif word:
            rest.append(word)
    return (told, "_".join(rest)) if told else ([], name)
