"""Sums over the samples of a data set: labels, sizes, colours, and counts of what is wrong."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.label_map import color_text
from classyseg.doctor.inspection import Facts

MAX_VALUES = 1000
"""How many unknown values are counted separately; one broken 16-bit mask may hold 65,536."""


@dataclass
class Tally:
    """How often something was found, and the first places, as (file, what was found in it)."""

    count: int = 0
    places: list[tuple[str, str]] = field(default_factory=list)

    def add(self, file: str, text: str, limit: int) -> None:
        self.count += 1
        if len(self.places) < limit:
            self.places.append((file, text))


class DataSummary:
    """The sums of one data set. `add` takes the facts of a sample; memory does not grow with the number of samples.

    `name` is the data set's place in the config. `pixels` counts the pixels of each label, `masks` the masks that hold
    it, `sharing_pixels` all pixels of those masks. Values that are no class are in `strange`, by value, with their
    pixels. `masks_with_ignored` hold ignored pixels. With two classes, `masks_without_second` hold only the first class
    and ignored pixels. Where samples have one class (`whole_images`), `pixels` counts samples, and `videos` counts
    their videos. Where pixels have several classes, `known` counts the flags of each class that are not ignored,
    `overlap` the pixels of several classes, `without` those of none.
    """

    def __init__(self, name: str, dataset: ClassyDataset, *, max_files: int) -> None:
        self.name, self.dataset, self.max_files = name, dataset, max_files
        self.whole_images = dataset.whole_images
        self.num_samples = 0
        self.num_sound = 0
        self.num_masks = 0
        self.pixels: Counter[int] = Counter()
        self.masks: Counter[int] = Counter()
        self.sharing_pixels: Counter[int] = Counter()
        self.videos: Counter[int] = Counter()
        self.known: Counter[int] = Counter()
        self.overlap = self.without = self.mask_pixels = 0
        self._video = ""
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.problems: dict[str, Tally] = {}
        self.strange: dict[int, Tally] = {}
        self.strange_masks = Tally()
        self.masks_that_count_up = 0
        self.exif_that_fits: set[str] = set()
        self.masks_with_ignored = Tally()
        self.masks_without_second = Tally()
        self.masks_with_second_and_ignored = 0
        self.colors: Counter[int] = Counter()
        self._area = 0
        self._scale = 255
        self._sums: list[float] = []
        self._squares: list[float] = []

    def add(self, facts: Facts) -> None:
        self.num_samples += 1
        self.num_sound += not facts.problems and not facts.unknown
        for problem in facts.problems:
            self.problems.setdefault(problem.kind, Tally()).add(problem.file, problem.text, self.max_files)
        if facts.exif_that_fits:
            self.exif_that_fits.add(facts.exif_that_fits)
        if facts.size is not None:
            self.sizes[facts.size] += 1
            self._add_colors(facts)
        for color, count in facts.colors.items():
            if color in self.colors or len(self.colors) < MAX_VALUES:
                self.colors[color] += count
        if facts.pixels or facts.unknown or facts.has_flags:
            self._add_labels(facts)
        if facts.video != self._video and facts.pixels:
            self.videos.update(facts.pixels.keys())
            self._video = facts.video

    def _add_colors(self, facts: Facts) -> None:
        if self._sums and (len(self._sums), self._scale) != (len(facts.sums), facts.scale):
            return  # images with different channels or bits have no common mean
        self._scale = facts.scale
        self._area += facts.area
        before = zip(self._sums or [0] * len(facts.sums), facts.sums, strict=True)
        self._sums = [old + new for old, new in before]
        before = zip(self._squares or [0] * len(facts.squares), facts.squares, strict=True)
        self._squares = [old + new for old, new in before]

    def _add_labels(self, facts: Facts) -> None:
        dataset = self.dataset
        self.whole_images |= facts.whole_images
        self.num_masks += 1
        classes = {label: count for label, count in facts.pixels.items() if 0 <= label < dataset.num_classes}
        every_pixel = sum(facts.pixels.values())
        if facts.has_flags:
            self.known.update(dict(enumerate(facts.known)))
            self.overlap += facts.overlap
            self.without += facts.without
            self.mask_pixels += facts.mask_area
        for label, count in facts.pixels.items():
            if label in classes or label == dataset.ignore_index:
                self.pixels[label] += count
                self.masks[label] += 1
                self.sharing_pixels[label] += (
                    facts.known[label] if facts.has_flags and label in classes else every_pixel
                )
        self._add_ignored(facts)
        others = {
            label: n for label, n in facts.pixels.items() if label not in classes and label != dataset.ignore_index
        }
        strange = others | facts.unknown
        if not strange:
            return
        self.masks_that_count_up += facts.counts_up
        shown = ", ".join(map(self.value_text, list(strange)[:5])) + (", ..." if len(strange) > 5 else "")
        pixels = "" if self.whole_images else f" ({sum(strange.values()):,} pixels)"
        self.strange_masks.add(facts.mask, f"{shown}{pixels}", self.max_files)
        for value, count in strange.items():
            if value not in self.strange and len(self.strange) >= MAX_VALUES:
                continue
            if not self._has_colors:  # the number of a colour may also be the number of a class
                self.pixels[value] += count
            self.strange.setdefault(value, Tally()).add(facts.mask, f"{count:,} pixels", self.max_files)

    def _add_ignored(self, facts: Facts) -> None:
        """Of two classes, ignored pixels may stand in place of the second one, or next to it: counted by mask."""
        ignored = self.dataset.ignore_index
        if ignored not in facts.pixels:
            return
        place = facts.mask, f"{facts.pixels[ignored]:,} pixels of {ignored}"
        self.masks_with_ignored.add(*place, self.max_files)
        if self.dataset.num_classes != 2 or facts.has_flags:
            return
        if 1 in facts.pixels:
            self.masks_with_second_and_ignored += 1
        elif 0 in facts.pixels:
            self.masks_without_second.add(*place, self.max_files)

    def value_text(self, value: int) -> str:
        """A value of a mask file as its data set writes it: a number, or a colour."""
        return color_text(value) if self._has_colors else str(value)

    @property
    def _has_colors(self) -> bool:
        """Whether the values in mask files are colours."""
        return self.dataset.color_map is not None

    # -- what the sums say -------------------------------------------------------------------------------------------

    @property
    def all_masks_are_known(self) -> bool:
        """Whether the masks of all samples were read and hold nothing but labels."""
        return self.num_masks == self.num_samples > 0 and not self.strange

    @property
    def counted(self) -> str:
        """What the class table counts: `pixels`, or samples, called `images` or `clips`."""
        return "clips" if self.videos or self.dataset.gives_clips else "images" if self.whole_images else "pixels"

    @property
    def held_classes(self) -> list[int]:
        """The labels of classes that have a pixel."""
        return [label for label in range(self.dataset.num_classes) if self.pixels[label]]

    @property
    def labelled_pixels(self) -> int:
        return sum(self.pixels[label] for label in range(self.dataset.num_classes))

    @property
    def of_several_and_none(self) -> tuple[int, int]:
        """How many pixels have several classes, and how many are known to have none."""
        return self.overlap, self.without

    @property
    def in_own_unit(self) -> bool:
        """Whether mean and deviation are those of the stored numbers, in floating point."""
        return self._scale == 1

    @property
    def mean(self) -> list[float]:
        """The mean of each channel over all pixels, of images scaled to 0..1, or `in_own_unit`."""
        return [total / self._area / self._scale for total in self._sums]

    @property
    def std(self) -> list[float]:
        """The standard deviation of each channel, as `mean`."""
        pairs = zip(self._sums, self._squares, strict=True)
        return [math.sqrt(max(0.0, s / self._area - (t / self._area) ** 2)) / self._scale for t, s in pairs]

    def class_rows(self) -> Iterator[dict[str, Any]]:
        """For each class, and for ignored pixels: how many pixels and masks there are. `share` is of labelled pixels.

        Where samples have one class, the numbers of `images`, or of `clips` and `videos`.
        """
        labelled = max(1, self.labelled_pixels)
        weights = self.positive_weights() if self.dataset.has_flags else self.median_frequency_weights()
        for label, name in enumerate(self.dataset.classes):
            whole = max(1, self.known[label]) if self.dataset.has_flags else labelled
            yield self._row(label, name, self.pixels[label] / whole, weights[label])
        yield self._row(self.dataset.ignore_index, "(no class)" if self.whole_images else "(ignored)", None, None)

    def _row(self, label: int, name: str, share: float | None, weight: float | None) -> dict[str, Any]:
        row = {"label": label, "name": name, self.counted: self.pixels[label], "share": share, "weight": weight}
        if self.counted == "clips":
            return row | {"videos": self.videos[label]}
        return row if self.whole_images else row | {"masks": self.masks[label]}

    def positive_weights(self) -> list[float]:
        """For each class, how many flags are not set for one that is, of flags that are known; 0 for one never set."""
        labels = range(self.dataset.num_classes)
        return [(self.known[i] - self.pixels[i]) / self.pixels[i] if self.pixels[i] else 0.0 for i in labels]

    def median_frequency_weights(self) -> list[float]:
        """The weight of each class: the median of all frequencies by its own; 0 for a class that never occurs.

        A class's frequency is its share of all pixels, also ignored ones, of the images that hold it. Where samples
        have one class, it is the share of samples with a class.

        Source: Eigen, Fergus, "Predicting Depth, Surface Normals and Semantic Labels", ICCV 2015.
        """
        labels = range(self.dataset.num_classes)
        all_images = Counter(dict.fromkeys(labels, self.labelled_pixels))
        sharing_pixels = all_images if self.whole_images else self.sharing_pixels
        frequencies = {label: self.pixels[label] / sharing_pixels[label] for label in labels if self.pixels[label]}
        median = statistics.median(frequencies.values()) if frequencies else 0.0
        return [median / frequencies[label] if label in frequencies else 0.0 for label in labels]

    def size_rows(self, limit: int = 10) -> dict[str, Any]:
        """The smallest, middle and largest width and height (each by itself), and the most frequent sizes."""
        widths, heights = ([size[axis] for size in self.sizes.elements()] for axis in (0, 1))
        if not widths:
            return {}
        middle = [statistics.median_low(values) for values in (widths, heights)]
        return {
            "different": len(self.sizes),
            "smallest": [min(widths), min(heights)],
            "median": middle,
            "largest": [max(widths), max(heights)],
            "most_frequent": [{"size": list(size), "images": count} for size, count in self.sizes.most_common(limit)],
        }
