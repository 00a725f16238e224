"""The contract of losses: sums, and the exact count by which each is divided in the whole job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.component import refuse_replaced
from classyseg.config import unknown
from classyseg.console import shown
from classyseg.distributed import gather_over_processes, sum_over_processes, world_size
from classyseg.errors import ConfigError
from classyseg.registry import Configurable
from classyseg.signature import qualified
from classyseg.structures import output_name, outputs_by_head

HeadWeights = dict[str, Annotated[float, Field(ge=0)]]
HeadNames = Annotated[tuple[str, ...], Field(min_length=1)]
"""The types of the options that every `PerOutputLoss` has: `head_weights` and `heads`."""


class Terms(NamedTuple):
    """What a loss is made of: sums over some images in one process, and the exact count for each sum.

    The loss is the sum of `weight * sum / count` over the terms, where sums and counts are those of the whole job, and
    of all parts of a batch. How many terms there are depends only on which outputs there are.
    """

    sums: Tensor
    """(num_terms,) float32 or wider, with gradients."""
    counts: Tensor
    """(num_terms,) float64."""
    weights: tuple[float, ...] = ()
    """One for each term; empty where each is 1."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device, weights: tuple[float, ...] = ()) -> Terms:
        """The terms of pairs (sum, count) of scalars on `device`; no pairs where a loss finds nothing to read."""
        if not pairs:
            return cls(torch.zeros(0, device=device), torch.zeros(0, dtype=torch.float64, device=device))
        sums, counts = zip(*pairs, strict=True)
        return cls(torch.stack(sums), torch.stack(counts).double(), weights)

    @classmethod
    def joined(cls, parts: Sequence[Terms], weights: Sequence[float]) -> Terms:
        """The terms of several losses as those of one, each loss times its entry of `weights`."""
        each = [
            weight * own
            for weight, part in zip(weights, parts, strict=True)
            for own in part.weights or (1.0,) * len(part.sums)
        ]
        sums, counts = torch.cat([part.sums for part in parts]), torch.cat([part.counts for part in parts])
        return cls(sums, counts, tuple(each) if set(each) - {1.0} else ())

    def divided(self, counts: Tensor, share: float = 1.0) -> Tensor:
        """The loss, a scalar: the sum of weight x sum x `share / count`, where a count of 0 gives 0."""
        factors = torch.where(counts > 0, share / counts, 0.0)
        return self._weighted(self.sums * factors.to(self.sums.dtype)).sum()

    def job_loss(self) -> Tensor:
        """The loss of a training step from this process's share of the batch; every process calls it.

        Distributed training averages gradients over processes. The loss is scaled so that this mean belongs to the loss
        of the whole batch.
        """
        return self.divided(sum_over_processes(self.counts), float(world_size()))

    def _weighted(self, values: Tensor) -> Tensor:
        if not self.weights:
            return values
        return torch.stack([weight * value for weight, value in zip(self.weights, values, strict=True)])


class LossSum:
    """Adds up the terms of all batches of a phase, and divides once. So the loss does not depend on the batch size."""

    def __init__(self) -> None:
        self._totals: Tensor | None = None

    def add(self, terms: Terms) -> None:
        """Adds the terms of a batch; it does not wait for the device."""
        sums = terms._weighted(terms.sums.detach().double())
        totals = torch.stack([sums, terms.counts])
        self._totals = totals if self._totals is None else self._totals + totals

    def value(self) -> float | None:
        """The loss over all batches of all processes; None where the loss read nothing. Every process calls it."""
        totals = torch.zeros(2, 0, dtype=torch.float64) if self._totals is None else self._totals.cpu()
        # A process without a batch does not know how many terms there are.
        num_terms = int(gather_over_processes(torch.tensor(totals.shape[1])).max())
        whole = torch.zeros(2, num_terms, dtype=torch.float64)
        whole[:, : totals.shape[1]] = totals
        sums, counts = sum_over_processes(whole)
        return Terms(sums, counts).divided(counts).item() if counts.any() else None


