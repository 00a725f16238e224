"""Cross entropy at the points that a head drew."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from classyseg.console import shown
from classyseg.errors import ConfigError
from classyseg.layers import pixels_at
from classyseg.losses.classy_loss import HeadNames, HeadWeights, Terms
from classyseg.losses.cross_entropy import ClassWeightedLoss, ClassWeights
from classyseg.registry import LOSSES

POINTS, COORDINATES = ".points", ".point_coordinates"


@LOSSES.register("point_cross_entropy")
class PointCrossEntropyLoss(ClassWeightedLoss):
    """Cross entropy of points' logits (N, C, P) and the mask's pixels in which the points lie.

    Reads `HEAD.points` and `HEAD.point_coordinates` (N, P, 2) of heads such as `point_rend`. It is the mean over all
    points of the whole job whose pixels are not ignored, weighted by `class_weights`; with several heads, the sum of
    their means. How many points count is known only when they are drawn.

    Source: Kirillov et al., "PointRend: Image Segmentation as Rendering", CVPR 2020.

    Args:
        class_weights: As in `cross_entropy`: a weighted mean over the points.
        head_weights: Names of outputs, such as `main.points`, to factors of their losses; 1 for one not named.
        heads: The outputs that the loss reads, such as `main.points`; null: all points.
    """

    is_additive = False

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        class_weights: ClassWeights | None = None,
        head_weights: HeadWeights | None = None,
        heads: HeadNames | None = None,
    ) -> None:
        super().__init__(ignore_index, class_weights=class_weights, head_weights=head_weights, heads=heads)

    def accepts(self, name: str, outputs: Mapping[str, Tensor], target: Tensor, *, named: bool) -> bool:
        if named and not name.endswith(POINTS):
            raise ConfigError(
                "loss.heads", f"{shown(name)} holds no points; this loss reads outputs such as 'main{POINTS}'"
            )
        return name.endswith(POINTS)

    def choose(self, outputs: Mapping[str, Tensor], target: Tensor) -> list[str]:
        if "" in outputs:
            raise ConfigError("loss", "found one tensor; this loss reads points and their coordinates by name")
        names = super().choose(outputs, target)
        if not names and self.training:
            raise ConfigError(
                "loss", f"found no points among {', '.join(outputs)}; this loss needs a head such as 'point_rend'"
            )
        return names

    def terms(self, outputs: Tensor | Mapping[str, Tensor], target: Tensor) -> Terms:
        pairs = []
        for name, points in self.read(outputs, target).items():
            labels = pixels_at(target, outputs[name.removesuffix(POINTS) + COORDINATES])  # type: ignore[index]
            pairs.append((self.head_weights.get(name, 1.0) * self.total(points, labels), self.count(labels)))
        return Terms.of(pairs, target.device)

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum for points' logits (N, C, P) and labels (N, P)."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        with torch.autocast(logits.device.type, enabled=False):
            return functional.cross_entropy(logits, target, weights, ignore_index=self.ignore_index, reduction="sum")
