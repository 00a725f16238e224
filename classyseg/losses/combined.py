"""Losses made of losses: weighted sums, one loss on every output, and PyTorch-Encoding's combination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.console import shown
from classyseg.errors import ConfigError, location_of, moved, moving, path_text, within
from classyseg.losses.classy_loss import (
    ClassyLoss,
    PerOutputLoss,
    Terms,
    fits,
    is_of_classes,
    outputs_by_name,
)
from classyseg.losses.cross_entropy import ClassWeights, CrossEntropyLoss
from classyseg.losses.presence import PresenceLoss
from classyseg.registry import LOSSES, LossConfig

Factor = Annotated[float, Field(ge=0)]


class CombinedLoss(ClassyLoss):
    """A loss made of other losses, its `parts`. Each has its own counts; `places` are their paths in the config."""

    def __init__(self, ignore_index: int, parts: Sequence[ClassyLoss], places: Sequence[str]) -> None:
        super().__init__(ignore_index)
        self.parts = nn.ModuleList(parts)
        self.places = list(places)
        self.min_classes = max(part.min_classes for part in parts)
        self.takes_soft_targets = all(part.takes_soft_targets for part in parts)
        self.takes_flags = all(part.takes_flags for part in parts)
        self.is_additive = all(part.is_additive for part in parts)

    def _placed_parts(self) -> Iterator[tuple[str, ClassyLoss]]:
        yield from zip(self.places, self.parts, strict=True)  # type: ignore[arg-type]

    def check_num_classes(self, num_classes: int) -> None:
        for place, part in self._placed_parts():
            with moving("loss", place):
                part.check_num_classes(num_classes)

    def check_flags(self, flags: bool) -> None:
        for place, part in self._placed_parts():
            with moving("loss", place):
                part.check_flags(flags)

    def choose_main_head(self, name: str) -> None:
        for _, part in self._placed_parts():
            part.choose_main_head(name)

    def named_outputs(self) -> Iterator[tuple[str, str]]:
        for place, part in self._placed_parts():
            yield from ((_moved(path, place), name) for path, name in part.named_outputs())

    def names_read(self, outputs: Mapping[str, Tensor], target: Tensor) -> Set[str]:
        names: set[str] = set()
        for place, part in self._placed_parts():
            with moving("loss", place):
                names |= part.names_read(outputs, target)
        return names


def _moved(path: str, place: str) -> str:
    """A path that a loss tells, which is the config's `loss` to itself, where it stands at `place`."""
    return path_text(moved(location_of(path), ("loss",), location_of(place)))