class ClassyLoss(nn.Module, Configurable, ABC):
    """Built as `Loss(ignore_index, *, options)`; the data set knows `ignore_index`.

    Called as `loss(outputs, target)`. `outputs` is what a model gives: `HEAD` is the logits of a head, `HEAD.OUTPUT`
    any other output of its own. `target` (N, H, W) holds class indices and `ignore_index`, and gives the full size;
    (N,) means classification. Flags of each class, (N, C, H, W) of integers, are for a loss that `takes_flags`. Nothing
    valid gives zero, not NaN.

    In training, all processes exchange their counts. In eval mode they exchange nothing.

    A subclass gives `terms`. One that compares each output with the target by itself is a `PerOutputLoss`.
    """

    replaced = {
        "extras": "name what the loss reads in `reads`",
        "takes_shares": "it is called `takes_soft_targets`",
    }
    reads: tuple[str, ...] = ()
    """The outputs that this kind of loss reads, by the heads' own names, such as ("masks", "classes"); empty: all."""
    is_additive: bool = False
    """Whether `counts` gives the counts of `terms` without looking at the values of outputs.

    It is False where outputs decide which pixels count, or how much. Then a batch in parts is computed as a whole.
    """
    takes_soft_targets: bool = False
    """Whether targets may be soft: a share of each class, (N, C) or (N, C, H, W), as mix-up makes them."""
    takes_flags: bool = False
    """Whether masks may hold flags, (N, C, H, W) integers: 1 where a pixel has a class, 0 where not, `ignore_index`.

    Such classes do not exclude each other: the loss is then of sigmoids.
    """
    min_classes: int = 2
    """The fewest classes that a model can learn with it: a softmax over one class is always 1. With flags, one is
    enough."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.terms is ClassyLoss.terms:
            refuse_replaced(cls, {"total": "a loss that gives it inherits from `PerOutputLoss`, others give `terms`"})
        if getattr(vars(cls).get("terms"), "__annotations__", {}).get("return") in (Tensor, "Tensor", "torch.Tensor"):
            raise TypeError(f"{qualified(cls)}: found `terms` that gives a tensor; it gives `Terms`, sums and counts")

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    # -- asked once, when a task is made or checked ------------------------------------------------------------------

    def check_num_classes(self, num_classes: int) -> None:
        """Raises: `ConfigError` for options that do not fit the number of classes."""

    def check_flags(self, flags: bool) -> None:
        """Called with whether masks hold flags of each class (see `takes_flags`), in place of one class of each pixel.

        Raises: `ConfigError` for masks that the loss cannot take, and for options that mean nothing for them.
        """
        if flags and not self.takes_flags:
            raise ConfigError(
                "loss",
                f"{type(self).__name__} takes one class of each pixel; masks with a flag for each class (multi_label) "
                "need binary_cross_entropy, focal, dice or tversky, or a sum of them",
            )

    def choose_main_head(self, name: str) -> None:
        """Tells the loss which head is the main one. Only losses that treat it in another way listen."""

    def named_outputs(self) -> Iterator[tuple[str, str]]:
        """The outputs that the options name, as pairs (path of the option in the config, name)."""
        return iter(())

    def names_read(self, outputs: Mapping[str, Tensor], target: Tensor) -> Set[str]:
        """The names of those `outputs` that this loss reads. They may be on the `meta` device.

        Raises: `ConfigError` for outputs that this loss cannot read, and in training where it finds none.
        """
        found = {output_name(head, own) for head, given in self.read_by_head(outputs).items() for own in given}
        if not found and self.training:
            wanted = " and ".join(f"'{name}'" for name in self.reads)
            raise ConfigError(
                "loss",
                f"{type(self).__name__} found no head that gives {wanted}; outputs of the model: "
                f"{', '.join(outputs) or 'none'}",
            )
        return found

    # -- for each batch ----------------------------------------------------------------------------------------------

    @abstractmethod
    def terms(self, outputs: Mapping[str, Tensor], target: Tensor) -> Terms:
        """The terms of these images in this process; no terms where the loss finds nothing to read."""

    def counts(self, outputs: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """The counts of `terms(outputs, target)`, (num_terms,) float64, for a loss that is additive.

        Only the names and kinds of `outputs` matter, not their values: `target` may belong to other and more images.
        Raises: `ValueError` for a loss that is not additive.
        """
        raise ValueError(f"{type(self).__name__}: how much counts is known from the outputs alone")

    def read_by_head(self, outputs: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """What the loss reads, by head and by the head's own names. A head that lacks one of `reads` is left out."""
        by_head = outputs_by_head(outputs)
        if not self.reads:
            return by_head
        return {
            head: {own: given[own] for own in self.reads}
            for head, given in by_head.items()
            if all(own in given for own in self.reads)
        }

    def forward(self, outputs: Tensor | Mapping[str, Tensor], target: Tensor) -> Tensor:
        """The loss, a scalar. Labels may have any integer type, as data sets give them."""
        target = target if target.is_floating_point() else target.long()
        terms = self.terms(outputs, target)  # type: ignore[arg-type]
        return terms.job_loss() if self.training else terms.divided(terms.counts)


