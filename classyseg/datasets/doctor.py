"""What is wrong with the images and masks of a config's data sets, and how to mend it; nothing stops at the first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from classyseg.config import ConfigError, listed
from classyseg.datasets.build import build_dataset
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.folder import Folder
from classyseg.datasets.inspection import Facts, inspect_all, sample_names
from classyseg.datasets.label_map import color_text
from classyseg.datasets.label_patterns import MANY, label_pattern
from classyseg.datasets.pairs import PairFault, collecting_pair_faults
from classyseg.datasets.summary import DataSummary, Tally

Severity = Literal["fault", "warning"]
"""A fault spoils a training or stops it; a warning may be meant so."""
MAX_FILES = 5

PROBLEMS: dict[str, tuple[Severity, str, str]] = {
    "image_unreadable": (
        "fault",
        "images that cannot be read",
        "fetch the files again, or take them out of the set; grey images of 16 bits need bits: 16 in the config",
    ),
    "mask_unreadable": ("fault", "masks that cannot be read", "fetch the files again, or take them out of the set"),
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
    "unlabelled": ("warning", "masks in which all is ignored", "label them, or take them out: they teach nothing"),
}
"""Of each kind of problem of a single sample: how bad it is, what was found, and how to mend it."""

PAIR_MENDS = {
    "missing_mask": "add the masks, or take the images out; set `mask_suffix` if the names of masks end otherwise",
    "missing_image": "add the images, or take the masks out",
    "same_name": "keep one of the files",
    "listed_twice": "take the second line out of the list",
    "missing_file": "correct the paths in the table, or add the files",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    `place` is the data set's in the config, `count` how often it was found, `files` the first places as (file, what was
    found there), `config` the key and value that mend it, where a line of the data set's config does.
    """

    kind: str
    severity: Severity
    place: str
    message: str
    mend: str
    count: int = 1
    files: tuple[tuple[str, str], ...] = ()
    config: str = ""

    def lines(self) -> Iterator[str]:
        """What it says to people."""
        yield f"{self.severity}: {self.place}: {self.message} [{self.kind}]"
        for file, text in self.files:
            yield f"    {file}: {text}" if text else f"    {file}"
        if self.count > len(self.files) > 0:
            yield f"    ... {self.count:,} in all"
        yield f"  mend: {self.mend}"
        if self.config:
            yield f"  {self.place}: {self.config}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"files": [{"file": file, "found": text} for file, text in self.files]}


@dataclass
class Diagnosis:
    """What was looked at and found, faults first."""

    summaries: list[DataSummary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "fault"]


def check_data(
    datasets: Mapping[str, Any], *, workers: int = 0, samples: int | None = None, max_files: int = MAX_FILES
) -> Diagnosis:
    """Looks at the data sets (configs, or built ones) by their places in the config, such as `dataset.train`.

    All samples are looked at, or `samples` of each data set, evenly spread, which leaves out what only the whole can
    show: duplicates and absent classes. `workers` processes read them; each finding lists `max_files` files.
    """
    diagnosis = Diagnosis()
    duplicates = Duplicates(max_files)
    for name, config in datasets.items():
        dataset, findings = built(name, config, max_files)
        diagnosis.findings += findings
        if dataset is None:
            continue
        summary = DataSummary(name, dataset, max_files=max_files)
        diagnosis.summaries.append(summary)
        duplicates.start(summary)
        for facts in looked_at(summary, samples=samples, workers=workers):
            if samples is None:
                duplicates.add(facts)
    for summary in diagnosis.summaries:
        diagnosis.findings += sample_findings(summary)
        diagnosis.findings += label_findings(summary, whole=samples is None)
    diagnosis.findings += [*_class_findings(diagnosis.summaries), *duplicates.findings()]
    diagnosis.findings.sort(key=lambda finding: finding.severity != "fault")
    return diagnosis


def looked_at(summary: DataSummary, *, samples: int | None, workers: int) -> Iterator[Facts]:
    """The facts of the samples of a data set, or of some evenly spread ones, each counted in `summary` before."""
    indices = spread(len(summary.dataset), samples)
    quiet = None if samples is None else True
    everything = inspect_all(summary.dataset, indices, workers=min(workers, len(indices)))
    for facts in tqdm(everything, summary.name, total=len(indices), disable=quiet, leave=False):
        summary.add(facts)
        yield facts