@LOSSES.register("sum_arbitrary")
class SumArbitraryLoss(CombinedLoss):
    """The sum of `losses`, each times its entry of `weights` (1 each by default).

    Each is divided by its own count.

    Raises: `ConfigError` for another number of weights than of losses.

    Args:
        losses: Their names or configs.
        weights: A factor for each; null: 1 each.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        losses: Annotated[tuple[LossConfig, ...], Field(min_length=1)],
        weights: tuple[Factor, ...] | None = None,
    ) -> None:
        built = LOSSES.build_each("losses", losses, ignore_index)
        super().__init__(ignore_index, built, [f"loss.losses[{i}]" for i in range(len(built))])
        self.weights = (1.0,) * len(built) if weights is None else tuple(weights)
        if len(self.weights) != len(built):
            raise ConfigError("weights", f"found {len(self.weights)} for {len(built)} losses; expected one each")

    def terms(self, outputs: Mapping[str, Tensor], target: Tensor) -> Terms:
        return Terms.joined([part.terms(outputs, target) for _, part in self._placed_parts()], self.weights)

    def counts(self, outputs: Mapping[str, Tensor], target: Tensor) -> Tensor:
        return torch.cat([part.counts(outputs, target) for _, part in self._placed_parts()])


@LOSSES.register("multi_output_sum")
class MultiOutputSumLoss(CombinedLoss):
    """One loss, applied to every output of the model on its own, and added up.

    Outputs are the entries of a mapping that fit the target, or the members of a list. Most losses add up the outputs
    of a mapping themselves. Use this for a loss that takes a single output, and for lists.

    Raises: `ConfigError` for a loss that names outputs.

    Args:
        loss: Its name or config, without names of outputs.
    """

    def __init__(self, ignore_index: int = 255, *, loss: LossConfig) -> None:
        with within("loss"):
            built: ClassyLoss = LOSSES.build(loss, ignore_index)
        for place, name in built.named_outputs():
            # `loss`, the root of that loss's own paths, is also the key by which this one has it.
            raise ConfigError(place, f"found {shown(name)}; multi_output_sum applies its loss to every output alone")
        super().__init__(ignore_index, [built], ["loss.loss"])
        self.loss = built

    def terms(self, outputs: Tensor | Mapping[str, Tensor] | Sequence[Tensor], target: Tensor) -> Terms:
        each = [self.loss.terms(output, target) for output in self._each(outputs, target)]  # type: ignore[arg-type]
        return Terms.joined(each, (1.0,) * len(each)) if each else Terms.of([], target.device)

    def counts(self, outputs: Tensor | Mapping[str, Tensor] | Sequence[Tensor], target: Tensor) -> Tensor:
        each = [self.loss.counts(output, target) for output in self._each(outputs, target)]  # type: ignore[arg-type]
        return torch.cat(each) if each else Terms.of([], target.device).counts

    def _each(self, outputs: Tensor | Mapping[str, Tensor] | Sequence[Tensor], target: Tensor) -> list[Tensor]:
        if isinstance(outputs, list | tuple):
            return list(outputs)
        if isinstance(self.loss, PerOutputLoss):
            return list(self.loss.read(outputs, target).values())  # type: ignore[arg-type]
        outputs = outputs_by_name(outputs)  # type: ignore[arg-type]
        names = self.loss.names_read(outputs, target)
        return [outputs[name] for name in outputs if name in names and fits(outputs[name], target)]


@LOSSES.register("segmentation")
class SegmentationLoss(CombinedLoss):
    """Cross entropy of the main head, plus `aux_weight` x that of every other, plus `se_weight` x class presence.

    `main_head` names the main head. Other logits (N, C, h, w) are auxiliary; logits (N, C) tell which classes an image
    holds (`presence`). If `main_head` is null, a task takes the first head that is not `train_only`; a Python caller
    may call `choose_main_head`, else the first output is taken. `class_weights` are for all three.

    Source: Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018; PyTorch-Encoding's
    `SegmentationLosses`, whose defaults these are.

    Args:
        main_head: The main head; null: the first head that is not `train_only`.
        aux_weight: Of every other head.
        se_weight: Of class presence.
        class_weights: As in `cross_entropy`; and factors of the classes' terms in `presence`.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        main_head: str | None = None,
        aux_weight: Factor = 0.4,
        se_weight: Factor = 0.2,
        class_weights: ClassWeights | None = None,
    ) -> None:
        cross_entropy = CrossEntropyLoss(ignore_index, class_weights=class_weights)
        presence = PresenceLoss(ignore_index, class_weights=class_weights)
        super().__init__(ignore_index, [cross_entropy, presence], ["loss", "loss"])
        self.cross_entropy = cross_entropy
        self.presence = presence
        self.main_head = main_head
        self.default_head: str | None = None
        self.aux_weight = aux_weight
        self.se_weight = se_weight

    def named_outputs(self) -> Iterator[tuple[str, str]]:
        if self.main_head is not None:
            yield "loss.main_head", self.main_head

    def choose_main_head(self, name: str) -> None:
        self.default_head = name

    def names_read(self, outputs: Tensor | Mapping[str, Tensor], target: Tensor) -> Set[str]:
        return {name for kind in self._kinds(outputs) for name in kind}

    def _kinds(self, outputs: Tensor | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
        """The main head's logits, those of the others, and those of whole images, each by name."""
        outputs = outputs_by_name(outputs)
        main = "" if "" in outputs else self.main_head or self.default_head or next(iter(outputs))
        maps = {name: output for name, output in outputs.items() if output.dim() == 4 and is_of_classes(name, outputs)}
        if main not in maps:
            raise ConfigError(
                "loss.main_head",
                f"{shown(main)} gives no logits (N, C, h, w); outputs of the model that do: "
                f"{', '.join(maps) or 'none'}",
            )
        images = {name: output for name, output in outputs.items() if output.dim() == 2}
        images = {name: output for name, output in images.items() if is_of_classes(name, outputs)}
        return {main: maps.pop(main)}, maps, images

    def terms(self, outputs: Tensor | Mapping[str, Tensor], target: Tensor) -> Terms:
        main, others, images = self._kinds(outputs)
        parts, weights = [], []
        for weight, loss, read in (
            (1.0, self.cross_entropy, main),
            (self.aux_weight, self.cross_entropy, others),
            (self.se_weight, self.presence, images),
        ):
            parts += [loss.terms(output, target) for output in read.values()]
            weights += [weight] * len(read)
        return Terms.joined(parts, weights)

    def counts(self, outputs: Tensor | Mapping[str, Tensor], target: Tensor) -> Tensor:
        main, others, images = self._kinds(outputs)
        pixels, of_images = self.cross_entropy.count(target), self.presence.count(target)
        return torch.stack([pixels] * (len(main) + len(others)) + [of_images] * len(images))
