"""Finds all that is wrong with the images and masks of a config's data sets, and tells how to mend it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from classyseg.config import listed
from classyseg.datasets.build import build_dataset
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.files.pairs import PairFault, collecting_pair_faults
from classyseg.datasets.label_map import classes_line, color_text, with_more_classes
from classyseg.doctor.inspection import Facts, inspect_all, labels_of_sample
from classyseg.doctor.label_patterns import MANY, Pattern, label_pattern, mixed_values
from classyseg.doctor.summary import DataSummary, Tally
from classyseg.errors import ConfigError

Severity = Literal["fault", "warning"]
"""A fault spoils a training or stops it. A warning may be intended."""
MAX_FILES = 5
LONG_SECONDS = 3
"""Seconds. The look at masks before a training shows a bar only if it takes longer."""

PROBLEMS: dict[str, tuple[Severity, str, str]] = {
    "image_unreadable": (
        "fault",
        "images that cannot be read",
        "do what the message says where the files are whole but of another kind (channels or bits in the config, "
        "classyseg[tiff], .npy); else fetch them again, or take them out of the set",
    ),
    "mask_unreadable": (
        "fault",
        "masks that cannot be read",
        "do what the message says where the files are whole but of another kind; else fetch them again, or take them "
        "out of the set",
    ),
    "annotation_wrong": (
        "fault",
        "images whose annotations cannot be drawn",
        "mend what the message names in the tool that wrote it, and export again; labels that it does not know belong "
        "into `classes` or `ignore`",
    ),
    "sample_unreadable": ("fault", "samples that cannot be read", "mend what the message names"),
    "exif_rotation": (
        "fault",
        "images that their EXIF tag turns",
        "write exif: rotate into the data set's config where the masks fit the images as viewers show them, "
        "exif: ignore where they fit the pixels as they are stored",
    ),
    "size_mismatch": (
        "fault",
        "images and masks of different sizes",
        "find the mask that belongs to the image, or resize the mask by nearest neighbour if it shows the same",
    ),
    "size_swapped": (
        "fault",
        "masks whose width and height are swapped",
        "turn the mask (or the image, if it lies on its side) by 90 degrees: one of the two was saved without its "
        "EXIF orientation",
    ),
    "lossy_mask": (
        "fault",
        "masks stored as JPEG, which changes labels",
        "write the masks again from their source as PNG",
    ),
    "index_mask": (
        "fault",
        "masks of one channel where colours are expected",
        "take color_map out of the config, or give these masks colours",
    ),
    "mask_mode": (
        "fault",
        "masks of a kind that holds no labels",
        "save them upright as PNG with one channel of integers: Pillow's mode L, or I;16 for more than 256 values",
    ),
    "blank_image": ("warning", "images of one colour", "look at them; take out those that show nothing"),
    "blank_mask": ("warning", "masks of one class alone", "look at them; a mask that was never drawn teaches wrong"),
    "video_unreadable": ("fault", "clips that cannot be read", "fetch the videos again, or take them out of the set"),
    "no_class": ("warning", "samples without a class", "label them, or take them out: they teach nothing"),
    "unlabelled": ("warning", "masks in which all is ignored", "label them, or take them out: they teach nothing"),
}
"""For each kind of problem of a single sample: its severity, what was found, and how to mend it."""

PAIR_MENDS = {
    "missing_mask": "add the masks, or take the images out; set `mask_suffix` if the names of masks end otherwise",
    "missing_image": "add the images, or take the masks out",
    "same_name": "keep one of the files",
    "listed_twice": "take the second line out of the list",
    "missing_file": "correct the names in the list or table, or add the files",
    "video_unreadable": "fetch the videos again, or take them out of the set",
    "empty_class": "add the files of the class, or remove its folder and name all classes in `classes`",
    **{kind: PROBLEMS[kind][2] for kind in ("image_unreadable", "mask_unreadable", "size_mismatch")},
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    `place` is the data set's place in the config, `count` how often it was found, `files` the first findings as (file,
    what was found there). `config` are lines of the data set's config that mend it, if there are such lines.
    `in_samples` says that single samples are wrong: then `on_bad_sample` may tolerate them.
    """

    kind: str
    severity: Severity
    place: str
    message: str
    mend: str
    count: int = 1
    files: tuple[tuple[str, str], ...] = ()
    config: str = ""
    in_samples: bool = True

    def lines(self) -> Iterator[str]:
        """What it says to people."""
        yield f"{self.severity}: {self.place}: {self.message} [{self.kind}]"
        for file, text in self.files:
            yield f"    {file}: {text}" if text else f"    {file}"
        if self.count > len(self.files) > 0:
            yield f"    ... {self.count:,} in all"
        yield f"  mend: {self.mend}"
        for line in self.config.splitlines():
            yield f"  {self.place}: {line}"

    def as_json(self) -> dict[str, Any]:
        shown = asdict(self) | {"files": [{"file": file, "found": text} for file, text in self.files]}
        del shown["in_samples"]
        return shown


