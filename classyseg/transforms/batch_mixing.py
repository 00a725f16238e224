"""Mix-up and cut-mix of the images of a batch with each other, on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, Strict, model_validator
from torch import Tensor

from classyseg.config import ConfigRecord, Float
from classyseg.errors import ConfigError
from classyseg.rng import derived_seed
from classyseg.structures import Sample

Alpha = Annotated[Float, Field(ge=0, le=1e6)]
Probability = Annotated[Float, Field(ge=0, le=1)]
Side = Annotated[float, Strict(), Field(gt=0, le=1)]
MIXING = -3
"""The last integer of the seed of a step's draws. A process has no such number, so no two seeds are equal."""

Numbers = npt.NDArray[Any]


class MixingConfig(ConfigRecord):
    """Mixes the images of each training batch in pairs, with soft targets: the share of each class.

    At least one of `mix_up` and `cut_mix` is above 0. The loss must take soft targets. Every process needs an even
    number of images, in all modes, as in timm: the first half of its share of the batch is mixed with the second. This
    is checked before the first step, and no later batch is smaller. All draws depend on (seed,
    step) alone, so that the number of processes and `runtime.accumulate_steps` change nothing. The transforms `mix_up`
    and `cut_mix` of a data set mix with other samples than those of the batch instead, at the cost of loading them.

    Sources: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; Yun et al., "CutMix", ICCV 2019; the
    modes and the order of draws are those of timm's `Mixup`. With `mix_up` alone, `mode: batch` and `probability: 1`,
    the shares are those of PyTorch-Encoding's `MixUpWrapper`.

    Args:
        mix_up: The share that stays is drawn from Beta(`mix_up`, `mix_up`); 0: no mix-up.
        cut_mix: The same for cut-mix, where a rectangle is of the other image, and the share is that of its area.
        cut_mix_sides: In place of `cut_mix`: the sides of the rectangle are between these two parts of the image's.
        mode: `batch`: one draw for all. `pair`: one for two images that are mixed with each other. `element`: one for
            each image.
        probability: Of mixing at all.
        switch_probability: Of cut-mix, where both are given.
    """

    mix_up: Alpha = 0.0
    cut_mix: Alpha = 0.0
    cut_mix_sides: tuple[Side, Side] | None = None
    mode: Literal["batch", "pair", "element"] = "batch"
    probability: Probability = 1.0
    switch_probability: Probability = 0.5

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        if not self.mix_up and not self.cut_mix and self.cut_mix_sides is None:
            raise ValueError("give mix_up or cut_mix above 0, or leave mixing out")
        if self.cut_mix_sides is not None:
            low, high = self.cut_mix_sides
            if self.cut_mix:
                raise ValueError("cut_mix and cut_mix_sides are two ways to draw a rectangle; keep one")
            if low >= high:
                raise ValueError(f"cut_mix_sides: found {[low, high]}; the first must be below the second")
        return self


@dataclass(frozen=True)
class Mixture:
    """How each image of a batch is mixed with its partner.

    `shares` (N,) is what stays of each image. `boxes` (N, 4) are the rectangles of the partner, top, bottom, left and
    right; they are empty for images that are not cut. Where an image has a rectangle, its share is the rest's area.
    """

    shares: Numbers
    boxes: Numbers

    def part(self, rank: int, world_size: int) -> Mixture:
        """That of a process's share of the batch: every `world_size`-th image."""
        return Mixture(self.shares[rank::world_size], self.boxes[rank::world_size])


