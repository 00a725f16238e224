"""What people mean by the names of folders: images or masks, and train, val or test."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

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