@dataclass
class Diagnosis:
    """What was looked at and found, faults first."""

    summaries: list[DataSummary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "fault"]


def check_data(
    datasets: Mapping[str, Any],
    *,
    workers: int = 0,
    samples: int | None = None,
    max_files: int = MAX_FILES,
    without_labels: Collection[str] = (),
) -> Diagnosis:
    """Looks at the data sets (configs, or built ones) by their places in the config, such as `dataset.train`.

    All samples are checked, or `samples` of each data set, evenly spread; duplicates and absent classes are found only
    if all are checked. `workers` processes read them. Each finding lists up to `max_files` files. At the places
    `without_labels` only images are looked at: their labels are read by nobody.
    """
    diagnosis = Diagnosis()
    duplicates = Duplicates(max_files, without_labels)
    for name, config in datasets.items():
        dataset, findings = built(name, config, max_files)
        diagnosis.findings += findings
        if dataset is None:
            continue
        summary = DataSummary(name, dataset, max_files=max_files)
        diagnosis.summaries.append(summary)
        parts: dict[str, DataSummary] = {}
        has_labels = name not in without_labels
        for part, facts in looked_at(summary, samples=samples, workers=workers, labels=has_labels):
            parts[part.name] = part
            if samples is None:
                duplicates.add(summary, part, facts)
        all_labels = samples is None and has_labels
        diagnosis.findings += _findings_within(summary, parts.values(), all_samples=all_labels)
    labelled = [summary for summary in diagnosis.summaries if summary.name not in without_labels]
    diagnosis.findings += [*_class_findings(labelled), *duplicates.findings()]
    diagnosis.findings.sort(key=lambda finding: finding.severity != "fault")
    return diagnosis


def _findings_within(summary: DataSummary, parts: Iterable[DataSummary], *, all_samples: bool) -> Iterator[Finding]:
    """The findings about the samples of one data set, each at the one of its `parts` where the samples come from."""
    labels: list[Finding] = []
    for part in parts:
        yield from sample_findings(part)
        yield from _short_videos(part)
        pattern = label_pattern(part)
        if pattern is not None and pattern.kind == "mapped_to_one" and len(summary.held_classes) > 1:
            continue  # other parts have the other classes
        if pattern is not None and pattern.silent and pattern.sure and not all_samples:
            pattern = _seen_in_all(pattern, summary, part)
        if pattern is not None:
            labels.append(label_finding(part, pattern))
    yield from labels
    if all_samples and not labels:
        yield from _absent_classes(summary)


def _seen_in_all(pattern: Pattern, summary: DataSummary, part: DataSummary) -> Pattern | None:
    """The silent pattern of a `part`, if its other masks have it, too: they are read up to the first that differs.

    None where another mask has a class that the first ones lack: then the class is only rare.
    """
    dataset, ignored = part.dataset, part.dataset.ignore_index
    others = {*range(dataset.num_classes)} - {*part.held_classes}
    places = parts_of(summary.name, summary.dataset, range(len(summary.dataset)))
    indices = next(inner for place, _, inner in places if place == part.name)
    for index in tqdm(indices, desc=f"{part.name}: masks", delay=LONG_SECONDS, leave=False):
        found = labels_of_sample(dataset, index)
        if not found & others:
            continue
        if pattern.kind != "values_0_255" or dataset.num_classes != 2 or ignored in found:
            return None
        return mixed_values(part, f"{part.masks_with_ignored.count} of {part.num_masks} masks that were looked at")
    return pattern


