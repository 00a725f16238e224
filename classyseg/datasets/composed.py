"""Data sets made of others: several as one, and a part of one."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain, pairwise
from typing import Annotated, Any

import torch
from pydantic import Field

from classyseg.config import MAX_SEED
from classyseg.console import MAX_NAME, shown
from classyseg.datasets.build import build_dataset, build_datasets, check_same_unit
from classyseg.datasets.classy_dataset import ClassyDataset, keys_of
from classyseg.datasets.facts import DataFacts, Part, joined_facts
from classyseg.datasets.files.pairs import faults_within
from classyseg.errors import ConfigError, within
from classyseg.registry import DATASETS, DatasetConfig, TransformConfig
from classyseg.rng import derived_seed, generator_for
from classyseg.structures import Sample
from classyseg.transforms import ClassyTransform, Normalize, PairTransform
from classyseg.transforms.classy_transform import apply_transforms

KEYS_OF_THE_WHOLE = ("on_bad_sample", "max_bad_samples")


class Composed(ClassyDataset):
    """Samples of other data sets, transformed by these, and then by `transforms`.

    `parts` are the data sets; `part_places()` tells their places in the config.
    """

    def __init__(self, parts: Sequence[ClassyDataset], transforms: Sequence[Any]) -> None:
        first = parts[0]
        self.classes, self.palette, self.ignore_index = first.classes, first.palette, first.ignore_index
        self.submission_values, self.group_size = first.submission_values, first.group_size
        self.whole_images, self.has_masks, self.bits = first.whole_images, first.has_masks, first.bits
        self.channels, self.gives_clips, self.multi_label = first.channels, first.gives_clips, first.multi_label
        self.parts = list(parts)
        self.seed = 0
        self.check_parts(dict(zip(self.part_places(), parts, strict=True)))
        super().__init__(transforms)

    @classmethod
    def check_parts(cls, parts: Mapping[str, Part]) -> None:
        for place, part in parts.items():
            for key in KEYS_OF_THE_WHOLE:
                found, default = getattr(part, key), getattr(ClassyDataset, key)
                if found != default:
                    raise ConfigError(
                        f"{place}.{key}",
                        f"found {found!r}; samples are counted where all of them are: put it into the "
                        "data set around this one",
                    )
            for step in part.transforms:
                is_pair = isinstance(step, PairTransform) and step.gives_soft_targets(part.facts.whole_images)
                if isinstance(step, Normalize) or is_pair:
                    raise ConfigError(
                        "transforms",
                        f"found {type(step).__name__} in a data set within this one; put it here, for all of them",
                    )

    @property
    def facts(self) -> DataFacts:
        facts = joined_facts([part.facts for part in self.parts])
        return replace(facts, num_samples=len(self), keys=keys_of(type(self))).after(self.transforms)

    @property
    def seed(self) -> int:
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = seed
        for i, part in enumerate(self.parts):
            part.seed = derived_seed(seed, i)  # a data set that comes twice must be augmented in two ways

    @property
    def for_training(self) -> bool:
        return self.parts[0].for_training

    @for_training.setter
    def for_training(self, for_training: bool) -> None:
        for part in self.parts:
            part.for_training = for_training

    @classmethod
    @abstractmethod
    def parts_in(cls, config: Any) -> Mapping[str, Any]: ...

    @abstractmethod
    def part_places(self) -> Sequence[str]: ...

    @abstractmethod
    def locate(self, index: int) -> tuple[int, int]: ...

    def names_of(self, index: int) -> tuple[str, str]:
        part, inner = self.locate(index)
        return self.parts[part].names_of(inner)

    def load(self, index: int) -> Sample:
        part, inner = self.locate(index)
        return self.parts[part].load(inner)

    def load_image(self, index: int) -> torch.Tensor:
        part, inner = self.locate(index)
        return self.parts[part].load_image(inner)

    def load_target(self, index: int) -> torch.Tensor:
        part, inner = self.locate(index)
        return self.parts[part].load_target(inner)

    def described(self, index: int) -> str:
        part, inner = self.locate(index)
        return f"sample {index}: {self.parts[part].described(inner)} of {self.part_places()[part]}"

    def draw(self, index: int, epoch: int) -> Sample:
        part, inner = self.locate(index)
        return self.parts[part].sample(inner, epoch)

    def without_label(self, index: int, epoch: int) -> Sample:
        """As the part gives it, after its transforms: the borders that these add have the ignored label."""
        part, inner = self.locate(index)
        dataset = self.parts[part]
        return apply_transforms(
            dataset.transforms,
            lambda i: dataset.without_label(i, epoch),
            inner,
            generator_for(dataset.seed, epoch, inner),
            num_samples=len(dataset),
            num_classes=dataset.num_classes,
        )

    def _check(self, sample: Sample) -> None:
        """Nothing: the part has checked the sample before it transformed it."""


@DATASETS.register("concat")
class Concat(Composed):
    """All samples of `datasets`, which have the same classes, one data set after the other.

    A data set that is named twice counts twice, and is augmented in two ways.

    They have the same ignored label, too.

    Args:
        datasets: A list of data sets. One that is named twice counts twice.
        transforms: Transforms, after those of the data sets within.
    """

    def __init__(
        self,
        *,
        datasets: Annotated[tuple[DatasetConfig, ...], Field(min_length=1)],
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        parts: list[ClassyDataset] = build_datasets("datasets", datasets)
        self.ends = list(accumulate(map(len, parts)))
        super().__init__(parts, transforms)
        for i, part in enumerate(parts):
            check_alike(f"datasets[{i}]", "submission_values", part.submission_values, parts[0].submission_values)

    @classmethod
    def parts_in(cls, config: Any) -> Mapping[str, Any]:
        return {f"datasets[{i}]": part for i, part in enumerate(config.datasets)}

    @classmethod
    def check_parts(cls, parts: Mapping[str, Part]) -> None:
        check_same_unit({place: part.facts for place, part in parts.items()})
        (_, first), *others = parts.items()
        for place, part in others:
            for what in (
                "classes",
                "ignore_index",
                "group_size",
                "whole_images",
                "multi_label",
                "gives_clips",
                "has_masks",
                "channels",
            ):
                check_alike(place, what, getattr(part.facts, what), getattr(first.facts, what))
        super().check_parts(parts)

    def __len__(self) -> int:
        return self.ends[-1]

    def unit_ends(self) -> Sequence[int]:
        starts = [0, *self.ends]
        return [start + end for start, part in zip(starts, self.parts, strict=False) for end in part.unit_ends()]

    def part_places(self) -> Sequence[str]:
        return [f"datasets[{i}]" for i in range(len(self.parts))]

    def locate(self, index: int) -> tuple[int, int]:
        i = bisect_right(self.ends, index)
        return i, index - (self.ends[i] - len(self.parts[i]))


@DATASETS.register("subset")
class Subset(Composed):
    """A part of `dataset`, in its order: the `first` so many, `every` so many-th, or a random `share` of them.

    With `rest`, all others: what a held-out part leaves for training. A larger share contains a smaller one with the
    same `share_seed`. All clips of a video count as one, and stay together.

    Args:
        dataset: The data set.
        first: The first so many.
        every: Every so many-th, beginning with the first.
        share: A random share, above 0 and up to 1.
        share_seed: Another seed, another share.
        rest: All the others instead, such as what a held-out part leaves for training.
        transforms: Transforms, after those of the data sets within.
    """

    def __init__(
        self,
        *,
        dataset: DatasetConfig,
        first: Annotated[int, Field(ge=1)] | None = None,
        every: Annotated[int, Field(ge=1)] | None = None,
        share: Annotated[float, Field(gt=0, le=1)] | None = None,
        share_seed: Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED)] = 0,
        rest: bool = False,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        if [first, every, share].count(None) != 2:
            raise ConfigError("give one of 'first', 'every' and 'share'")
        with within("dataset"), faults_within("dataset"):
            whole = build_dataset(dataset)
        super().__init__([whole], transforms)
        units = [range(*ends) for ends in pairwise([0, *whole.unit_ends()])]
        count = len(units)
        if first is not None and first > count:
            raise ConfigError("first", f"found {first}, but the data set has only {count}")
        if share is not None:
            order = torch.randperm(count, generator=generator_for(share_seed)).tolist()
            taken = set(order[: max(1, round(share * count))])
        else:
            taken = set(range(0, count, every) if every is not None else range(first or 0))
        self.units = [unit for i, unit in enumerate(units) if (i in taken) != rest]
        if not self.units:
            raise ConfigError("rest", "nothing is left; take a smaller part")
        self.indices = list(chain.from_iterable(self.units))

    @classmethod
    def parts_in(cls, config: Any) -> Mapping[str, Any]:
        return {"dataset": config.dataset}

    @classmethod
    def check_parts(cls, parts: Mapping[str, Part]) -> None:
        super().check_parts(parts)
        for step in (step for part in parts.values() for step in _transforms_within(part)):
            if isinstance(step, PairTransform):
                raise ConfigError(
                    "transforms",
                    f"found {type(step).__name__} in the data set within this one, where it takes from "
                    "samples that this part leaves out, too; put it here",
                )

    def __len__(self) -> int:
        return len(self.indices)

    def unit_ends(self) -> Sequence[int]:
        return list(accumulate(map(len, self.units)))

    def part_places(self) -> Sequence[str]:
        return ["dataset"]

    def locate(self, index: int) -> tuple[int, int]:
        return 0, self.indices[index]


def check_alike(place: str, what: str, found: object, wanted: object) -> None:
    """Raises: `ConfigError` if a data set differs from the first one in `what`; None means not known."""
    if found != wanted and None not in (found, wanted):
        raise ConfigError(
            place, f"its {what} {shown(found, MAX_NAME)} are not those of datasets[0], {shown(wanted, MAX_NAME)}"
        )


def _transforms_within(part: Part) -> Iterator[ClassyTransform]:
    """The transforms of a data set, and of all data sets within it."""
    yield from part.transforms
    for inner in part.parts:
        yield from _transforms_within(inner)
