"""Maps values in mask files to labels. A data set declares it; it is applied once, and unknown values are named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from classyseg.datasets.classy_dataset import Color, color_of, first_of
from classyseg.datasets.files.lists import normal
from classyseg.errors import ConfigError, DataError

Array = npt.NDArray[Any]
UNKNOWN = np.iinfo(np.int64).min
BACKGROUNDS = {"background", "bg", "back", "void", "none", "other", "others", "unlabeled", "unlabelled"}
"""What the class of everything else is called."""


class UnknownValueError(DataError):
    """A mask holds values that no label stands for; `pixels` counts those of each value."""

    def __init__(self, message: str, pixels: Mapping[int, int], file: object) -> None:
        super().__init__(message, file=str(file))
        self.pixels = dict(pixels)


class LabelMap:
    """Which label each value of a mask file stands for, applied to all values at once.

    A value that `labels` does not name is an error; with `others_stay` it stays as it is. `text` writes a value in
    messages.
    """

    def __init__(
        self, labels: Mapping[int, int], *, others_stay: bool = False, text: Callable[[int], str] | None = None
    ) -> None:
        self.labels = dict(labels)
        self.others_stay = others_stay
        self.text = text
        self._values = np.array(sorted(self.labels), dtype=np.int64)
        self._labels = np.array([self.labels[value] for value in sorted(self.labels)], dtype=np.int64)
        self._tables: dict[np.dtype[Any], Array] = {}
        every_byte = self._look_up(np.arange(256))
        known = every_byte[every_byte != UNKNOWN]
        self._of_bytes = bool(np.isin(known, np.arange(256)).all())
        unused = np.setdiff1d(np.arange(256), known)
        self._unknown_byte = int(unused[0]) if known.size < 256 else None
        self._bytes = np.where(every_byte == UNKNOWN, self._unknown_byte or 0, every_byte).astype(np.uint8).tobytes()

    def __call__(self, values: Array, place: object) -> Tensor:
        """The labels of a mask's `values` (H, W), any integers; `place` names the mask in messages.

        They are uint8 if the values are and all their labels fit, else int64. Raises: `DataError` for values that the
        map does not know.
        """
        if values.dtype == np.uint8 and self._of_bytes:
            mapped = bytearray(np.ascontiguousarray(values))
            if self._bytes != bytes(range(256)):
                mapped = mapped.translate(self._bytes)  # takes a fifth of the time of numpy's indexing
            labels = np.frombuffer(mapped, np.uint8).reshape(values.shape)
            if self._unknown_byte is not None:
                self._check(values, labels == self._unknown_byte, place)
            return torch.from_numpy(labels)
        if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
            if values.dtype not in self._tables:
                every_value = np.arange(np.iinfo(values.dtype).max + 1)
                self._tables[values.dtype] = self._look_up(every_value)
            labels = self._tables[values.dtype][values]
        else:
            labels = self._look_up(values)
        if not self.others_stay:
            self._check(values, labels == UNKNOWN, place)
        return torch.from_numpy(labels)

    def _look_up(self, values: Array) -> Array:
        values = values.astype(np.int64)
        others = values if self.others_stay else np.full_like(values, UNKNOWN)
        if not len(self._values):
            return others
        places = np.searchsorted(self._values, values).clip(max=len(self._values) - 1)
        return np.where(self._values[places] == values, self._labels[places], others)

    def _check(self, values: Array, unknown: npt.NDArray[np.bool_], place: object) -> None:
        if not unknown.any():
            return
        found, counts = (part.tolist() for part in np.unique(values[unknown], return_counts=True))
        shown = first_of(found, self.text or str)
        known = ", ".join(map(self.text, self.labels)) if self.text else spans(self.labels)
        message = (
            f"its mask holds the values {shown} ({sum(counts)} pixels), which the data set's label map does "
            f"not know; known: {known}"
        )
        raise UnknownValueError(message, dict(zip(found, counts, strict=True)), place)


def spans(numbers: Iterable[int]) -> str:
    """`{0, 1, 2, 7}` as `0 to 2, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)


def labels_of(classes: Sequence[str]) -> dict[str, int]:
    """The label of each name.

    Raises: `ConfigError` for an empty one, and for one that comes twice, also in another form of Unicode.
    """
    if not all(name.strip() for name in classes):
        raise ConfigError("classes", f"found an empty name in {list(classes)}")
    if len({*map(normal, classes)}) != len(classes):
        raise ConfigError("classes", f"found one name twice in {list(classes)}")
    return {name: i for i, name in enumerate(classes)}


def with_more_classes(classes: Sequence[str], count: int) -> list[str]:
    """`classes` with names added up to `count`: `class3` and so on, or a background in front if only that is missing.

    If the only class is the background, `object` is added after it.
    """
    names = list(classes)
    if count == len(names) + 1 and not BACKGROUNDS & {name.lower() for name in names}:
        return ["background", *names]
    if len(names) == 1:
        names.append("object")
    return names + [f"class{label}" for label in range(len(names), count)]


def classes_line(classes: Sequence[str]) -> str:
    """The key `classes` as a line of a config."""
    plain = re.compile(r"(?!(?i:yes|no|on|off|true|false|null|y|n)$)[A-Za-z_][\w -]*(?<! )")
    shown = (name if plain.fullmatch(name) else json.dumps(name, ensure_ascii=False) for name in classes)
    return f"classes: [{', '.join(shown)}]"


def label_table(name: str) -> tuple[tuple[int, ...], tuple[str, ...], tuple[Color, ...]]:
    """The values in files, the names and the colours of a data set's classes; no colours if it has none of its own.

    They lie in `labels/NAME.json`, one row a class: value, name, colour as RRGGBB.
    """
    rows = json.loads((Path(__file__).parent / "labels" / f"{name}.json").read_text(encoding="utf-8"))
    values, names, *colors = zip(*rows, strict=True)
    return values, names, tuple(color_of(text) for text in colors[0]) if colors else ()


def color_text(value: int) -> str:
    """A colour's number, as in `files.read_colors`, as `#804080`."""
    return f"#{value:06x}"