def looked_at(
    summary: DataSummary, *, samples: int | None, workers: int, labels: bool = True
) -> Iterator[tuple[DataSummary, Facts]]:
    """The facts of the samples of a data set, or of some evenly spread ones. Each is added to `summary` first.

    Each comes with a summary of its own data set: of the part, where the data set is made of others.
    """
    indices = spread(len(summary.dataset), samples)
    quiet = None if samples is None else True
    with tqdm(desc=summary.name, total=len(indices), disable=quiet, leave=False) as bar:
        for place, dataset, inner in parts_of(summary.name, summary.dataset, indices):
            is_part = dataset is not summary.dataset
            part = DataSummary(place, dataset, max_files=summary.max_files) if is_part else summary
            for facts in inspect_all(dataset, inner, workers=min(workers, len(inner)), labels=labels):
                summary.add(facts)
                if is_part:
                    part.add(facts)
                bar.update(facts.num_tiles)
                yield part, facts


def parts_of(
    place: str, dataset: ClassyDataset, indices: Sequence[int]
) -> Iterator[tuple[str, ClassyDataset, Sequence[int]]]:
    """The data sets that read the samples `indices` of `dataset`, with their places in the config and their indices."""
    if not dataset.parts:
        yield place, dataset, indices
        return
    inner: dict[int, list[int]] = {}
    for index in indices:
        part, i = dataset.locate(index)
        inner.setdefault(part, []).append(i)
    for part, taken in inner.items():
        yield from parts_of(f"{place}.{dataset.part_places()[part]}", dataset.parts[part], taken)


