"""Which class the labels of annotations stand for, and which object is seen where several overlap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from classyseg.config import unknown
from classyseg.console import MAX_NAME, shown
from classyseg.datasets.annotations.patches import AnnotatedObject, Patch
from classyseg.datasets.files.lists import normal
from classyseg.datasets.label_map import labels_of
from classyseg.errors import ConfigError, DataError

Names = tuple[str, ...]
Classes = Annotated[Names, Field(min_length=1)] | Annotated[dict[str, Names], Field(min_length=1)] | None
"""The type of the key `classes`: names that are labels, too; or labels by class; None: the files tell them."""
Order = Literal["file", "area"] | Names
"""The type of the key `order`."""
BACKGROUND = "background"
MAX_HELD = 2**27
"""So many pixels of objects are held while objects are sorted by their areas; those of more are drawn twice."""


def class_names(classes: Classes, background: str | None) -> Names | None:
    """The names of all classes in the order of their indices; None if only the files tell them."""
    if classes is None:
        return None
    named = tuple(classes)
    return named if background is None or background in named else (background, *named)


def declared_names(config: Any) -> Names | None:
    """The `class_names` of a data set's config; None without a config, too."""
    return class_names(getattr(config, "classes", None), getattr(config, "background", None))


@dataclass(frozen=True)
class ClassLabels:
    """The classes of annotations, and the rules by which objects become a mask.

    `indices` has the class of each label, or `ignore_index`. `rest` is the value of pixels without an object. `order`
    is that of the config.
    """

    classes: Names
    indices: Mapping[str, int]
    rest: int
    ignore_index: int
    order: Order = "file"

    @classmethod
    def of(
        cls,
        classes: Classes,
        background: str | None,
        ignore: Names,
        order: Order,
        ignore_index: int,
        *,
        found: Iterable[str] = (),
    ) -> ClassLabels:
        """What keys of a config say; without `classes`, the labels `found` in the files that `ignore` does not name.

        Raises: `ConfigError` for keys that do not fit each other.
        """
        if classes is None:
            classes = tuple(name for name in found if name not in ignore)
        names = class_names(classes, background) or ()
        labels_of(names)  # it refuses a name that comes twice
        if 0 <= ignore_index < len(names):
            raise ConfigError("ignore_index", f"found {ignore_index}, which is the class {shown(names[ignore_index])}")
        rest = ignore_index if background is None else names.index(background)
        by_class = classes if isinstance(classes, Mapping) else {name: (name,) for name in classes}
        indices = _indices(names, by_class, background, ignore, ignore_index)
        if not isinstance(order, str):
            _check_order(order, names)
        return cls(names, indices, rest, ignore_index, order)

    def index_of(self, label: str) -> int:
        """The class of a label, or `ignore_index`. Raises: `DataError` for a label that no key names."""
        found = self.indices.get(normal(label))
        if found is None:
            known = [*dict.fromkeys(self.indices)]
            raise DataError(
                f"its label is {shown(label, MAX_NAME)}, {unknown('to the data set', label, known)} Name it in "
                "`classes`, or in `ignore`"
            )
        return found

    def with_labels(self, indices: Mapping[str, int]) -> ClassLabels:
        """These rules with more labels, where the config does not name them."""
        return replace(self, indices={**indices, **self.indices})

    def draw(self, objects: Sequence[AnnotatedObject], height: int, width: int) -> npt.NDArray[Any]:
        """The mask (height, width) of objects: each covers those that come before it by `order`.

        Raises: `DataError` that names the object.
        """
        small = len(self.classes) <= 256 and 0 <= self.ignore_index <= 255
        mask = np.full((height, width), self.rest, dtype=np.uint8 if small else np.int64)
        indices = [self._index(each) for each in objects]
        held: dict[int, Patch] = {}
        for i in self._sorted(objects, indices, height, width, held):
            patch = held.pop(i, None) or self._drawn(objects[i], height, width)
            rows, columns = patch.mask.shape
            mask[patch.top : patch.top + rows, patch.left : patch.left + columns][patch.mask] = indices[i]
        return mask

    def _sorted(
        self,
        objects: Sequence[AnnotatedObject],
        indices: Sequence[int],
        height: int,
        width: int,
        held: dict[int, Patch],
    ) -> Sequence[int]:
        """The numbers of the objects, from the lowest one to that on top. `held` takes what was drawn for it."""
        numbers = range(len(objects))
        if self.order == "file":
            return numbers
        if self.order != "area":
            heights = {self.classes.index(name): i for i, name in enumerate(self.order, start=1)}
            heights[self.ignore_index] = len(heights) + 1
            return sorted(numbers, key=lambda i: heights.get(indices[i], 0))
        areas, pixels = [], 0
        for i in numbers:
            patch = self._drawn(objects[i], height, width)
            areas.append(int(np.count_nonzero(patch.mask)))
            pixels += patch.mask.size
            if pixels <= MAX_HELD:
                held[i] = patch
        return sorted(numbers, key=lambda i: -areas[i])

    def _index(self, each: AnnotatedObject) -> int:
        with _naming(each):
            index = self.index_of(each.label)
        return self.ignore_index if each.ignored else index

    def _drawn(self, each: AnnotatedObject, height: int, width: int) -> Patch:
        with _naming(each):
            return each.draw(height, width)


@contextmanager
def _naming(each: AnnotatedObject) -> Iterator[None]:
    """Puts the place of an object before the sentence of a `DataError` from inside."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{each.place}: {error}") from None


def _indices(
    names: Names, by_class: Mapping[str, Names], background: str | None, ignore: Names, ignore_index: int
) -> dict[str, int]:
    """The class of each label, in its composed form. Raises: `ConfigError` for a label that is named twice."""
    indices: dict[str, int] = {}
    owners: dict[str, str] = {}
    for name, labels in by_class.items():
        if not labels and name != background:
            raise ConfigError(("classes", name), "found no label; name those that become this class")
        for label in labels:
            if normal(label) in owners:
                raise ConfigError(
                    "classes", f"the label {shown(label)} stands for two classes: {owners[normal(label)]} and {name}"
                )
            owners[normal(label)] = name
            indices[normal(label)] = names.index(name)
    for label in ignore:
        if normal(label) in owners:
            raise ConfigError("ignore", f"found {shown(label)}, which `classes` has as {owners[normal(label)]}, too")
        indices[normal(label)] = ignore_index
    if background is not None:
        indices.setdefault(normal(background), names.index(background))
    return indices


def _check_order(order: Names, names: Names) -> None:
    """Raises: `ConfigError` for an order of names that are no classes, or come twice."""
    for name in order:
        if name not in names:
            raise ConfigError("order", f"{unknown('class', name, names)} Accepted are also file and area")
        if order.count(name) > 1:
            raise ConfigError("order", f"names {shown(name)} twice")
