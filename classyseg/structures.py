"""Small records that all parts of the package use: a block, a sample, the progress of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from classyseg.console import shown

Phase = Literal["train", "val", "test"]
BestIs = Literal["largest", "smallest"]
"""Which value of a number is best: the largest of an accuracy, the smallest of a loss."""

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255 each."""


def default_color(index: int) -> Color:
    """The colour of a class in the palette of Pascal VOC: the bits of the index, spread over the channels."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return color[0], color[1], color[2]


def default_palette(num_classes: int, *, flags: bool = False) -> tuple[Color, ...]:
    """A colour for each class. With `flags` no class is black, as pixels without a class are shown so."""
    return tuple(default_color(i + flags) for i in range(num_classes))


class BlockInfo(NamedTuple):
    """A named output of a backbone.

    `channels` is the size of dimension 1 of its feature map (N, channels, H / stride, W / stride). A block of vectors
    (N, count, channels), such as a transformer's queries, has the stride 0.
    """

    name: str
    channels: int
    stride: int


LOGITS = "logits"
"""A head's own name for its logits."""


def output_name(head: str, output: str) -> str:
    """The name of a head's output in the outputs of a model: `HEAD` for the logits, `HEAD.OUTPUT` for any other."""
    return head if output == LOGITS else f"{head}.{output}"


def outputs_by_head(outputs: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The outputs of a model, by head and then by the head's own names."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, output in outputs.items():
        head, _, own = name.partition(".")
        found.setdefault(head, {})[own or LOGITS] = output
    return found


def outputs_of(outputs: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """The outputs of one head, by its own names. Empty for a head that the outputs do not have."""
    return outputs_by_head(outputs).get(head, {})


class PositionGrid(NamedTuple):
    """The positions of learned embeddings (1, num_extra + rows x columns, C): extra tokens, then a grid."""

    rows: int
    columns: int
    num_extra: int = 0


@dataclass(frozen=True)
class Sample:
    """An image, or a clip of frames, with its label; or a batch of them.

    `image`: (C, H, W), or a clip (C, T, H, W); in a batch (N, ...). Its values are uint8 in 0..255, uint16 in 0..65535
    from files of 16 bits, or floating point from a data set of `bits: 32` and after a transform normalised it.
    `target`: a mask (H, W) or (N, H, W) of class indices, uint8 or int64, or soft targets in floating point, such as
    mix-up makes: (num_classes, H, W) or (N, num_classes, H, W). Where pixels may have several classes (`multi_label`),
    it holds a flag of each, (num_classes, H, W) integers: 1, 0, or the ignored label. Labels of whole images and clips
    have no H and W. Call `.long()` before computing with uint8 targets, because uint8 arithmetic wraps around. `name`
    is the file (or the number) that the sample comes from, for messages; a batch holds a tuple of them.
    """

    image: Tensor
    target: Tensor
    name: str | tuple[str, ...] = ""

    @property
    def has_flags(self) -> bool:
        """Whether the target holds a flag of each class for each pixel, not one class."""
        return 3 <= self.target.dim() == self.image.dim() and not self.target.is_floating_point()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all samples of a batch, for messages."""
        return (self.name,) if isinstance(self.name, str) else self.name

    def replace(self, *, image: Tensor | None = None, target: Tensor | None = None) -> Self:
        return replace(
            self, image=self.image if image is None else image, target=self.target if target is None else target
        )

    def chunk(self, num_parts: int) -> list[Self]:
        """A batch in parts of equal size, in its order; the last part may be smaller."""
        if num_parts == 1:
            return [self]
        size = -(-len(self.image) // num_parts)
        return [
            replace(
                self, image=self.image[i : i + size], target=self.target[i : i + size], name=self.name[i : i + size]
            )
            for i in range(0, len(self.image), size)
        ]

    def to(self, device: torch.device, *, channels_last: bool = False) -> Self:
        """The sample on `device`, with targets as int64; soft targets stay floating point, flags what they are.

        Targets are copied as uint8 where all labels of the data set fit: that is an eighth of the bytes.
        """
        image = self.image.to(device, non_blocking=True)
        if channels_last and image.dim() == 4:
            image = image.contiguous(memory_format=torch.channels_last)
        target = self.target.to(device, non_blocking=True)
        stays = target.is_floating_point() or self.has_flags
        return replace(self, image=image, target=target if stays else target.long())

    def pin_memory(self) -> Self:
        return replace(self, image=self.image.pin_memory(), target=self.target.pin_memory())


@dataclass(frozen=True)
class LabelMeaning:
    """What the labels of a task's data mean: a name and a colour for each class, and the label that is ignored.

    `multi_label` says that an image, or a pixel where there are masks, may have several classes, with a flag for each.
    """

    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int
    multi_label: bool = False


class PhaseTime(NamedTuple):
    """What a phase has taken so far, in one process: seconds, of these the ones waited for data, and its samples."""

    seconds: float
    waited: float
    samples: int


@dataclass(frozen=True)
class RunLength:
    """How long a run trains, in epochs and in steps; None where it is not known yet."""

    epochs: float | None = None
    steps: int | None = None

    @classmethod
    def require(cls, length: object) -> None:
        """Raises: `TypeError` for anything else, such as a number of epochs."""
        if not isinstance(length, cls):
            raise TypeError(
                f"length: found {shown(length)}; give a run's length, such as "
                "classyseg.structures.RunLength(epochs=10, steps=1000)"
            )


class Depths(NamedTuple):
    """How deep in its model each parameter is: `of[NAME]` from 0, at the image, to `deepest`, that of the heads."""

    of: Mapping[str, int]
    deepest: int


@dataclass
class Progress:
    """The position of a run: its only clock, and all that a checkpoint saves of it.

    `epoch` counts from 0; `step` counts optimizer steps of the whole run; `step_in_phase` counts the batches that the
    current phase has finished.
    """

    epoch: int = 0
    phase: Phase = "train"
    step: int = 0
    step_in_phase: int = 0
