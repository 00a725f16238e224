"""Guesses what masks with wrong values were meant to be, and the line of the config that makes them so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.label_map import classes_line, spans, with_more_classes
from classyseg.doctor.summary import DataSummary

MANY = 8
"""With so many strange values or more, masks do not hold classes."""
STRAY = 0.02
"""Values in a smaller share of the masks are mistakes in single masks, not the way the set was made."""
COMMON = 0.2
"""Values without an order are taken for classes if at least this share of the masks holds them."""


@dataclass(frozen=True)
class Pattern:
    """The `kind` of pattern and what was `found`. `config` are lines that mend it, if any; `mend` tells what to do.

    A pattern that is not `sure` may be intended. A `silent` pattern is no error in any single mask: it holds only if no
    other mask has the missing class.
    """

    kind: str
    found: str
    mend: str
    config: str = ""
    sure: bool = True
    silent: bool = False


def label_pattern(summary: DataSummary) -> Pattern | None:
    """The pattern of a data set's labels; None if nothing is wrong with them."""
    dataset = summary.dataset
    if dataset.has_flags:
        return _flag_pattern(summary)
    if dataset.num_classes == 1 and summary.num_masks and not summary.whole_images:
        return _one_class(summary)
    if not summary.strange:
        return _silent_pattern(summary)
    if summary.whole_images:
        return _no_classes(summary)
    if not _takes_map(dataset):
        return _foreign(summary)
    if dataset.color_map is not None:
        return _unmapped_colors(summary)
    if labels := _labels(dataset):
        return _unmapped_values(summary, labels)
    return _numbers(summary)


def _one_class(summary: DataSummary) -> Pattern:
    """A data set with one class, from which nothing can be learnt: which values are that class and a background."""
    dataset = summary.dataset
    config = classes_line(with_more_classes(dataset.classes, 2))
    values = sorted(value for value, count in summary.pixels.items() if count)
    if _takes_map(dataset) and not _labels(dataset) and dataset.color_map is None and len(values) == 2:
        labels = {values[0]: 0, values[1]: 1} if values[0] != 1 or values[1] == 2 else {values[1]: 0}
        changed = {value: label for value, label in labels.items() if value != label}
        config += f"\n{_map(changed)}" if changed else ""
    return Pattern(
        "one_class",
        f"there is one class, '{dataset.classes[0]}', and the masks hold {_short(values)}: a softmax over one class is "
        "always right",
        "name the background, too, in every data set of the config, in the order of the masks' values",
        config,
    )


def _flag_pattern(summary: DataSummary) -> Pattern | None:
    """Flags of other numbers than 0 and 1; or where the ignored label stands in place of 1, which no error tells."""
    dataset, ignored = summary.dataset, summary.dataset.ignore_index
    labels = _labels(dataset) if _takes_map(dataset) else {}
    if summary.strange:
        values = sorted(summary.strange)
        config = _map({**labels, values[0]: 1}) if _takes_map(dataset) and len(values) == 1 else ""
        return Pattern(
            "no_flags",
            f"masks hold {_short(values)}, where a flag is 1, 0 or {ignored}",
            "say which value means that a pixel has the class",
            config,
        )
    missing = [i for i in range(dataset.num_classes) if not summary.pixels[i]]
    never_known = [i for i in missing if summary.known[i] < summary.mask_pixels]
    if not never_known or _is_mapped(dataset, ignored):
        return None
    names = ", ".join(f"'{dataset.classes[i]}'" for i in never_known[:MANY])
    return Pattern(
        "flags_0_255",
        f"the masks of {names} hold 0 and {ignored}, which is ignored, and no 1",
        f"if {ignored} means that a pixel has the class, say so; if it really stands for pixels that nobody knows: "
        f"{_map({**labels, ignored: ignored})}",
        _map({**labels, ignored: 1}) if _takes_map(dataset) else "",
        sure=len(missing) == dataset.num_classes,
        silent=True,
    )


