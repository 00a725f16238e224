"""If an image needs more memory than the budget, it is computed in windows, as large as fit."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from classyseg import distributed
from classyseg.inference.classy_protocol import ClassyProtocol, Size, Wanted
from classyseg.inference.memory import BudgetError, remaining_budget, text_of
from classyseg.inference.network import Network

log = logging.getLogger(__name__)

SMALLEST = 128
"""The side of the smallest window if the size of the training images is unknown."""
STEP = 32
"""Sides of windows are multiples of the strides of all blocks, and no finer: many backbones have this stride inside."""


BYTES_OF_IMAGES = 4 + 4
"""For each number of an image: as it is given, in at most 4 bytes, and normalised. Files of 8 bits take less, but a
measurement, whose images are float32, chooses as a prediction does."""


class Choice(NamedTuple):
    """The protocol for an image, and the largest size of its windows; None if the given protocol is unchanged."""

    protocol: ClassyProtocol
    window: Size | None

    @property
    def text(self) -> str:
        """The window and the protocol as JSON, the key by which images are counted."""
        return json.dumps({"size": self.window, "protocol": self.protocol.config()})


@dataclass(frozen=True)
class Budget:
    """The bytes that an image may take in addition to the model; None is no limit.

    With `may_use_windows`, a larger image is computed in windows: the largest that fit, but none smaller than
    `train_size`, the size of the training images. The choice depends only on the sizes of the image and its output, on
    what is wanted, on the budget and on the model, not on other images or the process.
    """

    max_memory: int | None = None
    may_use_windows: bool = False
    train_size: Size | None = None

    @contextmanager
    def chosen(
        self,
        protocol: ClassyProtocol,
        network: Network,
        images: Tensor,
        size: Size,
        wanted: Collection[Wanted],
        in_windows: Counter[str],
    ) -> Iterator[tuple[Choice, int | None]]:
        """The choice for `images`, and the bytes that are left for it. Counts it `in_windows` once it has succeeded.

        Raises: `BudgetError`.
        """
        with remaining_budget(self.max_memory, images.numel() * BYTES_OF_IMAGES) as left:
            choice = self.choice(protocol, network, images.shape, size, wanted, left)
            yield choice, left
        if choice.window is not None:
            in_windows[choice.text] += 1

    def choice(
        self,
        protocol: ClassyProtocol,
        network: Network,
        shape: Sequence[int],
        size: Size,
        wanted: Collection[Wanted],
        left: int | None,
    ) -> Choice:
        """How to compute images of `shape` (N, C, H, W) with `left` bytes. Several at once are never cut into windows.

        Raises: `BudgetError` if even the smallest windows take more.
        """
        unchanged = Choice(protocol, None)
        if left is None or not self.may_use_windows or len(shape) != 4 or shape[0] > 1:
            return unchanged
        if not all(network.gives_maps(item.head) for item in wanted):
            return unchanged  # a class of the whole image cannot be computed from parts
        step = math.lcm(*(block.stride for block in network.model.blocks.values() if block.stride))
        step *= -(-STEP // step)
        smallest = tuple(-(-side // step) * step for side in self.train_size or (SMALLEST, SMALLEST))

        def windows(number: int) -> Choice | None:
            window = (smallest[0] + number * step, smallest[1] + number * step)
            found = protocol.in_windows(window)
            return None if found is None else Choice(found, found.window_size or window)

        def problem(choice: Choice) -> BudgetError | None:
            try:
                choice.protocol.check_budget(network, shape, size, wanted, left)
            except BudgetError as error:
                return error
            return None

        fitting = windows(0)
        if fitting is None or problem(unchanged) is None:
            return unchanged
        error = problem(fitting)
        if error is not None:
            height, width = smallest
            what = f"an image of {shape[2]} x {shape[3]}, in windows of {height} x {width} at most, the smallest,"
            raise BudgetError(what, left, error.needed)
        low, high = 0, 1
        while (larger := windows(high)) is not None and problem(larger) is None:
            low, high, fitting = high, 2 * high, larger
        while high - low > 1:
            middle = (low + high) // 2
            between = windows(middle)
            if between is not None and problem(between) is None:
                low, fitting = middle, between
            else:
                high = middle
        return fitting

    def report(self, in_windows: Mapping[str, int]) -> dict[str, Any] | None:
        """The entry in result files for images that were computed in windows, counted by `Choice.text`.

        None if there were none.
        """
        if not in_windows:
            return None
        told = [{**json.loads(text), "images": count} for text, count in in_windows.items()]
        return {
            "images": sum(in_windows.values()),
            "windows": sorted(told, key=lambda each: each["size"]),
            "rule": "windows of the size of the training's images"
            if self.max_memory is None
            else f"the largest windows with which an image takes at most max_memory {text_of(self.max_memory)}",
        }

    def warn(self, in_windows: Mapping[str, int], when: str = "") -> None:
        """Logs, in process 0, that there are images in windows, if there are."""
        report = self.report(in_windows)
        if report is not None and distributed.is_primary():
            sizes = ["{1} in windows of {0[0]} x {0[1]}".format(w["size"], w["images"]) for w in report["windows"]]
            too_small = "images of so many pixels are not computed as a whole"
            if self.max_memory is not None:
                too_small = f"max_memory {text_of(self.max_memory)} is too small for some images as a whole"
            log.warning(
                "%s. They are computed in windows, which changes "
                "their labels: %s%s; a protocol that is named is kept to",
                too_small,
                ", ".join(sizes),
                when,
            )


def joined_counts(in_windows: Mapping[str, int]) -> Counter[str]:
    """The counts of all processes of a job, summed. Every process calls it."""
    texts = distributed.gather_texts(json.dumps(in_windows))
    return sum((Counter(json.loads(text)) for text in texts), Counter())