def spread(size: int, samples: int | None) -> Sequence[int]:
    """All of 0..size-1, or `samples` of them at equal distances."""
    return range(size) if samples is None or samples >= size else [i * size // samples for i in range(samples)]


def built(name: str, config: Any, max_files: int = MAX_FILES) -> tuple[ClassyDataset | None, list[Finding]]:
    """The data set without files that have no partner: those are findings. None if it cannot be built at all."""
    with collecting_pair_faults() as faults:
        try:
            dataset = build_dataset(config)
        except ConfigError as error:
            mend = "correct what the message names, in the config or on the disk; nothing of this set was looked at"
            return None, [*_pair_findings(name, faults, max_files), Finding("no_data", "fault", name, str(error), mend)]
    suffix = _mask_suffix(faults) if "mask_suffix" in dataset.facts.keys else ""
    return dataset, list(_pair_findings(name, faults, max_files, suffix))


def _pair_findings(name: str, faults: Sequence[PairFault], max_files: int, suffix: str = "") -> Iterator[Finding]:
    for fault in faults:
        files = tuple((file, "") for file in fault.files[:max_files])
        mend, config = PAIR_MENDS[fault.kind], ""
        if suffix and fault.kind == "missing_image":
            continue  # these are the missing masks
        if suffix and fault.kind == "missing_mask":
            mend, config = "say how the names of masks end", f"mask_suffix: {json.dumps(suffix)}"
        place = f"{name}.{fault.place}".removesuffix(".")
        yield Finding(fault.kind, "fault", place, fault.message, mend, len(fault.files), files, config)


def _mask_suffix(faults: Iterable[PairFault]) -> str:
    """The suffix that all masks without an image have, and images without a mask lack; empty if there is none."""
    files = {fault.kind: [Path(file).stem for file in fault.files] for fault in faults}
    images, masks = set(files.get("missing_mask", ())), files.get("missing_image", ())
    for suffix in {mask.removeprefix(image) for mask in masks[:1] for image in images if mask.startswith(image)}:
        if all(mask.endswith(suffix) and mask.removesuffix(suffix) in images for mask in masks):
            return suffix
    return ""


def sample_findings(summary: DataSummary) -> Iterator[Finding]:
    """The findings about single samples, one for each kind."""
    for kind, tally in summary.problems.items():
        if kind == "color_mask":
            yield _color_finding(summary, tally)
            continue
        severity, what, mend = PROBLEMS[kind]
        config = ""
        if kind == "exif_rotation" and summary.whole_images:
            mend = (
                "write exif: rotate into the data set's config, or exif: ignore to take the pixels as they are stored"
            )
        elif kind == "exif_rotation" and len(summary.exif_that_fits) == 1:
            config = f"exif: {next(iter(summary.exif_that_fits))}"
        files = tuple(tally.places)
        yield Finding(kind, severity, summary.name, f"{what}: {tally.count}", mend, tally.count, files, config)


def _color_finding(summary: DataSummary, tally: Tally) -> Finding:
    colors, classes = sorted(summary.colors), summary.dataset.classes
    if len(colors) > 2 * len(classes) + MANY:
        config, mend = (
            "",
            "they hold too many colours for classes: write them again without smoothing, and name each colour",
        )
    else:
        guessed = _guessed(summary, colors)
        pairs = (f'"{color_text(color)}": {label}' for color, label in guessed.items())
        config = f"color_map: {{{', '.join(pairs)}}}"
        mend = "name the class of each colour (these numbers are a guess), or save masks of one channel"
        count = max(2, *(label + 1 for label in guessed.values() if label != summary.dataset.ignore_index))
        if count > len(classes):
            config = f"{classes_line(with_more_classes(classes, count))}\n{config}"
            mend = f"list a class for each colour, and {mend}"
    if "color_map" not in summary.dataset.facts.keys:
        config = ""
        mend = f"save masks of one channel; {type(summary.dataset).__name__} takes no color_map, as `folder` does"
    what = f"masks of colours where class indices are expected: {tally.count}"
    return Finding("color_mask", "fault", summary.name, what, mend, tally.count, tuple(tally.places), config)


def _guessed(summary: DataSummary, colors: list[int]) -> dict[int, int]:
    """A class for each colour: a grey level that is a class keeps it, others follow in the order of their numbers."""
    ignored = summary.dataset.ignore_index
    labels = [label for label in range(max(summary.dataset.num_classes, len(colors))) if label != ignored]
    values = {color: color & 255 for color in colors if color % 0x010101 == 0}
    used = {value for value in values.values() if value != ignored}
    if len(values) == len(colors) and used <= {*labels} and (len(used) > 1 or len(values) == 1):
        return values
    return dict(zip(colors, labels, strict=False))


def label_finding(summary: DataSummary, pattern: Pattern) -> Finding:
    """What is wrong with the labels of a data set."""
    severity: Severity = "fault" if pattern.sure else "warning"
    count, files = summary.strange_masks.count, tuple(_value_places(summary))
    if not summary.strange:
        flags = summary.dataset.has_flags
        tally = summary.masks_with_ignored if pattern.sure or flags else summary.masks_without_second
        count, files = (pattern.silent and tally.count) or summary.num_masks, tuple(tally.places)
    return Finding(
        pattern.kind,
        severity,
        summary.name,
        pattern.found,
        pattern.mend,
        count,
        files,
        pattern.config,
        in_samples=bool(summary.strange) and pattern.kind != "one_class",
    )


def _absent_classes(summary: DataSummary) -> Iterator[Finding]:
    absent = [name for label, name in enumerate(summary.dataset.classes) if not summary.pixels[label]]
    if not absent or not summary.all_masks_are_known:
        return
    of = f"{len(absent)} of {summary.dataset.num_classes} classes"
    names = listed(absent, limit=10)
    if summary.whole_images:
        message = f"{of} have no sample: {names}"
        mend = "check `classes` against the folders or the list; a class without a sample is not learnt"
    else:
        message = f"{of} are in no mask: {names}"
        mend = "check `classes` and `label_map` (do the masks count from 1?); a class without a pixel is not learnt"
    yield Finding("absent_class", "warning", summary.name, message, mend, len(absent))


def _short_videos(summary: DataSummary) -> Iterator[Finding]:
    short = summary.dataset.too_short
    if short:
        message = f"videos that are shorter than a clip, and left out: {len(short)}"
        files = tuple((name, "") for name in short[: summary.max_files])
        mend = "take fewer clips.frames, or another clips.frame_rate, unless you mean to leave them out"
        yield Finding("short_video", "warning", summary.name, message, mend, len(short), files)


def _value_places(summary: DataSummary) -> Iterator[tuple[str, str]]:
    """For each strange value the masks that hold it; if there are many values, the masks with their values."""
    if len(summary.strange) > MANY:
        yield from summary.strange_masks.places
        return
    for value, tally in summary.strange.items():
        for file, text in tally.places:
            yield file, f"class {value}" if summary.whole_images else f"value {summary.value_text(value)}: {text}"


def _class_findings(summaries: list[DataSummary]) -> Iterator[Finding]:
    for summary in summaries[1:]:
        found, wanted = ((list(s.dataset.classes), s.dataset.ignore_index) for s in (summary, summaries[0]))
        if found != wanted:
            message = f"its classes {found[0]} (ignored: {found[1]}) are not those of {summaries[0].name}, {wanted[0]}"
            message += f" (ignored: {wanted[1]})"
            yield Finding("other_classes", "fault", summary.name, message, "make both the same, in the same order")


class Duplicates:
    """Finds images of equal pixels, and equal videos, within a data set and between two.

    Keeps 16 bytes and two numbers of each. Data sets `without_labels` may hold the images of a training set.
    """

    def __init__(self, max_files: int, without_labels: Collection[str] = ()) -> None:
        self.max_files, self.without_labels = max_files, without_labels
        self._parts: dict[str, tuple[str, DataSummary]] = {}
        self._first: dict[bytes, tuple[str, int, bytes | None]] = {}
        self._tallies: dict[tuple[str, str, str], Tally] = {}

    def add(self, summary: DataSummary, part: DataSummary, facts: Facts) -> None:
        """Adds a sample of `part`, which is `summary` or a part of it."""
        if facts.image_digest is None:
            return
        root, here = self._parts.setdefault(part.name, (summary.name, part))[0], part.name
        place, index, mask_digest = self._first.setdefault(facts.image_digest, (here, facts.index, facts.mask_digest))
        if (place, index) == (here, facts.index):
            return
        other_root, other = self._parts[place]
        kind = "duplicate" if other_root == root else "duplicate_across"
        if kind == "duplicate" and mask_digest != facts.mask_digest:
            kind = "duplicate_labels"
        name = other.dataset.names_of(index)[0]
        tally = self._tallies.setdefault((kind, place, here), Tally())
        tally.add(facts.image, f"the same {'content' if part.videos else 'pixels'} as {name}", self.max_files)

    def findings(self) -> Iterator[Finding]:
        for (kind, other, here), tally in self._tallies.items():
            part = self._parts[here][1]
            nouns, labels = ("videos" if part.videos else "images"), ("classes" if part.whole_images else "masks")
            within = "there twice" if other == here else f"in {other}, too"
            severity: Severity = "warning" if kind == "duplicate" else "fault"
            roots = {self._parts[place][0] for place in (other, here)}
            if kind == "duplicate_across" and not roots.isdisjoint(self.without_labels):
                severity = "warning"
                what = f"{nouns} that {other} holds, too"
                mend = "leave them if they are those of the training set; take out those of val and test"
            elif kind == "duplicate_across":
                what = f"{nouns} that {other} holds, too"
                mend = "take them out of one of the two: what was seen in training is not measured honestly"
            elif kind == "duplicate_labels":
                what = f"{nouns} that are {within}, with different {labels}"
                mend = f"keep the one whose {'class' if part.whole_images else 'mask'} is right"
            else:
                what = f"{nouns} that are {within}"
                mend = "keep one of each, unless you mean to count it twice"
            files = tuple(tally.places)
            yield Finding(kind, severity, here, f"{what}: {tally.count}", mend, tally.count, files)