def _silent_pattern(summary: DataSummary) -> Pattern | None:
    """Masks of one class, or of 0 and 255 where 255 is ignored: no error would ever tell that a class is missing."""
    dataset, ignored, held = summary.dataset, summary.dataset.ignore_index, summary.held_classes
    if summary.whole_images:
        return None
    if not held and summary.pixels[ignored]:
        found = f"no mask holds a class: every pixel is {ignored}, ignored"
        return Pattern("no_labels", found, "label the images, or map the masks' values to classes", silent=True)
    if not summary.pixels[ignored]:
        return _mapped_to_one(summary)
    if _is_mapped(dataset, ignored):
        return None  # the files hold other values, or the user ignores them on purpose
    labels = _labels(dataset)
    if len(held) == 1:
        (only,) = held
        two = dataset.num_classes == 2
        other = 1 - min(only, 1)
        names = f"'{dataset.classes[other]}'" if two else f"of another class than '{dataset.classes[only]}'"
        what = ("the second class" if only == 0 else "the first class") if two else "one of the other classes"
        turned = ""
        if two and only == 0 and summary.pixels[ignored] > summary.pixels[0]:
            shown = _map({**labels, 0: 1, ignored: 0})
            turned = f" (most pixels are {ignored}: if that is '{dataset.classes[0]}', write {shown})"
        meant = f"; if {ignored} really stands for pixels without a label, say so: {_map({**labels, ignored: ignored})}"
        return Pattern(
            "values_0_255" if (only, ignored) == (0, 255) else "values_and_ignored",
            f"every mask holds {only} and {ignored} only, and {ignored} is ignored: no pixel is {names}",
            f"{ignored} is {what}: map it{turned}{meant}" if _takes_map(dataset) else _without_map(dataset, ignored),
            _map({**labels, ignored: other}) if _takes_map(dataset) else "",
            silent=True,
        )
    masks = summary.masks_without_second.count
    if ignored != 255 or not masks or summary.masks_with_second_and_ignored or not _takes_map(dataset):
        return None
    return mixed_values(summary, f"{masks} of {summary.num_masks} masks")


def _mapped_to_one(summary: DataSummary) -> Pattern | None:
    """A folder whose map gives all pixels one class. Without a map, such masks may just be of rare objects."""
    dataset, held = summary.dataset, summary.held_classes
    if not _takes_map(dataset) or len(held) != 1 or dataset.num_classes == 1:
        return None
    if not _labels(dataset) and dataset.color_map is None:
        return None
    key = "label_map" if dataset.color_map is None else "color_map"
    return Pattern(
        "mapped_to_one",
        f"with its {key}, every mask holds class {held[0]}, '{dataset.classes[held[0]]}', alone: nothing can be learnt",
        f"let {key} give each class a number of its own, as in `classes`",
        silent=True,
    )


def mixed_values(summary: DataSummary, masks: str) -> Pattern:
    """Two classes, where `masks` hold the ignored label in place of the second class, and other masks do not."""
    ignored = summary.dataset.ignore_index
    return Pattern(
        "values_mixed",
        f"{masks} hold 0 and {ignored}, which is ignored, where the others hold 0 and 1",
        f"look at them; if {ignored} is the second class there, map it",
        _map({ignored: 1}) if _takes_map(summary.dataset) else "",
        sure=False,
        silent=True,
    )


def _is_mapped(dataset: ClassyDataset, ignored: int) -> bool:
    """Whether the data set says itself which values of its files are ignored."""
    if dataset.color_map is not None:
        return True
    if dataset.label_map is None:
        return False
    labels = dataset.label_map.labels
    return ignored in labels or ignored in labels.values() or not dataset.label_map.others_stay


def _takes_map(dataset: ClassyDataset) -> bool:
    """Whether the config of the data set may say which label a value stands for."""
    return "label_map" in dataset.facts.keys


def _labels(dataset: ClassyDataset) -> Mapping[int, int]:
    """The label of each value that the data set maps; empty where it takes values as they are."""
    return {} if dataset.label_map is None else dataset.label_map.labels


def _without_map(dataset: ClassyDataset, ignored: int) -> str:
    return f"if {ignored} is a class, let {type(dataset).__name__} give its number, by its label_map or in `load`"


def _numbers(summary: DataSummary) -> Pattern:
    """A folder whose masks hold numbers, without a label map."""
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
    if real[0] >= 1 and real[-1] == classes:
        line = _map({value: value - 1 for value in range(1, classes + 1)})
        return Pattern("values_1_to_n", f"{held}: they count from 1", "map each value to the one before", line)
    more = _more_values(summary, real, held)
    if more is not None:
        return more
    if len(found) == classes + 1 == len(real) + 1 and found != real and _one_is_between(summary, real):
        between, last = found[-2:]
        return Pattern(
            "values_spread",
            f"the masks hold {_short(found)}, the classes are 0 to {classes - 1}: one value more than classes",
            f"map {last} to the last class, if {between}, which is rarer, stands for pixels without a label; or give "
            f"each value a class: {classes_line(with_more_classes(summary.dataset.classes, len(found)))}",
            _map({value: i for i, value in enumerate(real[:-1]) if value != i} | {between: ignored, last: classes - 1}),
        )
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
        _map(_guessed_labels(summary)),
    )


