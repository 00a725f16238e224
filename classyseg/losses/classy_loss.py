"""The contract of losses: logits of any stride, one normaliser for the whole job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from classyseg.config import ConfigError, unknown
from classyseg.distributed import sum_over_processes, world_size
from classyseg.registry import Configurable


class ClassyLoss(nn.Module, Configurable, ABC):
    """A sum over pixels (or images) divided by how many counted in the whole job.

    Called as `loss(logits, target)`. `logits` is a tensor (N, C, h, w) or (N, C), or the dict that a model gives, whose
    heads are weighed by `head_weights` (1 for those not named) and added. `target` (N, H, W) holds class indices and
    `ignore_index`, and gives the full size; (N,) means classification. Nothing valid gives zero, not NaN.

    In training, processes agree on the number that counted, and the result is scaled so that the mean over processes,
    which is what distributed training forms of the gradients, is the loss of the whole batch. In eval mode there is
    no talk between processes. A subclass gives `total` and, unless every valid pixel counts once, `count`.

    `ignore_index` is positional because the data set knows it.
    """

    def __init__(self, ignore_index: int = 255, *, head_weights: dict[str, float] | None = None) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.head_weights = dict(head_weights or {})

    def check_num_classes(self, num_classes: int) -> None:
        """Called when a task is made or checked. Raises: `ConfigError` for options of another number of classes."""

    @abstractmethod
    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum, not the mean, over the pixels (images) that count; a scalar in float32 or wider."""

    def count(self, target: Tensor) -> Tensor:
        """How much of `target` counts, in this process: a scalar, float64. The number of valid pixels."""
        return (target != self.ignore_index).sum().double()

    def forward(self, logits: Tensor | Mapping[str, Tensor], target: Tensor) -> Tensor:
        total = self._weighed_total(logits, target)
        count, share = self.count(target), 1.0
        if self.training:
            count, share = sum_over_processes(count), float(world_size())
        return total * (share / count.clamp(min=1e-12)).float()

    def _weighed_total(self, logits: Tensor | Mapping[str, Tensor], target: Tensor) -> Tensor:
        if isinstance(logits, Tensor):
            return self.total(logits, target)
        strange = [name for name in self.head_weights if name not in logits]
        if strange and self.training:  # in eval mode, the heads that only train are not computed
            raise ConfigError(f"loss.head_weights.{strange[0]}: {unknown('head', strange[0], logits)}")
        for name, head in logits.items():
            if (head.dim() == 4) != (target.dim() == 3):
                raise ConfigError(
                    f"model.heads.{name}: found logits {tuple(head.shape)} for targets {tuple(target.shape)}; masks "
                    "(N, H, W) need logits (N, C, h, w), labels (N,) need (N, C)"
                )
        parts = [self.head_weights.get(name, 1.0) * self.total(head, target) for name, head in logits.items()]
        return torch.stack(parts).sum()
