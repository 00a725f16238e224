"""The contract of losses: logits of any stride, one normaliser for the whole job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Set
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import ConfigError, unknown
from classyseg.distributed import sum_over_processes, world_size
from classyseg.registry import Configurable

HeadWeights = dict[str, Annotated[float, Field(ge=0)]]
HeadNames = Annotated[tuple[str, ...], Field(min_length=1)]
"""The types of the options that every loss of its own has: `head_weights` and `heads`."""


class ClassyLoss(nn.Module, Configurable, ABC):
    """A sum over pixels (or images) divided by how many counted in the whole job.

    Called as `loss(logits, target)`. `logits` is a tensor (N, C, h, w) or (N, C), or the dict that a model gives: heads
    by name, and in training their extras as `HEAD.EXTRA`. `heads` are the outputs that the loss reads; without it, all
    heads and the extras of their kind. They are weighed by `head_weights` (1 for those not named) and added. `target`
    (N, H, W) holds class indices and `ignore_index`, and gives the full size; (N,) means classification. Nothing valid
    gives zero, not NaN.

    In training, processes agree on the number that counted, and the result is scaled so that the mean over processes,
    which is what distributed training forms of the gradients, is the loss of the whole batch. In eval mode there is
    no talk between processes. A subclass gives `total` and, unless every valid pixel counts once, `count`.

    `ignore_index` is positional because the data set knows it.

    Raises: `ConfigError` for an output that `heads` names twice, and for a head weight of one that it leaves out.
    """

    needs: str = "masks (N, H, W) need logits (N, C, h, w), labels (N,) need (N, C)"
    """What an output must be, in words."""
    num_terms: int = 1
    """How many sums are divided by counts of their own; more than one where losses are combined."""
    extras: tuple[str, ...] = ()
    """The extras of heads that this kind of loss is for, such as `points`."""
    min_classes: int = 2
    """The fewest classes that a model can learn by it: a softmax over one class is 1 whatever the logit."""

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        head_weights: Mapping[str, float] | None = None,
        heads: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.head_weights = dict(head_weights or {})
        self.heads = heads
        for name in heads or ():
            if heads.count(name) > 1:  # type: ignore[union-attr]
                raise ConfigError(f"heads: found '{name}' twice")
        for name in self.head_weights if heads is not None else ():
            if name not in heads:  # type: ignore[operator]
                raise ConfigError(f"loss.head_weights.{name}: found a weight of an output that loss.heads leaves out")

    @property
    def takes_shares(self) -> bool:
        """Whether targets may be shares of classes, (N, C) or (N, C, H, W), as mix-up makes them."""
        return False

    @property
    def is_additive(self) -> bool:
        """Whether `counts` of targets alone weigh the losses of a batch's parts so that they add up to the batch's.

        Where it is false (which pixels count, or how much, depends on the outputs), a batch in parts is measured whole.
        """
        return True

    def check_num_classes(self, num_classes: int) -> None:
        """Called when a task is made or checked. Raises: `ConfigError` for options of another number of classes."""

    def choose_main_head(self, name: str) -> None:
        """Tells the model's main head to a loss that treats it apart; called when a task is made or checked."""

    def named_outputs(self) -> Iterator[tuple[str, str]]:
        """The outputs of a model that the options name, as (path of the option in the config, name)."""
        yield from ((f"loss.head_weights.{name}", name) for name in self.head_weights)
        yield from ((f"loss.heads[{i}]", name) for i, name in enumerate(self.heads or ()))

    @abstractmethod
    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum, not the mean, over the pixels (images) that count; a scalar in float32 or wider."""

    def count(self, target: Tensor) -> Tensor:
        """How much of `target` counts, in this process: a scalar, float64. The number of valid pixels."""
        return (target != self.ignore_index).sum().double()

    def counts(self, target: Tensor) -> Tensor:
        """The `count` of every term, (num_terms,): what its sum is divided by, or in proportion to it.

        Raises: `ValueError` in training for a loss that is not additive.
        """
        if self.training and not self.is_additive:
            raise ValueError(f"{type(self).__name__}: how much counts in training is known from the outputs alone")
        return self.count(target).reshape(1)

    def terms(self, logits: Tensor | Mapping[str, Tensor], target: Tensor) -> Tensor:
        """The terms that add up to the loss, (num_terms,): each a mean over what its entry of `counts` counts."""
        outputs = self.read(logits, target)
        parts = [self.head_weights.get(name, 1.0) * self.total(output, target) for name, output in outputs.items()]
        total = torch.stack(parts).sum() if parts else torch.zeros((), device=target.device)
        return (total * self._scale(self.count(target)).to(total.dtype)).reshape(1)

    def forward(self, logits: Tensor | Mapping[str, Tensor], target: Tensor) -> Tensor:
        """The loss, a scalar; labels of any integer type, as data sets give them."""
        return self.terms(logits, target if target.is_floating_point() else target.long()).sum()

    def _scale(self, count: Tensor) -> Tensor:
        """What a sum is multiplied by to become a mean over what counts in the whole job."""
        share = 1.0
        if self.training:
            count, share = sum_over_processes(count), float(world_size())
        return torch.where(count > 0, share / count, 0.0)

    # -- which outputs of a model --------------------------------------------------------------------------------------

    def fits(self, output: Tensor, target: Tensor) -> bool:
        """Whether an output is of the kind that this loss compares with such targets: pixels with masks."""
        return output.dim() == (4 if target.dim() >= 3 else 2)

    def read(self, logits: Tensor | Mapping[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        """The outputs that this loss reads, by name; a tensor is its only output, whatever its name.

        Raises: `ConfigError` for a named output that is not there (in training: in eval mode some are not computed),
            and for an output, named or a head, that does not fit the target.
        """
        logits = outputs_by_name(logits)
        if "" in logits:
            return dict(logits)
        for place, name in self.named_outputs():
            if name not in logits and self.training:
                raise ConfigError(f"{place}: {unknown('head', name, logits)}")
        wanted = [name for name in (logits if self.heads is None else self.heads) if name in logits]
        named = {*self.head_weights, *(self.heads or ())}
        return {name: logits[name] for name in wanted if self._accepts(name, logits[name], target, name in named)}

    def names_read(self, logits: Tensor | Mapping[str, Tensor], target: Tensor) -> Set[str]:
        """The names of the outputs that `read` gives. Raises as `read`.

        Called with outputs on the `meta` device when a task is made or checked, and for each validation batch.
        """
        return self.read(logits, target).keys()

    def _accepts(self, name: str, output: Tensor, target: Tensor, named: bool) -> bool:
        if self.fits(output, target):
            return True
        if named or "." not in name:  # an extra that this loss does not name may be for another one
            found = f"logits {tuple(output.shape)} for targets {tuple(target.shape)}"
            raise ConfigError(f"model.heads.{name}: found {found}; {self.needs}")
        return False


def outputs_by_name(logits: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What a model gives; a tensor has the empty name. Raises: `ValueError` for what is neither."""
    if isinstance(logits, Tensor):
        return {"": logits}
    if not isinstance(logits, Mapping):
        raise ValueError(
            f"logits: found a {type(logits).__name__}; accepted: a tensor, or outputs by name. Of lists, see "
            "`multi_output_sum`"
        )
    return logits
