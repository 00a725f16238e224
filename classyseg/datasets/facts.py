"""What is known about a data set: from its config before any file is opened, then from the built data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from classyseg.transforms.classy_transform import ClassyTransform


@dataclass(frozen=True)
class DataFacts:
    """The facts of a data set that other parts of a task need. None: only its files, or the built data set, tell.

    `channels` and `bits` are those of its stored images, `size` the height and width of its samples after the
    transforms. `group_size` consecutive samples belong together (the clips of a video). `whole_images` says that a
    sample has a class, not a mask, `multi_label` that it, or each pixel of a mask (`has_flags`), has a flag for each
    class; `gives_clips` says that its images are clips (C, T, H, W). `repeats_samples` says that
    a sample may come several times in an epoch: such a data set is to train on. `keys` are those of the data
    set's own config, for messages that name one.
    """

    classes: tuple[str, ...] | None = None
    ignore_index: int | None = None
    channels: int | None = None
    bits: int | None = None
    size: tuple[int, int] | None = None
    group_size: int | None = None
    num_samples: int | None = None
    whole_images: bool = False
    multi_label: bool = False
    gives_clips: bool = False
    has_masks: bool | None = None
    repeats_samples: bool = False
    keys: frozenset[str] = frozenset()

    @property
    def in_own_unit(self) -> bool:
        """Whether images are numbers in a unit of their own, which no usual mean and deviation fit."""
        return self.bits == 32

    @property
    def has_flags(self) -> bool:
        """Whether masks hold a flag of each class, (num_classes, H, W), in place of one class of each pixel."""
        return self.multi_label and not self.whole_images

    def after(self, transforms: Iterable[ClassyTransform]) -> DataFacts:
        """These facts once `transforms` have changed the size of the samples."""
        size = self.size
        for transform in transforms:
            size = transform.size_after(size)
        return replace(self, size=size)


def joined_facts(facts: Sequence[DataFacts]) -> DataFacts:
    """The facts of data sets as one: those of the first, and the size of the samples if all have the same."""
    sizes = {each.size for each in facts}
    repeats = any(each.repeats_samples for each in facts)
    return replace(facts[0], size=sizes.pop() if len(sizes) == 1 else None, repeats_samples=repeats)


class Part(Protocol):
    """A data set as other parts of a task see it: a built one, or what its config tells."""

    @property
    def facts(self) -> DataFacts: ...
    @property
    def transforms(self) -> Sequence[ClassyTransform]: ...
    @property
    def parts(self) -> Sequence[Part]: ...
    @property
    def on_bad_sample(self) -> str: ...
    @property
    def max_bad_samples(self) -> float: ...


@dataclass(frozen=True)
class Described:
    """What the config of a data set tells, before any file is opened."""

    facts: DataFacts
    transforms: Sequence[ClassyTransform] = ()
    parts: Sequence[Part] = ()
    on_bad_sample: str = "error"
    max_bad_samples: float = 0.01


def told(config: Any, key: str, kind: type) -> Any:
    """The value of `key` in a config, if it is of the type `kind`; else None."""
    found = getattr(config, key, None)
    return found if isinstance(found, kind) and not isinstance(found, bool) else None