class PerOutputLoss(ClassyLoss):
    """A sum over the pixels (or images) of each output, divided by how many of them counted.

    It may also be called with a tensor of logits (N, C, h, w) or (N, C). Of a model's outputs it reads those that
    `heads` names, or without `heads` all that are of its kind. It adds them, each times its entry in `head_weights` (1
    without an entry). A subclass gives `total` and, unless every valid pixel counts once, `count`.

    Raises: `ConfigError` for an output that `heads` names twice, and for a head weight of one that it leaves out.
    """

    is_additive = True
    needs: str = "masks (N, H, W) need logits (N, C, h, w), labels (N,) need (N, C)"
    """What an output must be, in words."""

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        head_weights: Mapping[str, float] | None = None,
        heads: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(ignore_index)
        self.head_weights = dict(head_weights or {})
        self.heads = heads
        self._names: dict[object, list[str]] = {}
        for name in heads or ():
            if heads.count(name) > 1:  # type: ignore[union-attr]
                raise ConfigError("heads", f"found {shown(name)} twice")
        for name in self.head_weights if heads is not None else ():
            if name not in heads:  # type: ignore[operator]
                raise ConfigError(f"head_weights.{name}", "found a weight of an output that loss.heads leaves out")

    @abstractmethod
    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum, not the mean, over the pixels (images) that count; a scalar in float32 or wider."""

    def count(self, target: Tensor) -> Tensor:
        """How much of `target` counts: a scalar, float64, by which `total` is divided.

        Here it is the number of valid pixels.
        """
        return (target != self.ignore_index).sum().double()

    def terms(self, outputs: Tensor | Mapping[str, Tensor], target: Tensor) -> Terms:
        read = self.read(outputs, target)
        if not read:
            return Terms.of([], target.device)
        parts = [self.head_weights.get(name, 1.0) * self.total(output, target) for name, output in read.items()]
        return Terms(torch.stack(parts).sum().reshape(1), self.count(target).reshape(1))

    def counts(self, outputs: Tensor | Mapping[str, Tensor], target: Tensor) -> Tensor:
        if not self.is_additive:
            return super().counts(outputs, target)  # type: ignore[arg-type]
        return self.count(target).reshape(1 if self.read(outputs, target) else 0)

    # -- which outputs of a model --------------------------------------------------------------------------------------

    def named_outputs(self) -> Iterator[tuple[str, str]]:
        yield from ((f"loss.head_weights.{name}", name) for name in self.head_weights)
        yield from ((f"loss.heads[{i}]", name) for i, name in enumerate(self.heads or ()))

    def names_read(self, outputs: Tensor | Mapping[str, Tensor], target: Tensor) -> Set[str]:
        return self.read(outputs, target).keys()

    def read(self, outputs: Tensor | Mapping[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        """The outputs that this loss reads, by name; a tensor is the only output.

        They are chosen and checked once for each set of names, kinds and numbers of classes, not at every step.

        Raises: `ConfigError` in training for a named output that is not there, and where there is nothing to read (in
            eval mode some outputs are not computed); for an output that does not fit the target; and as
            `check_num_classes`.
        """
        outputs = outputs_by_name(outputs)
        kinds = tuple((name, output.dim(), output.shape[1:2]) for name, output in outputs.items())
        key = (kinds, target.dim(), are_flags(target), self.training)
        names = self._names.get(key)
        if names is None:
            self.check_flags(are_flags(target))
            names = self.choose(outputs, target)
            if not names and self.training:
                found = ", ".join(outputs) or "none"
                raise ConfigError(
                    "loss",
                    f"{type(self).__name__} found nothing to read among the outputs {found}; {self.needs}. Name "
                    "what it is to read in loss.heads, or take another loss",
                )
            for name in names:
                self.check_num_classes(outputs[name].shape[1])
            self._names[key] = names
        return {name: outputs[name] for name in names}

    def choose(self, outputs: Mapping[str, Tensor], target: Tensor) -> list[str]:
        """The names of the outputs to read. Raises: `ConfigError` as `read`."""
        if "" in outputs:
            if not self.fits(outputs[""], target):
                raise ConfigError("loss", f"found {_shapes(outputs[''], target)}; {self.needs}")
            return list(outputs)
        for place, name in self.named_outputs():
            if name not in outputs and self.training:
                raise ConfigError(place, unknown("head", name, outputs))
        wanted = [name for name in (outputs if self.heads is None else self.heads) if name in outputs]
        named = {*self.head_weights, *(self.heads or ())}
        return [name for name in wanted if self.accepts(name, outputs, target, named=name in named)]

    def fits(self, output: Tensor, target: Tensor) -> bool:
        """Whether this loss can compare an output with such a target, by their shapes."""
        return fits(output, target)

    def accepts(self, name: str, outputs: Mapping[str, Tensor], target: Tensor, *, named: bool) -> bool:
        """Whether to read the output `name`, which the options may have `named`. Raises: `ConfigError` as `read`."""
        if self.fits(outputs[name], target):
            return named or is_of_classes(name, outputs)
        if named or "." not in name:  # a head's output other than its logits may be for another loss
            raise ConfigError(f"model.heads.{name}", f"found {_shapes(outputs[name], target)}; {self.needs}")
        return False


def fits(output: Tensor, target: Tensor) -> bool:
    """Whether an output has the shape of logits for such targets: (N, C, h, w) for masks, (N, C) for whole images."""
    return output.dim() == (4 if target.dim() >= 3 else 2)


MASKS = "this loss needs masks (N, H, W) and logits (N, C, h, w): it compares the pixels of an image with each other"


def fits_masks(output: Tensor, target: Tensor) -> bool:
    """`fits` for a loss that compares the pixels of an image with each other: masks only."""
    return output.dim() == 4 and (target.dim() == 3 or are_flags(target))


def are_flags(target: Tensor) -> bool:
    """Whether masks hold a flag of each class, (N, C, H, W) integers; soft targets are in floating point."""
    return target.dim() == 4 and not target.is_floating_point()


def _shapes(output: Tensor, target: Tensor) -> str:
    return f"logits {tuple(output.shape)} for targets {tuple(target.shape)}"


def is_of_classes(name: str, outputs: Mapping[str, Tensor]) -> bool:
    """Whether an output has a number for each class: a head's logits, or another output with as many channels.

    The masks of queries, for example, do not; they are for a loss that names them.
    """
    head = name.partition(".")[0]
    return head == name or (head in outputs and outputs[head].shape[1] == outputs[name].shape[1])


def outputs_by_name(outputs: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Outputs by name; a tensor gets the empty name. Raises: `ValueError` for anything else."""
    if isinstance(outputs, Tensor):
        return {"": outputs}
    if not isinstance(outputs, Mapping):
        raise ValueError(
            f"logits: found a {type(outputs).__name__}; accepted: a tensor, or outputs by name. Of lists, see "
            "`multi_output_sum`"
        )
    return outputs
