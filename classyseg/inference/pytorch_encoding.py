"""PyTorch-Encoding's multi-scale evaluation, with its rounding: its published figures were measured by it."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from classyseg.errors import ConfigError
from classyseg.inference.classy_protocol import ClassyProtocol, Found, Size, Wanted
from classyseg.inference.finish import Bands, per_image
from classyseg.inference.network import Network, Outputs
from classyseg.inference.rows import (
    Cost,
    Cropped,
    Exponential,
    Flipped,
    Mean,
    Padded,
    Resized,
    Rows,
    TensorRows,
)
from classyseg.inference.scales import Scale
from classyseg.inference.windows import Side, WindowRuns
from classyseg.registry import PROTOCOLS


@PROTOCOLS.register("pytorch_encoding")
class PyTorchEncoding(ClassyProtocol):
    """PyTorch-Encoding's `MultiEvalModule`: scales of the longer side, squares, flips, sums of exponentials.

    At each scale the longer side becomes `base_size` times the scale. A smaller image is padded to a square of
    `crop_size`; a larger one is cut into such squares, two thirds of a square apart. The last ones are padded, not
    moved back. The logits of each square are added to those of its mirror image; their exponentials are averaged over
    squares, and summed over scales. All resizing aligns the corners, that of logits, too. Other ways of averaging are
    as good. This one is here because the figures of its model zoo were measured so.

    Scores are those sums divided by their sum over the classes.

    Source: zhanghang1989/PyTorch-Encoding, `encoding/models/sseg/base.py`, `MultiEvalModule`.

    Args:
        base_size: The longer side at scale 1: 520, or 2048 for Cityscapes.
        crop_size: The side of a square: 480, or 768 for Cityscapes.
        scales: Those of its `test.py`; for Cityscapes it takes 0.75 to 2.25 in steps of 0.25.
        flip: Whether each square also runs mirrored.
    """

    def __init__(
        self,
        *,
        base_size: Side = 520,
        crop_size: Side = 480,
        scales: Annotated[tuple[Scale, ...], Field(min_length=1, max_length=64)] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        flip: bool = True,
    ) -> None:
        self.base_size, self.crop_size = base_size, crop_size
        self.scales = tuple(scales)
        self.flip = flip

    def check(self, network: Network, wanted: Collection[Wanted]) -> None:
        super().check(network, wanted)
        for head in {item.head for item in wanted}:
            if not network.averages_logits(head):
                raise ConfigError(
                    "protocol",
                    f"found pytorch_encoding, which adds logits, and the head '{head}' has none of its own; "
                    "accepted: multi_scale",
                )

    def __call__(
        self, network: Network, images: Tensor, size: Size, wanted: Collection[Wanted], budget: int | None = None
    ) -> Found:
        heads = list(dict.fromkeys(item.head for item in wanted))

        def plan(image: Rows, left: int | None) -> Bands:
            maps: dict[str, list[Rows]] = {head: [] for head in heads}
            kept, running = 0, 0
            for scale in self.scales:
                for head, (each, cost) in self._at_scale(network, image, size, heads, scale).items():
                    maps[head].append(each)
                    kept, running = kept + cost.kept, max(running, cost.running)
            sums = {head: Mean(each, is_sum=True) for head, each in maps.items()}
            return Bands.within(left, network, sums, wanted, Cost(kept, running), are_scores=True)

        found = per_image(network, images, size, wanted, budget, plan)
        return {key: _shares(value) if key.kind == "scores" else value for key, value in found.items()}

    def resized(self, size: Size, scale: float) -> Size:
        """The size of an image at a scale, rounded as the reference does it."""
        longer = math.ceil(self.base_size * scale)
        height, width = size
        if height > width:
            return longer, max(1, int(1.0 * width * longer / height + 0.5))
        return max(1, int(1.0 * height * longer / width + 0.5)), longer

    def grid(self, length: int) -> list[int]:
        """Where squares begin along an axis that is at least as long as one."""
        step = max(1, int(self.crop_size * (2.0 / 3.0)))
        return [step * i for i in range(math.ceil(1.0 * (length - self.crop_size) / step) + 1)]

    def _at_scale(
        self, network: Network, image: Rows, size: Size, heads: Collection[str], scale: float
    ) -> dict[str, tuple[Rows, Cost]]:
        scaled, crop = self.resized(image.size, scale), self.crop_size
        seen: Rows = image if scaled == image.size else Resized(image, scaled, align_corners=True)
        padded: Size = (max(scaled[0], crop), max(scaled[1], crop))
        tops, lefts = self.grid(padded[0]), self.grid(padded[1])
        covered: Size = (tops[-1] + crop, lefts[-1] + crop)
        if covered != scaled:
            seen = Padded(seen, covered, network.black.to(network.device))
        flat = (torch.ones(crop), torch.ones(crop))
        runs = _Squares(network, seen, list(heads), (crop, crop), tops, lefts, flat, batch=1)
        runs.flip = self.flip
        found = {}
        for head in heads:
            maps: Rows = Cropped(runs.maps(head), scaled)
            maps = maps if scaled == size else Resized(maps, size, align_corners=True)
            found[head] = maps, runs.cost()
        return found


def _shares(sums: Tensor) -> Tensor:
    return sums.div_(sums.sum(1, keepdim=True))


MIRRORED = "mirrored "
"""How the names of outputs of mirrored squares begin."""


class _Squares(WindowRuns):
    """Squares whose maps are the exponentials of the sum of their logits and those of their mirror images."""

    flip = True

    def _run(self, top: int) -> list[Outputs]:
        pixels = self.image.rows(top, top + self.window[0])
        return [self._both(pixels[None, :, :, left : left + self.window[1]]) for left in self.lefts]

    def _both(self, square: Tensor) -> Outputs:
        outputs = self.network.kept(self.network(square), self.heads)
        return {**outputs, **self._mirrored(self.network(square.flip(-1)))} if self.flip else outputs

    def _mirrored(self, outputs: Outputs) -> Outputs:
        kept = self.network.kept(outputs, self.heads)
        return {f"{MIRRORED}{name}": value for name, value in kept.items()}

    def example(self) -> Outputs:
        outputs = self.network.example(self.window)
        return {**outputs, **self._mirrored(outputs)} if self.flip else outputs

    def map_of(self, head: str, outputs: Outputs) -> Rows:
        logits = self._upsampled(outputs[head])
        mirrored = outputs.get(f"{MIRRORED}{head}")
        return Exponential([logits] if mirrored is None else [logits, Flipped(self._upsampled(mirrored))])

    def _upsampled(self, logits: Tensor) -> Rows:
        held = TensorRows(logits[0])
        return held if held.size == self.window else Resized(held, self.window, align_corners=True)

    def cost(self) -> Cost:
        kept, running = super().cost()
        return Cost((1 + self.flip) * kept, running)