class BatchMixing:
    """Mixes batches as a config says. Image i of n is mixed with image i + n/2, and the other way round."""

    def __init__(self, config: MixingConfig, num_classes: int, ignore_index: int) -> None:
        self.config, self.num_classes, self.ignore_index = config, num_classes, ignore_index
        self.cut_alpha = 1.0 if config.cut_mix_sides is not None else config.cut_mix

    def draw(self, batch_size: int, size: tuple[int, int], *seed: int) -> Mixture:
        """The mixture of a whole batch of images of `size`: a pure function of `seed`."""
        random = np.random.RandomState(derived_seed(*seed, MIXING) % 2**32)
        return self.drawn_by(random, batch_size, size)

    def drawn_by(self, random: np.random.RandomState, batch_size: int, size: tuple[int, int]) -> Mixture:
        """The mixture that the next numbers of `random` give, drawn in timm's order."""
        half, mode = batch_size // 2, self.config.mode
        if mode == "batch":
            share, cuts = self._draw_one(random)
            box, share = self._box(random, share, size) if cuts and share != 1 else ((0, 0, 0, 0), share)
            return Mixture(np.full(batch_size, share, np.float32), np.tile(np.array(box), (batch_size, 1)))
        count = half if mode == "pair" else batch_size
        shares, cut = self._draw_each(random, count)
        boxes = np.zeros((count, 4), np.int64)
        for i in range(count):
            if cut[i] and shares[i] != 1:
                boxes[i], shares[i] = self._box(random, shares[i], size)
        # timm mixes image i with the i-th from the end; here that one is image i + n/2.
        order = [*range(half), *(range(half) if mode == "pair" else range(batch_size - 1, half - 1, -1))]
        return Mixture(shares[order], boxes[order])

    def mixed(self, batch: Sample, mixture: Mixture) -> Sample:
        """The batch, on its device and in floating point, with soft targets (N, num_classes)."""
        half = len(batch.image) // 2
        device = batch.image.device
        shares = torch.from_numpy(mixture.shares).to(device, non_blocking=True)
        partner = batch.image.roll(half, 0)
        cut = (mixture.boxes[:, 1] > mixture.boxes[:, 0]) & (mixture.boxes[:, 3] > mixture.boxes[:, 2])
        # An image with a rectangle keeps its own values outside of it, whatever its share.
        own = torch.where(torch.from_numpy(cut).to(device, non_blocking=True), 1.0, shares)
        own = own.view(-1, *[1] * (batch.image.dim() - 1)).to(batch.image.dtype)
        image = batch.image * own + partner * (1 - own)
        if cut.any():
            image = torch.where(_inside(mixture.boxes, batch.image), partner, image)
        return batch.replace(image=image, target=self._targets(batch.target, shares[:, None]))

    def _targets(self, target: Tensor, shares: Tensor) -> Tensor:
        ignore = self.ignore_index
        if not target.is_floating_point():
            ignored = target == ignore
            known = torch.nn.functional.one_hot(target.masked_fill(ignored, 0), self.num_classes).to(shares.dtype)
            target = known.masked_fill(ignored[:, None], ignore)
        other = target.roll(len(target) // 2, 0)
        # An entry that one of the two does not know is not known of the mixture, unless nothing of that one is in it.
        unknown = ((target == ignore) & (shares > 0)) | ((other == ignore) & (shares < 1))
        return (shares * target + (1 - shares) * other).masked_fill(unknown, ignore)

    # -- draws ---------------------------------------------------------------------------------------------------------

    def _draw_one(self, random: np.random.RandomState) -> tuple[float, bool]:
        """A share, and whether it is of cut-mix. Where mixing is certain, nothing is drawn for it."""
        config, alpha = self.config, self.cut_alpha
        if config.probability < 1 and random.rand() >= config.probability:
            return 1.0, False
        cuts = random.rand() < config.switch_probability if config.mix_up and alpha else bool(alpha)
        alpha = alpha if cuts else config.mix_up
        return float(random.beta(alpha, alpha)), cuts

    def _draw_each(self, random: np.random.RandomState, count: int) -> tuple[Numbers, Numbers]:
        config, alpha = self.config, self.cut_alpha
        cut = np.full(count, bool(alpha))
        if config.mix_up and alpha:
            cut = random.rand(count) < config.switch_probability
            of_cuts = random.beta(alpha, alpha, size=count)
            drawn = np.where(cut, of_cuts, random.beta(config.mix_up, config.mix_up, size=count))
        else:
            drawn = random.beta(alpha or config.mix_up, alpha or config.mix_up, size=count)
        return np.where(random.rand(count) < config.probability, drawn, 1).astype(np.float32), cut

    def _box(
        self, random: np.random.RandomState, share: float, size: tuple[int, int]
    ) -> tuple[tuple[int, int, int, int], float]:
        """A rectangle, and the share of the area that it leaves."""
        height, width = size
        if self.config.cut_mix_sides is None:
            rows, columns = (int(side * np.sqrt(1 - share)) for side in size)
            row, column = (int(random.randint(0, side)) for side in size)
            top, left = max(0, row - rows // 2), max(0, column - columns // 2)
            bottom, right = min(height, row + (rows + 1) // 2), min(width, column + (columns + 1) // 2)
        else:
            low, high = self.config.cut_mix_sides
            rows, columns = (_side(random, int(side * low), int(side * high)) for side in size)
            top, left = int(random.randint(0, height - rows + 1)), int(random.randint(0, width - columns + 1))
            bottom, right = top + rows, left + columns
        return (top, bottom, left, right), 1 - (bottom - top) * (right - left) / (height * width)


def _side(random: np.random.RandomState, low: int, high: int) -> int:
    """A length from low to high - 1; `low` for images so small that nothing lies between."""
    return int(random.randint(low, high)) if high > low else low


def _inside(boxes: Numbers, image: Tensor) -> Tensor:
    """Where the images' (N, ..., H, W) rectangles are, (N, 1, ..., H, W)."""
    height, width = image.shape[-2:]
    top, bottom, left, right = (torch.from_numpy(np.ascontiguousarray(side))[:, None] for side in boxes.T)
    rows, columns = torch.arange(height)[None], torch.arange(width)[None]
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
    return inside.view(len(image), *[1] * (image.dim() - 3), height, width).to(image.device, non_blocking=True)


def check_shares(batch_size: int, world_size: int) -> None:
    """Raises: `ConfigError` where a process's share of a batch is odd, so that an image has no partner."""
    if batch_size % (2 * world_size):
        processes = f" on {world_size} processes" if world_size > 1 else ""
        raise ConfigError(
            "batch_size",
            f"found {batch_size}{processes}; `mixing` takes images in pairs: each process needs an even number of "
            f"them, so a multiple of {2 * world_size}",
        )
