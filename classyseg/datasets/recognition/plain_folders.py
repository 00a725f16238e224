"""Recognises folders of images and of masks, as people name them, without a tool's file."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from classyseg.console import MAX_NAME, printable
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.files.images import IMAGE_SUFFIXES, LOSSY_SUFFIXES, MASK_SUFFIXES
from classyseg.datasets.recognition.class_keys import class_keys, names_in
from classyseg.datasets.recognition.image_keys import image_keys
from classyseg.datasets.recognition.mask_values import Look, look_at_masks
from classyseg.datasets.recognition.roles import PARTS, WORDS, Meaning, divided_anew, meaning_of, not_taken
from classyseg.datasets.recognition.tree import Tree, listing

ENDINGS = ("", "_image", "_img", "_sat", "_rgb", "_raw", "_leftImg8bit", "_x", "_im")
"""What names of images may end in where those of their masks end in something else."""
LISTS = ("", "ImageSets/Segmentation", "ImageSets", "splits", "lists", "split", "list")
"""Where lists of names lie."""
TRIED = 60
MATCHING = 0.5
"""Folders belong together if so large a share of their names does."""


@dataclass(frozen=True)
class Pair:
    """A folder of images and one of masks, relative to the data set's. `NAME{image_suffix}` has `NAME{mask_suffix}`."""

    images: str
    masks: str
    image_suffix: str
    mask_suffix: str
    paired: tuple[tuple[Path, Path], ...]
    num_images: int
    nested: bool = False

    @property
    def share(self) -> float:
        """Of images that have a mask."""
        return len(self.paired) / max(1, self.num_images)

    @property
    def rule(self) -> str:
        return f"{self.images or '.'} with {self.masks or '.'}"


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as images and masks; None if nothing does."""
    tree = listing(folder)
    pairs = _merged(_best(list(_pairs(tree))))
    if not pairs:
        return None
    by_part, notes = _by_part(pairs)
    if not by_part:
        some = "; ".join(pair.rule for pair in pairs[:4])
        return Found(
            "folder",
            0.3,
            f"it has several folders of images with masks, which no name tells apart: {some}; import each by itself",
            {"images": str(tree.path(pairs[0].images)), "masks": str(tree.path(pairs[0].masks))},
            len(pairs[0].paired),
        )
    return _found(tree, by_part, notes)


def _found(tree: Tree, by_part: Mapping[str, Pair], told: Sequence[str]) -> Found:
    all_pairs = [paired for pair in by_part.values() for paired in pair.paired]
    masks = [mask for _, mask in all_pairs]
    lossy = [mask for mask in masks if mask.suffix.lower() in LOSSY_SUFFIXES]
    names = names_in(tree.root, tree.files[""])
    look = look_at_masks(masks) if not lossy else Look(len(masks))
    keys = class_keys(look, names)
    whole = by_part.get("train") or next(iter(by_part.values()))
    config = _folders(tree, whole) | keys.config | image_keys(all_pairs, look.sizes)
    parts = {part: _folders(tree, pair) for part, pair in by_part.items() if part in PARTS}
    if len(by_part) == 1:
        parts = lists_of(tree, whole)
    some = "; ".join(f"{part}: {pair.rule}" if len(by_part) > 1 else pair.rule for part, pair in by_part.items())
    share = len(all_pairs) / max(1, sum(pair.num_images for pair in by_part.values()))
    why = f"{len(all_pairs)} images have a mask of their name ({some})"
    if lossy:
        problem = (
            f"{len(lossy)} of the masks are JPEG, which changes labels, such as {printable(lossy[0].name, MAX_NAME)}; "
            "write them again as PNG, from where they were made"
        )
    else:
        problem = keys.problem
        why += f"; the {keys.told}" if keys.told else ""
        why += "" if look.is_whole else f" ({look.seen} of {look.of} were looked at)"
    notes = [*keys.notes, *told]
    if share < 1:
        notes.append(f"{1 - share:.0%} of the images have no mask; `classyseg data check` names them")
    if look.wrong:
        path, reason = look.wrong[0]
        notes.append(f"{len(look.wrong)} masks cannot be read, such as {printable(path.name, MAX_NAME)}: {reason}")
    if not tree.is_whole:
        notes.append("the folder holds more files than are listed, or deeper ones: some may be missing here")
    sure = 0.0 if problem else 0.8 * (0.5 + 0.5 * share)
    if problem:
        sure, why = 0.3, f"{why}, but {problem}"
    return Found("folder", sure, why, config, len(whole.paired), parts, tuple(notes))


def _folders(tree: Tree, pair: Pair) -> dict[str, Any]:
    keys: dict[str, Any] = {"images": str(tree.path(pair.images)), "masks": str(tree.path(pair.masks))}
    if pair.image_suffix:
        keys["image_suffix"] = pair.image_suffix
    if pair.mask_suffix:
        keys["mask_suffix"] = pair.mask_suffix
    return keys | ({"nested": True} if pair.nested else {})


# -- pairs of folders --------------------------------------------------------------------------------------------------


def _pairs(tree: Tree) -> Iterator[Pair]:
    """All folders of images with a folder of masks that may belong to it."""
    told = {folder: meaning_of(folder) for folder in tree.files}
    of_images = {folder: stems_of(tree, folder, IMAGE_SUFFIXES) for folder in tree.files}
    of_masks = {
        folder: stems_of(tree, folder, (*MASK_SUFFIXES, *LOSSY_SUFFIXES))
        for folder in tree.files
        if told[folder].role == "masks"
    }
    by_key: dict[tuple[str | None, tuple[str, ...]], list[str]] = defaultdict(list)
    for folder, stems in of_images.items():
        if stems and told[folder].role != "masks":
            by_key[_key(told[folder])].append(folder)
    for masks, mask_stems in of_masks.items():
        candidates = by_key.get(_key(told[masks]), []) if mask_stems else []
        best = max(candidates, key=lambda folder: (told[folder].role is not None, -len(folder)), default=None)
        for images in [best] if best is not None else []:
            yield from _matched(tree, images, masks, of_images[images], mask_stems)
    for folder, stems in of_images.items():
        if stems and told[folder].role != "masks":
            yield from _in_one(tree, folder, stems)


def _key(told: Meaning) -> tuple[str | None, tuple[str, ...]]:
    return told.part, told.rest


def stems_of(tree: Tree, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """The names of a folder's files with these suffixes, by what stands before the suffix."""
    return {name.rpartition(".")[0]: name for name in tree.files[folder] if name.lower().endswith(suffixes)}


