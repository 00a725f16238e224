"""What masks with wrong values were probably meant to be, and the line of the config that makes them so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from classyseg.datasets.doctor.summary import DataSummary
from classyseg.datasets.folder import Folder
from classyseg.datasets.label_map import color_text, spans

MANY = 8
"""From so many strange values on, masks do not hold classes."""
STRAY = 0.02
"""Values in a smaller share of the masks than this are slips of single masks, not how the set was made."""


@dataclass(frozen=True)
class Pattern:
    """`kind` and what was `found`; `config` is the key that mends it (or nothing), `mend` what to do in words.

    A pattern that is not `sure` may be meant so.
    """

    kind: str
    found: str
    mend: str
    config: str = ""
    sure: bool = True


def label_pattern(summary: DataSummary) -> Pattern | None:
    """What the labels of a data set are, where they are not all classes; None where nothing is wrong with them."""
    dataset = summary.dataset
    if not summary.strange:
        return _silent_pattern(summary)
    if summary.whole:
        return _no_classes(summary)
    if not isinstance(dataset, Folder):
        return _foreign(summary)
    labels = (dataset.color_map or dataset.label_map).labels
    given = sorted(set(summary.strange) & set(labels.values()))
    if given:
        return _beyond(summary, labels, given, "label_map" if dataset.color_map is None else "color_map")
    if dataset.color_map is not None:
        return _colors_beside(summary)
    if dataset.has_label_map:
        return _beside_label_map(summary, labels)
    return _numbers(summary)


def _silent_pattern(summary: DataSummary) -> Pattern | None:
    """Masks of 0 and 255 where 255 is ignored: no error ever tells that the second class is nowhere, or missing."""
    dataset, masks = summary.dataset, summary.masks_without_second.count
    if dataset.num_classes != 2 or dataset.ignore_index != 255 or not masks:
        return None
    if not isinstance(dataset, Folder) or dataset.has_label_map or dataset.color_map is not None:
        return None  # what the files hold is another thing
    config = "label_map: {255: 1}"
    if not summary.pixels[1]:
        found = f"every mask holds 0 and 255 only, and 255 is ignored: no pixel is '{dataset.classes[1]}'"
        return Pattern("values_0_255", found, "255 is the second class: map it", config)
    if summary.masks_with_second_and_ignored:
        return None
    return Pattern(
        "values_mixed",
        f"{masks} of {summary.num_masks} masks hold 0 and 255, which is ignored, where the others hold 0 and 1",
        "look at them; if 255 is the second class there, map it",
        config,
        sure=False,
    )


def _numbers(summary: DataSummary) -> Pattern:
    """Of a folder whose masks hold numbers and which has no label map yet."""
    classes, ignored = summary.dataset.num_classes, summary.dataset.ignore_index
    found = sorted(value for value, count in summary.pixels.items() if count)
    real = [value for value in found if value != ignored]
    held = f"the masks hold {_short(real)}, the classes are 0 to {classes - 1}"
    if len(summary.strange) >= MANY and _are_instances(summary):
        return Pattern(
            "instance_masks",
            f"{held}: in each mask the values run from 0 to some number, as numbers of objects do",
            "write masks of classes instead; where all objects are of one class, mask = (objects > 0)",
        )
    if len(summary.strange) >= MANY and _are_between(summary, real):
        return Pattern(
            "interpolated_masks",
            f"{held}: a few pixels of many values between, as smoothing leaves at borders",
            "write the masks again from their source, resized by nearest neighbour and saved without loss (PNG)",
        )
    stray = summary.strange_masks.count < STRAY * summary.num_masks
    if real[0] >= 1 and real[-1] == classes:
        line = _map({value: value - 1 for value in range(1, classes + 1)})
        return Pattern("values_1_to_n", f"{held}: they count from 1", "map each value to the one before", line)
    if real == list(range(classes + 1)) and not stray:
        line = _map({0: ignored} | {value: value - 1 for value in range(1, classes + 1)})
        mend = f"if 0 is no class, map it to {ignored}, which is ignored; else add its name in front of `classes`"
        return Pattern("values_0_to_n", f"{held}: one value more than classes", mend, line)
    spread = next((values for values in (found, real) if len(values) == classes > 1), None)
    if spread is not None:
        line = _map({value: label for label, value in enumerate(spread) if value != label})
        kind = "values_0_255" if spread == [0, 255] else "values_spread"
        return Pattern(
            kind,
            f"{held}: as many values as classes",
            "map each value to its class, if they are in the order of `classes`",
            line,
        )
    return Pattern(
        "unknown_values",
        f"{held}, and {ignored} is ignored",
        f"name the class of each in a label_map ({ignored} to ignore it), or mend the masks",
        _map(dict.fromkeys(list(summary.strange)[:MANY], ignored)),
    )


def _beyond(summary: DataSummary, labels: Mapping[int, int], given: list[int], key: str) -> Pattern:
    """Of a folder whose map gives numbers that are no class."""
    classes, ignored = summary.dataset.num_classes, summary.dataset.ignore_index
    sources = [value for value, label in labels.items() if label in given]
    shown = spans(sources) if key == "label_map" else ", ".join(map(color_text, sources))
    found = f"{key} maps {shown} to {spans(given)}, the classes are 0 to {classes - 1}"
    mend = f"map to 0 to {classes - 1}, or to {ignored} to ignore a value"
    return Pattern(f"{key}_beyond", found, mend)


def _beside_label_map(summary: DataSummary, labels: Mapping[int, int]) -> Pattern:
    """Of a folder with a label map that does not name a value."""
    ignored = summary.dataset.ignore_index
    missing = list(summary.strange)[:MANY]
    return Pattern(
        "unknown_values",
        f"the masks hold {_short(sorted(summary.strange))}, which label_map does not name and no class is",
        f"name them in label_map, too (here they are ignored, as {ignored}), or mend the masks",
        _map({**labels, **dict.fromkeys(missing, ignored)}),
    )


def _colors_beside(summary: DataSummary) -> Pattern:
    ignored = summary.dataset.ignore_index
    shown = ", ".join(f'"{summary.value_text(value)}": {ignored}' for value in list(summary.strange)[:MANY])
    return Pattern(
        "unknown_colors",
        f"the masks hold {len(summary.strange)} colours that color_map does not name",
        f"add them to color_map with their class, such as {shown} to ignore them; many colours at borders come from "
        "smoothing: write such masks again without it",
    )


def _foreign(summary: DataSummary) -> Pattern:
    """Of a public set, which alone says what its values mean."""
    name = type(summary.dataset).__name__
    values = _short(sorted(summary.strange))
    return Pattern(
        "unknown_values",
        f"the masks hold {values}, which {name} does not have",
        f"take the masks as {name} publishes them (docs/datasets.md tells their values), or read these with `folder`",
    )


def _no_classes(summary: DataSummary) -> Pattern:
    """Of samples with one class each."""
    return Pattern(
        "unknown_classes",
        f"samples have the classes {_short(sorted(summary.strange))}, the classes are 0 to "
        f"{summary.dataset.num_classes - 1}, and {summary.dataset.ignore_index} is none",
        "name all classes in `classes`, or correct what the samples' classes come from",
    )


def _are_instances(summary: DataSummary) -> bool:
    return summary.masks_that_count_up >= 0.8 * summary.strange_masks.count


def _are_between(summary: DataSummary, real: list[int]) -> bool:
    strange = sum(summary.pixels[value] for value in real[1:-1])
    return strange < 0.3 * sum(summary.pixels.values())


def _map(labels: Mapping[int, int]) -> str:
    return f"label_map: {{{', '.join(f'{value}: {label}' for value, label in labels.items())}}}"


def _short(values: list[int]) -> str:
    """The values as ranges, the first and the last of many."""
    text = spans(values)
    parts = text.split(", ")
    return text if len(parts) <= MANY else f"{', '.join(parts[:4])}, ..., {parts[-1]} ({len(values)} values)"
