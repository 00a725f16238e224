"""Windows that cover an image: batched through the network, blended in place, finished band by band."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from classyseg.config import MAX_SIDE
from classyseg.errors import ConfigError
from classyseg.heads.classy_head import LOGITS
from classyseg.inference.classy_protocol import ClassyProtocol, Found, Size, Wanted
from classyseg.inference.finish import Bands, as_scores, at_size, check_each, per_image
from classyseg.inference.memory import BudgetError
from classyseg.inference.network import Network, Outputs
from classyseg.inference.rows import FLOAT, Cost, Rows, ScoresOfHead, TensorRows, Windows
from classyseg.inference.whole import Whole
from classyseg.registry import PROTOCOLS

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Blend = Literal["flat", "gaussian"]
GPU_BATCH = 8
"""How many windows a GPU takes at once; on a CPU more than one gains nothing (measured) and takes memory."""
SIGMA = 1 / 8
"""The standard deviation of a Gaussian window, as a part of its side: nnU-Net's and MONAI's."""


@PROTOCOLS.register("sliding_window")
class SlidingWindow(ClassyProtocol):
    """Windows of one size that overlap, so that a network sees pixels at the scale of its training and an image of any
    size fits into memory.

    Windows overlap: their logits are averaged at each pixel, as in mmsegmentation, MONAI and nnU-Net; their scores for
    a head without logits. The last windows are moved back to lie inside the image. An image smaller than a window is
    one window of its own size, and an image that one window covers gives what `whole` gives.

    Maps are made in bands of rows. A band is finished as soon as no later window touches it, so full-size logits are
    never held. A budget sets the height of the bands and the number of windows at once. That changes no result on a
    CPU; on a GPU, another number of windows at once may change the last bits of a logit.

    Args:
        size: Height and width of a window.
        overlap: The share of a window that the next one covers again. `stride` gives the step in pixels instead.
        stride: How far the next window lies away, down and to the right.
        blend: `flat` counts all pixels of a window alike; `gaussian` those in its middle more, which hides seams.
        batch: Windows at once; by default 1 on a CPU, and up to 8 on a GPU.
    """

    def __init__(
        self,
        *,
        size: tuple[Side, Side] = (512, 512),
        overlap: Annotated[float, Field(ge=0, le=0.95)] = 1 / 3,
        stride: tuple[Side, Side] | None = None,
        blend: Blend = "flat",
        batch: Annotated[int, Field(ge=1, le=4096)] | None = None,
    ) -> None:
        self.size = (size[0], size[1])
        self.overlap = overlap
        self.stride = None if stride is None else (stride[0], stride[1])
        self.blend: Blend = blend
        self.batch = batch
        self.steps = self.stride or tuple(max(1, round(side * (1 - overlap))) for side in self.size)
        if any(step > side for step, side in zip(self.steps, self.size, strict=True)):
            raise ConfigError(
                "stride",
                f"found {list(self.steps)}; windows of {list(self.size)} would leave gaps; accepted are "
                "strides up to the size of a window",
            )

    def __call__(
        self, network: Network, images: Tensor, size: Size, wanted: Collection[Wanted], budget: int | None = None
    ) -> Found:
        if self._covers((images.shape[2], images.shape[3])):
            return Whole()(network, images, size, wanted, budget)
        return per_image(network, images, size, wanted, budget, self._planner(network, size, wanted))

    def check_budget(
        self, network: Network, shape: Sequence[int], size: Size, wanted: Collection[Wanted], budget: int
    ) -> None:
        if self._covers((shape[2], shape[3])):
            Whole().check_budget(network, shape, size, wanted, budget)
        else:
            check_each(network, shape, size, wanted, budget, self._planner(network, size, wanted))

    @property
    def window_size(self) -> Size:
        return self.size

    def in_windows(self, size: Size) -> SlidingWindow | None:
        """Smaller windows, which cover each other as these do."""
        smaller = (min(size[0], self.size[0]), min(size[1], self.size[1]))
        if smaller == self.size:
            return None
        steps = [max(1, step * new // old) for step, new, old in zip(self.steps, smaller, self.size, strict=True)]
        return SlidingWindow(size=smaller, stride=(steps[0], steps[1]), blend=self.blend, batch=self.batch)

    def in_bands(
        self, network: Network, image: Rows, size: Size, wanted: Collection[Wanted], budget: int | None = None
    ) -> Bands:
        return self._planner(network, size, wanted, streamed=True)(image, budget)

    def _planner(
        self, network: Network, size: Size, wanted: Collection[Wanted], *, streamed: bool = False
    ) -> Callable[[Rows, int | None], Bands]:
        heads = list(dict.fromkeys(item.head for item in wanted))

        def plan(image: Rows, left: int | None) -> Bands:
            runs = self._runs(network, image, heads, left)
            maps = {head: at_size(runs.maps(head), size) for head in heads}
            while True:
                try:
                    cost, rows = runs.cost(), self.steps[0]
                    return Bands.within(left, network, maps, wanted, cost, most_rows=rows, streamed=streamed)
                except BudgetError:  # nothing has run yet
                    if self.batch is not None or runs.batch == 1:
                        raise
                    runs.batch //= 2

        return plan

    def score_rows(
        self, network: Network, image: Rows, size: Size, heads: Sequence[str], budget: int | None = None
    ) -> tuple[Mapping[str, Rows], Cost]:
        if self._covers(image.size):
            return Whole().score_rows(network, image, size, heads, budget)
        runs = self._runs(network, image, heads, budget)
        return {head: as_scores(network, head, at_size(runs.maps(head), size)) for head in heads}, runs.cost()

    def _covers(self, size: Size) -> bool:
        return size[0] <= self.size[0] and size[1] <= self.size[1]

    def _runs(self, network: Network, image: Rows, heads: Sequence[str], budget: int | None) -> WindowRuns:
        window = (min(self.size[0], image.size[0]), min(self.size[1], image.size[1]))
        weights = [_gaussian(side) if self.blend == "gaussian" else torch.ones(side) for side in window]
        tops, lefts = (
            inside(length, side, step) for length, side, step in zip(image.size, window, self.steps, strict=True)
        )
        batch = self.batch or (GPU_BATCH if network.device.type == "cuda" else 1)
        grid = (weights[0], weights[1])
        runs = WindowRuns(network, image, heads, window, tops, lefts, grid, batch=batch)
        while budget is not None and self.batch is None and runs.batch > 1 and sum(runs.cost()) > budget // 2:
            runs.batch //= 2
        return runs


def inside(length: int, window: int, step: int) -> list[int]:
    """Where windows begin that cover an axis, all of them inside: the last one is moved back."""
    last = max(0, length - window)
    return [*range(0, last, step), last]


def _gaussian(side: int) -> Tensor:
    position = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return (-0.5 * (position / (SIGMA * side)) ** 2).exp().float()


class WindowRuns:
    """The windows of an image, run one row of windows at a time; heads' outputs are kept while they are needed."""

    def __init__(
        self,
        network: Network,
        image: Rows,
        heads: Sequence[str],
        window: Size,
        tops: Sequence[int],
        lefts: Sequence[int],
        weights: tuple[Tensor, Tensor],
        *,
        batch: int,
    ) -> None:
        self.network, self.image, self.heads, self.window = network, image, heads, window
        self.tops, self.lefts, self.weights, self.batch = tops, lefts, weights, batch
        self._kept: dict[int, list[Outputs]] = {}

    def maps(self, head: str) -> Rows:
        """The averaged maps of a head at the image's size: logits where it has them, else scores."""
        example = self.map_of(head, self.example())
        return Windows(
            self.network.num_classes(head),
            self.image.size,
            self.tops,
            self.lefts,
            self.weights,
            partial(self._maps_at, head),
            example.bytes_for,
            self.network.device,
        )

    def _maps_at(self, head: str, top: int, first: int) -> list[Rows]:
        self._kept = {kept: row for kept, row in self._kept.items() if kept + self.window[0] > first}
        if top not in self._kept:
            self._kept[top] = self._run(top)
        return [self.map_of(head, outputs) for outputs in self._kept[top]]

    def example(self) -> Outputs:
        """The outputs that are kept for a window, on the `meta` device."""
        return self.network.example(self.window)

    def map_of(self, head: str, outputs: Outputs) -> Rows:
        """The map of a head at the size of a window, from the outputs that are kept."""
        own = self.network.outputs_of(outputs, head)
        if self.network.averages_logits(head):
            return at_size(TensorRows(own[LOGITS][0]), self.window)
        return ScoresOfHead(self.network.head(head), own, self.window, self.network.num_classes(head))

    def _run(self, top: int) -> list[Outputs]:
        """The outputs of the windows that begin at `top`, each as a batch of one."""
        pixels = self.image.rows(top, top + self.window[0])
        found: list[Outputs] = []
        for at in range(0, len(self.lefts), self.batch):
            windows = [pixels[:, :, left : left + self.window[1]] for left in self.lefts[at : at + self.batch]]
            outputs = self.network.kept(self.network(torch.stack(windows)), self.heads)
            # Copies, as views would keep the whole batch.
            found += [{name: value[i : i + 1].clone() for name, value in outputs.items()} for i in range(len(windows))]
        return found

    def cost(self) -> Cost:
        height, width = self.window
        gap = max(1, *(b - a for a, b in zip(self.tops, self.tops[1:], strict=False))) if self.tops[1:] else height
        rows = min(len(self.tops), -(-height // gap) + 2)
        pixels = 0 if isinstance(self.image, TensorRows) else self.image.bytes_for(height)
        windows = self.batch * self.image.channels * height * width * FLOAT
        running = self.network.forward_bytes((self.batch, self.image.channels, height, width))
        kept = rows * len(self.lefts) * self.network.kept_bytes(self.heads, self.window)
        return Cost(kept, pixels + windows + running)
