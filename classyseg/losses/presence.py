"""The semantic encoding (SE) loss: which classes an image holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from classyseg.errors import ConfigError
from classyseg.losses.classy_loss import HeadNames, HeadWeights
from classyseg.losses.cross_entropy import ClassWeightedLoss, ClassWeights
from classyseg.registry import LOSSES


@LOSSES.register("presence")
class PresenceLoss(ClassWeightedLoss):
    """Binary cross entropy of logits (N, C) against the classes that each mask holds, the mean over classes and images.

    Reads the outputs (N, C) of a model for masks (N, H, W), such as `main.se` of the head `encnet`. An image without a
    valid pixel says nothing and does not count. `class_weights` are factors of the classes' terms; the mean is not
    divided by them.

    Source: Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018.

    Args:
        class_weights: Factors of the classes' terms; the mean is not divided by them.
    """

    needs = "this loss needs logits (N, C), of the classes that an image holds, such as the output `se` of encnet"

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        class_weights: ClassWeights | None = None,
        head_weights: HeadWeights | None = None,
        heads: HeadNames | None = None,
    ) -> None:
        super().__init__(ignore_index, class_weights=class_weights, head_weights=head_weights, heads=heads)

    def count(self, target: Tensor) -> Tensor:
        """The number of images with a valid pixel."""
        return self._counts(target).sum().double()

    def _counts(self, target: Tensor) -> Tensor:
        return (target != self.ignore_index).flatten(1).any(1)

    def fits(self, output: Tensor, target: Tensor) -> bool:
        return output.dim() == 2

    def accepts(self, name: str, outputs: Mapping[str, Tensor], target: Tensor, *, named: bool) -> bool:
        if not named and not self.fits(outputs[name], target):
            return False
        return super().accepts(name, outputs, target, named=named)

    def choose(self, outputs: Mapping[str, Tensor], target: Tensor) -> list[str]:
        names = super().choose(outputs, target)
        if not names and self.training:
            raise ConfigError("loss", f"found no output (N, C) among {', '.join(outputs)}; {self.needs}")
        return names

    def present(self, target: Tensor, num_classes: int) -> Tensor:
        """Which classes each mask (N, H, W) holds: (N, C), bool."""
        labels = target.where(target != self.ignore_index, num_classes).flatten(1)
        found = torch.zeros(len(target), num_classes + 1, dtype=torch.bool, device=target.device)
        return found.scatter_(1, labels, True)[:, :num_classes]

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        wanted = self.present(target, logits.shape[1]).to(logits.dtype)
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        with torch.autocast(logits.device.type, enabled=False):
            terms = functional.binary_cross_entropy_with_logits(logits, wanted, weights, reduction="none")
        return (terms.mean(1) * self._counts(target)).sum()
