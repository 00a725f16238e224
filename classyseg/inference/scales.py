"""An image at several sizes, and mirrored: the scores of all of them, averaged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from classyseg.inference.classy_protocol import ClassyProtocol, Found, Size, Wanted
from classyseg.inference.finish import Bands, check_each, per_image
from classyseg.inference.network import Network
from classyseg.inference.rows import Cost, Flipped, Mean, Resized, Rows
from classyseg.registry import PROTOCOLS, ProtocolConfig

Scale = Annotated[float, Field(gt=0, le=16)]


@PROTOCOLS.register("multi_scale")
class MultiScale(ClassyProtocol):
    """The image at several `scales`, each also mirrored with `flip`: what tables call "ms + flip".

    At each scale `protocol` runs the network. All scores are resized to the wanted size and averaged, as
    mmsegmentation's test-time augmentation does it. With one scale of 1 and no flip it gives what `protocol` gives.

    Maps are made in bands of rows: with a budget, full-size scores are never held.

    Args:
        scales: Factors of the image's height and width.
        flip: Whether each scale also runs on the mirrored image.
        protocol: `whole`, or `{name: sliding_window, ...}`, whose windows keep their size at every scale.
    """

    def __init__(
        self,
        *,
        scales: Annotated[tuple[Scale, ...], Field(min_length=1, max_length=64)] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        flip: bool = True,
        protocol: ProtocolConfig = "whole",
    ) -> None:
        self.scales = tuple(scales)
        self.flip = flip
        self.protocol = protocol
        self.inner: ClassyProtocol = PROTOCOLS.build(protocol)

    def check(self, network: Network, wanted: Collection[Wanted]) -> None:
        super().check(network, wanted)
        self.inner.check(network, [Wanted(item.head, "scores") for item in wanted])

    def __call__(
        self, network: Network, images: Tensor, size: Size, wanted: Collection[Wanted], budget: int | None = None
    ) -> Found:
        if self._is_inner:
            return self.inner(network, images, size, wanted, budget)
        return per_image(network, images, size, wanted, budget, self._planner(network, size, wanted))

    def check_budget(
        self, network: Network, shape: Sequence[int], size: Size, wanted: Collection[Wanted], budget: int
    ) -> None:
        if self._is_inner:
            self.inner.check_budget(network, shape, size, wanted, budget)
        else:
            check_each(network, shape, size, wanted, budget, self._planner(network, size, wanted))

    @property
    def window_size(self) -> Size | None:
        return self.inner.window_size

    def in_windows(self, size: Size) -> MultiScale | None:
        inner = self.inner.in_windows(size)
        return None if inner is None else MultiScale(scales=self.scales, flip=self.flip, protocol=inner.config())

    @property
    def _is_inner(self) -> bool:
        """Whether there is nothing to average."""
        return self.scales == (1.0,) and not self.flip

    def in_bands(
        self, network: Network, image: Rows, size: Size, wanted: Collection[Wanted], budget: int | None = None
    ) -> Bands | None:
        if self.inner.window_size is None:
            return None
        if self._is_inner:
            return self.inner.in_bands(network, image, size, wanted, budget)
        return self._planner(network, size, wanted, streamed=True)(image, budget)

    def _planner(
        self, network: Network, size: Size, wanted: Collection[Wanted], *, streamed: bool = False
    ) -> Callable[[Rows, int | None], Bands]:
        heads = list(dict.fromkeys(item.head for item in wanted))

        def plan(image: Rows, left: int | None) -> Bands:
            maps, cost = self.score_rows(network, image, size, heads, left)
            return Bands.within(left, network, maps, wanted, cost, are_scores=True, streamed=streamed)

        return plan

    def score_rows(
        self, network: Network, image: Rows, size: Size, heads: Sequence[str], budget: int | None = None
    ) -> tuple[dict[str, Rows], Cost]:
        maps: dict[str, list[Rows]] = {head: [] for head in heads}
        kept, running = 0, 0
        for scale in self.scales:
            scaled = (max(1, round(image.size[0] * scale)), max(1, round(image.size[1] * scale)))
            at_scale = image if scaled == image.size else Resized(image, scaled)
            for mirrored in (False, True) if self.flip else (False,):
                seen = Flipped(at_scale) if mirrored else at_scale
                scores, cost = self.inner.score_rows(network, seen, size, heads, budget)
                kept, running = kept + cost.kept, max(running, cost.running)
                for head, each in scores.items():
                    maps[head].append(Flipped(each) if mirrored else each)
        return {head: Mean(each) for head, each in maps.items()}, Cost(kept, running)
