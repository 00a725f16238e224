"""The small records that every floor passes around: a block, a sample, the clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from classyseg.console import shown

Phase = Literal["train", "val", "test"]
BestIs = Literal["largest", "smallest"]
"""Which value of a number is best: of an accuracy the largest, of a loss the smallest."""

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255 each."""


def default_color(index: int) -> Color:
    """The colour of a class in the palette of Pascal VOC: the bits of the index, spread over the channels."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return color[0], color[1], color[2]


class BlockInfo(NamedTuple):
    """A named output of a backbone.

    `channels` is the size of dimension 1 of its feature map (N, channels, H / stride, W / stride). A block of vectors
    (N, count, channels), such as a transformer's queries, has the stride 0.
    """

    name: str
    channels: int
    stride: int


LOGITS = "logits"
"""A head's own name of its logits."""


def output_name(head: str, output: str) -> str:
    """The name in what a model gives: `HEAD` for the head's logits, `HEAD.OUTPUT` for any other output of its own."""
    return head if output == LOGITS else f"{head}.{output}"


def outputs_by_head(outputs: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What a model gives, by head and then by the head's own names."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, output in outputs.items():
        head, _, own = name.partition(".")
        found.setdefault(head, {})[own or LOGITS] = output
    return found


def outputs_of(outputs: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """What one head gave, by its own names, of what a model gives. Empty for a head that is not in it."""
    return outputs_by_head(outputs).get(head, {})


class PositionGrid(NamedTuple):
    """What learned position embeddings (1, num_extra + rows x columns, C) are for: a grid, and tokens before it."""

    rows: int
    columns: int
    num_extra: int = 0


@dataclass(frozen=True)
class Sample:
    """An image, or a clip of frames, with its label; or a batch of them.

    `image`: (C, H, W), or a clip (C, T, H, W); in a batch (N, ...); uint8 in 0..255, uint16 in 0..65535 from files of
    16 bits, or floating point: from a data set of `bits: 32`, or when a transform normalised it.
    `target`: a mask (H, W) or (N, H, W) of class indices, uint8 or int64, or shares of the classes in floating point,
    as mix-up makes them: (num_classes, H, W) or (N, num_classes, H, W). Of whole images and clips, without H and W.
    Compute with bytes after `.long()` alone: torch wraps what is no byte around. `name` is the file (or the number)
    the sample comes from, used in messages; a batch holds a tuple of them.
    """

    image: Tensor
    target: Tensor
    name: str | tuple[str, ...] = ""

    def replace(self, *, image: Tensor | None = None, target: Tensor | None = None) -> Self:
        return replace(
            self, image=self.image if image is None else image, target=self.target if target is None else target
        )

    def chunk(self, num_parts: int) -> list[Self]:
        """A batch in parts of one size, in its order."""
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
        """The sample on `device`; targets, which travel as bytes where all labels of their data set are, become int64.

        Shares of classes stay as they are.
        """
        image = self.image.to(device, non_blocking=True)
        if channels_last and image.dim() == 4:
            image = image.contiguous(memory_format=torch.channels_last)
        target = self.target.to(device, non_blocking=True)
        return replace(self, image=image, target=target if target.is_floating_point() else target.long())

    def pin_memory(self) -> Self:
        return replace(self, image=self.image.pin_memory(), target=self.target.pin_memory())


@dataclass(frozen=True)
class RunLength:
    """How long a run trains, in epochs and in steps; None where it is not known, as before a data set is opened."""

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


@dataclass
class Progress:
    """The only clock of a run, and all that a checkpoint needs to know about where it was.

    `epoch` counts from 0; `step` counts optimizer steps of the whole run; `step_in_phase` counts the batches that the
    current phase has finished.
    """

    epoch: int = 0
    phase: Phase = "train"
    step: int = 0
    step_in_phase: int = 0