def _more_values(summary: DataSummary, real: list[int], held: str) -> Pattern | None:
    """Masks with more values than classes, too often for a mistake: some classes have no name yet."""
    classes, ignored, count = summary.dataset.num_classes, summary.dataset.ignore_index, len(real)
    count_up = real == list(range(count))
    share = summary.strange_masks.count / summary.num_masks
    if count <= classes or share < (STRAY if count_up else COMMON) or ignored in range(count):
        return None
    many = count > 2 * classes + MANY
    line = classes_line(with_more_classes(summary.dataset.classes, count))
    labels = {value: label for label, value in enumerate(real) if value != label}
    mend = f"list {count} classes, in the order of the values, with a name for each"
    if count == classes + 1 and count_up:
        shifted = {0: ignored} | {value: value - 1 for value in range(1, count)}
        mend += f"; or, if 0 is no class, ignore it: {_map(shifted)}"
    else:
        mend += f", or map what is no class to {ignored}, which is ignored"
    return Pattern(
        "values_0_to_n" if count_up else "values_spread",
        f"{held}: {'one value' if count == classes + 1 else f'{count - classes} values'} more than classes",
        mend,
        "" if many else f"{line}\n{_map(labels)}" if labels else line,
    )


def _one_is_between(summary: DataSummary, real: list[int]) -> bool:
    """Whether the largest value except the ignored one has fewer pixels: an uncertain grey between black and white."""
    return real[-1] in summary.strange and summary.pixels[real[-1]] < summary.pixels[summary.dataset.ignore_index]


def _guessed_labels(summary: DataSummary) -> dict[int, int]:
    """For each strange value a class that has no value yet, else the ignored label; mistakes get the ignored label."""
    dataset, ignored = summary.dataset, summary.dataset.ignore_index
    mapped = _labels(dataset).values() if dataset.color_map is None else dataset.color_map.labels.values()
    free = [label for label in range(dataset.num_classes) if not summary.pixels[label] and label not in mapped]
    if summary.strange_masks.count < COMMON * summary.num_masks:
        free = []
    values = sorted(summary.strange)[:MANY] if free else list(summary.strange)[:MANY]
    return {value: free.pop(0) if free else ignored for value in values}


def _unmapped_values(summary: DataSummary, labels: Mapping[int, int]) -> Pattern:
    """A folder with a label map that does not name a value."""
    return Pattern(
        "unknown_values",
        f"the masks hold {_short(sorted(summary.strange))}, which label_map does not name and no class is",
        f"name them in label_map, too ({summary.dataset.ignore_index} to ignore a value), or mend the masks",
        _map({**labels, **_guessed_labels(summary)}),
    )


def _unmapped_colors(summary: DataSummary) -> Pattern:
    guessed = _guessed_labels(summary)
    shown = ", ".join(f'"{summary.value_text(value)}": {label}' for value, label in guessed.items())
    return Pattern(
        "unknown_colors",
        f"the masks hold {len(summary.strange)} colours that color_map does not name",
        f"add them to color_map with their class, in quotes, such as {shown} "
        f"({summary.dataset.ignore_index} to ignore one); many colours at borders come from "
        "smoothing: write such masks again without it",
    )


def _foreign(summary: DataSummary) -> Pattern:
    """A public data set: it alone says what its values mean."""
    name = type(summary.dataset).__name__
    values = _short(sorted(summary.strange))
    return Pattern(
        "unknown_values",
        f"the masks hold {values}, which {name} does not have",
        f"take the masks as {name} publishes them (docs/datasets.md tells their values), or read these with `folder`",
    )


def _no_classes(summary: DataSummary) -> Pattern:
    """Samples with one class each, where some classes are not known."""
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
    """The values as ranges; of many ranges, the first and the last."""
    text = spans(values)
    parts = text.split(", ")
    return text if len(parts) <= MANY else f"{', '.join(parts[:4])}, ..., {parts[-1]} ({len(values)} values)"
