"""A data set whose samples of rare classes come several times in an epoch."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from classyseg import distributed
from classyseg.console import MAX_NAME, printable
from classyseg.datasets.build import NOT_READ, build_dataset
from classyseg.datasets.class_counts import Counts, class_counts
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.composed import Composed
from classyseg.datasets.facts import DataFacts, Part
from classyseg.datasets.files.pairs import faults_within
from classyseg.errors import ConfigError, within
from classyseg.registry import DATASETS, ComponentConfig, DatasetConfig, TransformConfig
from classyseg.rng import generator_for, randint, uniform
from classyseg.structures import Sample

log = logging.getLogger(__name__)

DRAW = -3
"""The last integer of the generator that draws which samples come once more; -1 is the permutation's, -2 that of
replacements."""
MAX_TOLD = 5

Factors = npt.NDArray[np.float64]


def repeat_factors(
    counts: Counts, threshold: float, *, by: Literal["images", "pixels"] = "images", min_pixels: int = 1
) -> tuple[Factors, Factors]:
    """How often each sample comes in an epoch, (samples,), and the factor of each class, (classes,), from `counts`.

    A class with the frequency f has the factor max(1, sqrt(threshold / f)), a sample the largest of its classes.
    `counts` (samples, classes) are pixels. A class is in a sample that has at least `min_pixels` of it.
    """
    present = counts >= max(1, min_pixels)
    occurrences = present.sum(0) if by == "images" else np.where(present, counts, 0).sum(0)
    total = len(counts) if by == "images" else max(1, int(counts.sum()))
    factors = np.ones(counts.shape[1])
    found = occurrences > 0
    factors[found] = np.maximum(1.0, np.sqrt(threshold * total / occurrences[found]))
    return np.where(present, factors, 1.0).max(axis=1, initial=1.0), factors


@DATASETS.register("repeat_factor")
class RepeatFactor(Composed):
    """The samples of `dataset`, those with rare classes several times in an epoch: LVIS's repeat factors.

    A class that the share f of all images has gets the factor max(1, sqrt(`threshold` / f)), and an image the largest
    factor of its classes. An image with the factor 2.3 comes twice in every epoch, and once more in 3 of 10 epochs,
    drawn by (seed, epoch). An epoch has a fixed number of samples, the sum of all factors rounded up. So processes,
    resuming, accumulation and `num_steps` are as with any data set. Only for `train`.

    The images are counted when the data set is built, before transforms. The counts are exact; they are kept in the
    user's cache folder (`$CLASSYSEG_CACHE`, else `~/.cache/classyseg`) until a file changes. Each repetition of an
    image is augmented in its own way.

    ```yaml
    dataset:
      train:
        name: repeat_factor
        threshold: 0.5
        dataset:
          name: synthetic_shapes
          split: train
          transforms: [{name: random_scale_crop, size: [64, 64]}]
    ```

    Source: Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019.

    Args:
        dataset: The data set.
        threshold: Classes with a smaller frequency are repeated; 0.001 for LVIS's 1203 classes, 0.2 to 0.5 where there
            are ten or twenty.
        by: What the frequency of a class is the share of: of all `images` that have it, as for LVIS, or of all labelled
            `pixels`, for classes that are in most images, but small.
        min_pixels: An image has a class if so many of its pixels do; 3000 in DAFormer's rare class sampling.
        max_factor: No image comes more often. null: no limit.
        transforms: Transforms, after those of the data set within.
    """

    def __init__(
        self,
        *,
        dataset: DatasetConfig,
        threshold: Annotated[float, Field(gt=0, le=1)],
        by: Literal["images", "pixels"] = "images",
        min_pixels: Annotated[int, Field(ge=1)] = 1,
        max_factor: Annotated[float, Field(ge=1, le=1000)] | None = None,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("dataset"), faults_within("dataset"):
            base = build_dataset(dataset)
        if not len(base):
            raise ConfigError("dataset", "has no samples")
        settings = dataset.resolved() if isinstance(dataset, ComponentConfig) else None
        if settings is not None:
            settings = {key: value for key, value in settings.items() if key not in NOT_READ}
        counts = class_counts(base, settings)
        factors, of_classes = repeat_factors(counts, threshold, by=by, min_pixels=min_pixels)
        self.factors = factors if max_factor is None else np.minimum(factors, max_factor)
        """How often each sample of `dataset` comes in an epoch, in the mean over epochs."""
        whole = np.floor(self.factors).astype(np.int64)
        self._samples = np.repeat(np.arange(len(base)), whole)
        self._repetitions = np.concatenate([np.arange(count) for count in whole])
        self._shares, self._next = self.factors - whole, whole
        self._num_drawn = math.ceil(self._shares.sum() - 1e-9)
        self._drawn: tuple[tuple[int, int], npt.NDArray[np.int64]] | None = None
        self._num_parts = int(whole.max()) + (2 if self._num_drawn else 0)
        super().__init__([base, *(_again(base) for _ in range(1, self._num_parts))], transforms)
        self._tell(of_classes)

    def _tell(self, of_classes: Factors) -> None:
        if not distributed.is_primary():
            return
        rare = [i for i in np.argsort(-of_classes, kind="stable").tolist() if of_classes[i] > 1][:MAX_TOLD]
        named = ", ".join(f"{printable(self.classes[i], MAX_NAME)} {of_classes[i]:.2f}" for i in rare)
        log.info(
            "repeat_factor: an epoch has %d samples, of %d; the factors of the rarest classes: %s",
            len(self),
            len(self.parts[0]),
            named or "1, for all",
        )

    @classmethod
    def facts_of(cls, config: Any) -> DataFacts:
        return replace(super().facts_of(config), repeats_samples=True)

    @property
    def facts(self) -> DataFacts:
        return replace(super().facts, repeats_samples=True)

    @classmethod
    def parts_in(cls, config: Any) -> Mapping[str, Any]:
        return {"dataset": config.dataset}

    @classmethod
    def check_parts(cls, parts: Mapping[str, Part]) -> None:
        super().check_parts(parts)
        for place, part in parts.items():
            if (part.facts.group_size or 1) > 1:
                raise ConfigError(
                    place,
                    f"has groups of {part.facts.group_size} samples that stay together; accepted are data sets of "
                    "single samples",
                )
            if part.facts.has_masks is False:
                raise ConfigError(place, "has images alone, without classes to count")

    def __len__(self) -> int:
        return len(self._samples) + self._num_drawn

    def part_places(self) -> Sequence[str]:
        return ["dataset"] * self._num_parts

    def locate(self, index: int) -> tuple[int, int]:
        return self.located(index, epoch=0)

    def located(self, index: int, epoch: int) -> tuple[int, int]:
        """The numbers of the repetition and of the sample there in `epoch`, whose last ones are drawn for it."""
        if index < len(self._samples):
            return int(self._repetitions[index]), int(self._samples[index])
        repetition, sample = self._drawn_in(epoch)[index - len(self._samples)].tolist()
        return repetition, sample

    def _drawn_in(self, epoch: int) -> npt.NDArray[np.int64]:
        """(num_drawn, 2): the samples that come once more in `epoch`, each after the number of its repetition.

        A sample's share is the probability that it comes. The samples lie in a random order along a line, each as long
        as its share; every whole number, moved by one random fraction, hits a sample. The line may end before the last
        one: then that place goes to any sample, so that all epochs have one length.
        """
        key = self.seed, epoch
        if self._drawn is None or self._drawn[0] != key:
            generator = generator_for(self.seed, epoch, DRAW)
            order = torch.randperm(len(self._shares), generator=generator).numpy()
            ends = self._shares[order].cumsum()
            places = uniform(generator, 0, 1) + np.arange(self._num_drawn)
            hit = order[np.searchsorted(ends, places[places < ends[-1]], side="right")]
            drawn = np.stack([self._next[hit], hit], axis=1)
            if len(drawn) < self._num_drawn:
                any_sample = [self._num_parts - 1, randint(generator, 0, len(order) - 1)]
                drawn = np.concatenate([drawn, [any_sample]])
            self._drawn = key, drawn
        return self._drawn[1]

    def draw(self, index: int, epoch: int) -> Sample:
        part, inner = self.located(index, epoch)
        return self.parts[part].sample(inner, epoch)

    def described(self, index: int) -> str:
        if index < len(self._samples):
            return super().described(index)
        return f"sample {index}, which is drawn anew in each epoch"


def _again(dataset: ClassyDataset) -> ClassyDataset:
    """The same data set, to be augmented with another seed; it shares lists and files with `dataset`."""
    other = copy.copy(dataset)
    if other.parts:
        other.parts = [_again(part) for part in other.parts]
    return other