def _matched(
    tree: Tree, images: str, masks: str, image_stems: Mapping[str, str], mask_stems: Mapping[str, str]
) -> Iterator[Pair]:
    for ending in ENDINGS:
        bases = [stem.removesuffix(ending) for stem in image_stems if stem.endswith(ending)]
        if not bases or (ending and len(bases) < len(image_stems)):
            continue
        suffix = _suffix(bases, sorted(mask_stems))
        if suffix is None:
            continue
        paired = tuple(
            (tree.path(images) / image_stems[base + ending], tree.path(masks) / mask_stems[base + suffix])
            for base in bases
            if base + suffix in mask_stems
        )
        if len(paired) >= MATCHING * len(bases):
            yield Pair(images, masks, ending, suffix, paired, len(bases))
            return


def _suffix(bases: Sequence[str], masks: Sequence[str]) -> str | None:
    """What most masks have after the name of their image; None if no mask begins with the name of an image."""
    counts: Counter[str] = Counter()
    step = max(1, len(bases) // TRIED)
    for base in bases[::step]:
        place = bisect_left(masks, base)
        while place < len(masks) and masks[place].startswith(base):
            rest = masks[place][len(base) :]
            if not rest[:1].isdigit():  # 1 is no beginning of 10
                counts[rest] += 1
            place += 1
            if place > bisect_left(masks, base) + 20:
                break
    return max(counts, key=lambda rest: (counts[rest], -len(rest))) if counts else None


def _in_one(tree: Tree, folder: str, stems: Mapping[str, str]) -> Iterator[Pair]:
    """Images and masks in one folder: `NAME.jpg` and `NAME_mask.png`."""
    masks = {stem: name for stem, name in stems.items() if name.lower().endswith((*MASK_SUFFIXES, *LOSSY_SUFFIXES))}
    endings = Counter(
        stem[len(stem.rpartition("_")[0]) :]
        for stem in masks
        if stem.rpartition("_")[2].lower() in WORDS["masks"] and stem.rpartition("_")[0]
    )
    for suffix, _ in endings.most_common(1):
        others = {stem: name for stem, name in stems.items() if not stem.endswith(suffix)}
        chosen = {stem: name for stem, name in masks.items() if stem.endswith(suffix)}
        for pair in _matched(tree, folder, folder, others, chosen):
            if pair.mask_suffix == suffix:
                yield pair


def _best(pairs: Sequence[Pair]) -> list[Pair]:
    """For each folder of images the folder of masks that fits best."""
    best: dict[str, Pair] = {}
    for pair in pairs:
        other = best.get(pair.images)
        if other is None or _rank(pair) > _rank(other):
            best[pair.images] = pair
    return list(best.values())


def _rank(pair: Pair) -> tuple[float, ...]:
    """Masks that are PNG and have a plain name go first; colours and pictures of masks last."""
    lossless = not any(mask.suffix.lower() in LOSSY_SUFFIXES for _, mask in pair.paired[:1])
    shown = any(word in pair.masks.lower() for word in ("color", "colour", "vis", "overlay", "object"))
    return round(pair.share, 1), lossless, not shown, -len(pair.mask_suffix), -len(pair.masks)


def _merged(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs that lie in subfolders of the same names under the same two folders, as one nested pair."""
    groups: dict[tuple[str, str, str, str], list[Pair]] = defaultdict(list)
    for pair in pairs:
        images, masks = PurePosixPath(pair.images).parts, PurePosixPath(pair.masks).parts
        while images and masks and images[-1] == masks[-1] and meaning_of(images[-1])[:2] == (None, None):
            images, masks = images[:-1], masks[:-1]
        place = "/".join(images), "/".join(masks)
        if place[0] == place[1]:  # images and masks in one folder are not searched in subfolders
            place = pair.images, pair.masks
        groups[(*place, pair.image_suffix, pair.mask_suffix)].append(pair)
    merged = []
    for (images_folder, masks_folder, ending, suffix), group in groups.items():
        if len(group) == 1 and group[0].images == images_folder:
            merged += group
            continue
        paired = tuple(paired for pair in group for paired in pair.paired)
        count = sum(pair.num_images for pair in group)
        merged.append(Pair(images_folder, masks_folder, ending, suffix, paired, count, nested=True))
    return merged


def _by_part(pairs: Sequence[Pair]) -> tuple[dict[str, Pair], Sequence[str]]:
    """The pair of each part, `all` for one without, and notes; no pair where several are the same part."""
    parts: dict[str, Pair] = {}
    for pair in pairs:
        part = meaning_of(pair.masks).part or "all"
        if part in parts:
            return {}, ()
        parts[part] = pair
    notes: Sequence[str] = ()
    if "all" in parts and len(parts) > 1:
        whole = parts.pop("all")
        inside = [pair.images for pair in parts.values() if whole.nested and _is_in(pair.images, whole.images)]
        if inside:
            return {"all": whole}, (divided_anew("folders", [whole.images or ".", *inside]),)
        if "train" in parts:
            notes = not_taken([whole.images or "."])
        parts.setdefault("train", whole)
    return {part: parts[part] for part in ("all", *PARTS) if part in parts}, notes


def _is_in(folder: str, outer: str) -> bool:
    return PurePosixPath(folder).is_relative_to(outer)


# -- lists of names ----------------------------------------------------------------------------------------------------


def lists_of(tree: Tree, pair: Pair) -> dict[str, dict[str, Any]]:
    """The parts that text files `train.txt`, `val.txt` and `test.txt` make of one pair of folders."""
    for place in LISTS:
        known = {name.lower(): name for name in tree.files.get(place, ())}
        parts: dict[str, dict[str, Any]] = {}
        for part in PARTS:
            for word in WORDS[part]:
                name = known.get(f"{word}.txt")
                if name and part not in parts and _names_images(tree.path(place) / name, pair):
                    parts[part] = {"list": str(tree.path(place) / name)}
        if parts and [*parts] != ["train"]:
            return parts
    return {}


def _names_images(path: Path, pair: Pair) -> bool:
    if not 0 < path.stat().st_size < 2**26:
        return False
    known = {image.stem.removesuffix(pair.image_suffix) for image, _ in pair.paired} | {
        image.stem for image, _ in pair.paired
    }
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for _, line in zip(range(TRIED), file, strict=False)]
    return bool(lines) and all(PurePosixPath(line).stem in known or line in known for line in lines if line)
