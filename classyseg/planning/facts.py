"""What the rules of a plan read: facts of the data, of the machine, and what the user asked for."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ProjectFacts:
    """One record of numbers, so that rules need no data.

    `size`, `smallest` and `largest` are heights and widths of the training images: the median of each, and the
    extremes. `shares` are those of the classes in labelled pixels (or images, with `whole_images`), `presence` those of
    the images that hold them, `weights` the median frequency by that of each class. `mean` and `std` are of images
    scaled to 0 to 1, or in their own unit with 32 bits. `looked_at` of the `num_train` images were read for them.
    `memory` is in bytes, of the device that trains. `at_hand` are the backbones whose published weights lie on this
    machine, with the names of these weights.
    """

    classes: tuple[str, ...]
    num_train: int
    num_val: int = 0
    num_test: int = 0
    size: tuple[int, int] = (256, 256)
    smallest: tuple[int, int] = (256, 256)
    largest: tuple[int, int] = (256, 256)
    channels: int = 3
    bits: int = 8
    whole_images: bool = False
    multi_label: bool = False
    shares: tuple[float, ...] = ()
    presence: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    looked_at: int = 0
    minutes: float = 30.0
    cores: int = 2
    memory: int = 8_000_000_000
    device: str = "cpu"
    at_hand: Mapping[str, str] = ()  # type: ignore[assignment]

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def imbalance(self) -> float:
        """How often the most frequent class is, by the rarest one that is there."""
        found = [share for share in self.shares if share > 0]
        return max(found) / min(found) if found else 1.0

    @property
    def rarest(self) -> tuple[str, float]:
        """The class in the fewest images, and their share; of those that are there."""
        found = [(share, name) for name, share in zip(self.classes, self.presence, strict=False) if share > 0]
        share, name = min(found, default=(1.0, ""))
        return name, share

    @property
    def one_size(self) -> bool:
        return self.smallest == self.largest

    @property
    def usual_images(self) -> bool:
        """Whether images are of three channels and 8 bits, as published weights and colour transforms take them."""
        return self.channels == 3 and self.bits == 8


@dataclass(frozen=True)
class Measured:
    """What a short training on this machine took: seconds, and bytes of the device that trains.

    `start` is until the first step, `step` that of one training step with its data, `val` that of one validation image,
    `val_start` that of the first one in addition, `end` that of what comes after the last step apart from measuring.
    """

    batch_size: int
    start: float
    step: float
    val: float
    memory: int
    end: float = 3.0
    val_start: float = 0.0

    @classmethod
    def of(cls, record: Mapping[str, object]) -> Measured:
        return cls(**{key: record[key] for key in FIELDS})  # type: ignore[arg-type]


FIELDS = ("batch_size", "start", "step", "val", "memory", "end", "val_start")


def middle(numbers: list[float]) -> float:
    """The median; 0 of nothing."""
    return statistics.median(numbers) if numbers else 0.0