def spread(size: int, samples: int | None) -> Sequence[int]:
    """All of 0..size-1, or `samples` of them at equal distances."""
    return range(size) if samples is None or samples >= size else [i * size // samples for i in range(samples)]


def built(name: str, config: Any, max_files: int = MAX_FILES) -> tuple[ClassyDataset | None, list[Finding]]:
    """The data set without its files that have no partner, which are findings; None where it cannot be built at all."""
    with collecting_pair_faults() as faults:
        try:
            dataset = build_dataset(config)
        except ConfigError as error:
            mend = "correct the path or the files that the message names; nothing of this data set was looked at"
            return None, [*_pair_findings(name, faults, max_files), Finding("no_data", "fault", name, str(error), mend)]
    suffix = _mask_suffix(faults) if isinstance(dataset, Folder) else ""
    return dataset, list(_pair_findings(name, faults, max_files, suffix))


def _pair_findings(name: str, faults: Sequence[PairFault], max_files: int, suffix: str = "") -> Iterator[Finding]:
    for fault in faults:
        files = tuple((file, "") for file in fault.files[:max_files])
        mend, config = PAIR_MENDS[fault.kind], ""
        if suffix and fault.kind == "missing_image":
            continue  # these are the missing masks
        if suffix and fault.kind == "missing_mask":
            mend, config = "say how the names of masks end", f"mask_suffix: {json.dumps(suffix)}"
        yield Finding(fault.kind, "fault", name, fault.message, mend, len(fault.files), files, config)


def _mask_suffix(faults: Iterable[PairFault]) -> str:
    """What the names of all masks without an image have behind the name of an image without a mask, if anything."""
    files = {fault.kind: [Path(file).stem for file in fault.files] for fault in faults}
    images, masks = set(files.get("missing_mask", ())), files.get("missing_image", ())
    for suffix in {mask.removeprefix(image) for mask in masks[:1] for image in images if mask.startswith(image)}:
        if all(mask.endswith(suffix) and mask.removesuffix(suffix) in images for mask in masks):
            return suffix
    return ""


def sample_findings(summary: DataSummary) -> Iterator[Finding]:
    """What single samples show, one finding for each kind."""
    for kind, tally in summary.problems.items():
        if kind == "color_mask":
            yield _color_finding(summary, tally)
            continue
        severity, what, mend = PROBLEMS[kind]
        config = ""
        if kind == "exif_rotation" and len(summary.exif_that_fits) == 1:
            config = f"exif: {next(iter(summary.exif_that_fits))}"
        files = tuple(tally.places)
        yield Finding(kind, severity, summary.name, f"{what}: {tally.count}", mend, tally.count, files, config)


def _color_finding(summary: DataSummary, tally: Tally) -> Finding:
    colors, labels = sorted(summary.colors), range(summary.dataset.num_classes)
    if len(colors) > 2 * len(labels) + MANY:
        config, mend = (
            "",
            "they hold too many colours for classes: write them again without smoothing, and name each colour",
        )
    else:
        pairs = (f'"{color_text(color)}": {label}' for color, label in _guessed(summary, colors).items())
        config = f"color_map: {{{', '.join(pairs)}}}"
        mend = "name the class of each colour (these numbers are a guess), or save masks of one channel"
    what = f"masks of colours where class indices are expected: {tally.count}"
    return Finding("color_mask", "fault", summary.name, what, mend, tally.count, tuple(tally.places), config)


def _guessed(summary: DataSummary, colors: list[int]) -> dict[int, int]:
    """A class for each colour: grey that is a class as it is, others in the order of their numbers."""
    labels, ignored = range(summary.dataset.num_classes), summary.dataset.ignore_index
    values = {color: color & 255 for color in colors if color % 0x010101 == 0}
    used = {value for value in values.values() if value != ignored}
    if len(values) == len(colors) and used <= {*labels} and (len(used) > 1 or len(values) == 1):
        return values
    return {color: i if i in labels else ignored for i, color in enumerate(colors)}


def label_findings(summary: DataSummary, *, whole: bool) -> Iterator[Finding]:
    """What the labels of a data set show; `whole` says that all of its masks were looked at."""
    pattern = label_pattern(summary)
    if pattern is not None:
        silent = not summary.strange
        severity: Severity = "fault" if pattern.sure and (whole or not silent) else "warning"
        count = summary.num_masks if silent else summary.strange_masks.count
        files = tuple(_value_places(summary))
        if not pattern.sure:
            count, files = summary.masks_without_second.count, tuple(summary.masks_without_second.places)
        yield Finding(pattern.kind, severity, summary.name, pattern.found, pattern.mend, count, files, pattern.config)
    elif whole and summary.all_masks_are_known:
        absent = [name for label, name in enumerate(summary.dataset.classes) if not summary.pixels[label]]
        if absent:
            message = (
                f"{len(absent)} of {summary.dataset.num_classes} classes are in no mask: {listed(absent, limit=10)}"
            )
            mend = "check `classes` and `label_map` (do the masks count from 1?); a class without a pixel is not learnt"
            yield Finding("absent_class", "warning", summary.name, message, mend, len(absent))


def _value_places(summary: DataSummary) -> Iterator[tuple[str, str]]:
    """For each strange value the masks that hold it; of many values, the masks with theirs."""
    if len(summary.strange) > MANY:
        yield from summary.strange_masks.places
        return
    for value, tally in summary.strange.items():
        for file, text in tally.places:
            yield file, f"value {summary.value_text(value)}: {text}"


def _class_findings(summaries: list[DataSummary]) -> Iterator[Finding]:
    for summary in summaries[1:]:
        found, wanted = ((list(s.dataset.classes), s.dataset.ignore_index) for s in (summary, summaries[0]))
        if found != wanted:
            message = f"its classes {found[0]} (ignored: {found[1]}) are not those of {summaries[0].name}, {wanted[0]}"
            message += f" (ignored: {wanted[1]})"
            yield Finding("other_classes", "fault", summary.name, message, "make both the same, in the same order")


class Duplicates:
    """Finds images of equal pixels, within a data set and between two; keeps 16 bytes and two numbers of each image."""

    def __init__(self, max_files: int) -> None:
        self.max_files = max_files
        self._summaries: list[DataSummary] = []
        self._first: dict[bytes, tuple[int, int, bytes | None]] = {}
        self._tallies: dict[tuple[str, int, int], Tally] = {}

    def start(self, summary: DataSummary) -> None:
        """What is added from now on is of `summary`."""
        self._summaries.append(summary)

    def add(self, facts: Facts) -> None:
        if facts.image_digest is None:
            return
        here = len(self._summaries) - 1
        first = self._first.setdefault(facts.image_digest, (here, facts.index, facts.mask_digest))
        if first[:2] == (here, facts.index):
            return
        kind = "duplicate" if first[0] == here else "duplicate_across"
        if kind == "duplicate" and first[2] != facts.mask_digest:
            kind = "duplicate_labels"
        other = sample_names(self._summaries[first[0]].dataset, first[1])[0]
        tally = self._tallies.setdefault((kind, first[0], here), Tally())
        tally.add(facts.image, f"the same pixels as {other}", self.max_files)

    def findings(self) -> Iterator[Finding]:
        for (kind, before, here), tally in self._tallies.items():
            name, other = self._summaries[here].name, self._summaries[before].name
            if kind == "duplicate_across":
                what, severity = f"images that {other} holds, too", "fault"
                mend = "take them out of one of the two: what was seen in training is not measured honestly"
            elif kind == "duplicate_labels":
                what, severity = "images that are there twice, with different masks", "fault"
                mend = "keep the image whose mask is right"
            else:
                what, severity = "images that are there twice", "warning"
                mend = "keep one of each, unless it shall count twice"
            files = tuple(tally.places)
            yield Finding(kind, severity, name, f"{what}: {tally.count}", mend, tally.count, files)  # type: ignore[arg-type]
