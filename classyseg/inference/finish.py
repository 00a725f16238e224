"""From maps by rows to labels and scores, within a budget of memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from classyseg.heads.classy_head import LOGITS
from classyseg.inference.classy_protocol import Wanted
from classyseg.inference.memory import BudgetError, remaining_budget
from classyseg.inference.network import Network
from classyseg.inference.rows import (
    BAND_BYTES,
    FLOAT,
    Cost,
    Resized,
    Rows,
    ScoresOfLogits,
    Size,
    TensorRows,
    bands,
    rows_within,
    scores_of,
)
from classyseg.layers.resize import best_class

LABEL = 8
"""Bytes of a label, where a pixel has one."""
_ROW = 2 * LABEL + FLOAT
"""Bytes that an arg-max takes for a pixel in addition to its input: the index, its copy, and the maximum."""


def at_size(maps: Rows, size: Size) -> Rows:
    return maps if maps.size == size else Resized(maps, size)


def as_scores(network: Network, head: str, maps: Rows) -> Rows:
    """Averaged maps of a head, logits or scores, as scores."""
    return ScoresOfLogits(network.head(head), maps) if network.averages_logits(head) else maps


def per_image(
    network: Network,
    images: Tensor,
    size: Size,
    wanted: Collection[Wanted],
    budget: int | None,
    plan: Callable[[Rows, int | None], Bands],
) -> dict[Wanted, Tensor]:
    """What the plan of each image (C, H, W) gives within a budget, as batches."""
    with remaining_budget(budget, _joining(network, len(images), size, wanted)) as left:
        found = [plan(TensorRows(image), left).made() for image in images]
    if len(found) == 1:
        return {item: value[None] for item, value in found[0].items()}
    return {item: torch.stack([each[item] for each in found]) for item in wanted}


def check_each(
    network: Network,
    shape: Sequence[int],
    size: Size,
    wanted: Collection[Wanted],
    budget: int,
    plan: Callable[[Rows, int | None], Bands],
) -> None:
    """Makes the plan of an image of a batch of `shape` as `per_image` does, for what it raises."""
    with remaining_budget(budget, _joining(network, shape[0], size, wanted)) as left:
        plan(TensorRows(torch.empty(*shape[1:], device="meta")), left)


def _joining(network: Network, count: int, size: Size, wanted: Collection[Wanted]) -> int:
    """What several images take in addition to the results of one: while results are joined, they exist twice."""
    others = 2 * count - 1 if count > 1 else 0
    return others * _result_bytes(network, wanted, size)


@dataclass(frozen=True)
class Bands:
    """How labels and scores are made of an image's maps of each head: in bands of `count` rows.

    The maps are logits of heads that average them, else scores; with `are_scores` all are scores.
    """

    network: Network
    maps: Mapping[str, Rows]
    wanted: Collection[Wanted]
    count: int
    are_scores: bool

    @classmethod
    def within(
        cls,
        budget: int | None,
        network: Network,
        maps: Mapping[str, Rows],
        wanted: Collection[Wanted],
        cost: Cost,
        *,
        most_rows: int | None = None,
        are_scores: bool = False,
        streamed: bool = False,
    ) -> Bands:
        """Bands that keep a budget; none is higher than `most_rows`. If `streamed`, the whole results are never held.

        Raises: `BudgetError` where `budget` is less than the results, the `cost` and one row of maps take.
        """
        size = next(iter(maps.values())).size
        results = 0 if streamed else _result_bytes(network, wanted, size)
        each_row = _ROW * size[1] + (_result_bytes(network, wanted, (1, size[1])) if streamed else 0)
        sources = [each if are_scores else as_scores(network, head, each) for head, each in maps.items()]
        highest = min(size[0], most_rows or size[0])
        flags = [2 * network.num_classes(head) for head in maps if network.gives_flags(head)]  # compared, then as bytes
        each_row += max(0, *(bytes_of - _ROW for bytes_of in flags), 0) * size[1]
        count = min(highest, max(1, rows_within(sources, BAND_BYTES, each_row)))
        if not all(network.averages_logits(head) for head in maps):
            # A head with scores of its own makes all of a window's scores again for every band: few bands are faster.
            count = highest
        if budget is not None:
            room = budget - results - sum(cost)
            fitting = rows_within(sources, room, each_row)
            if fitting < 1:
                one = max(source.bytes_for(1) for source in sources) + each_row
                raise BudgetError(f"an image of {size[0]} x {size[1]}", budget, results + sum(cost) + one)
            count = min(count, fitting)
        return cls(network, maps, wanted, count, are_scores)

    def made(self) -> dict[Wanted, Tensor]:
        size = next(iter(self.maps.values())).size
        found: dict[Wanted, Tensor] = {}
        for item in self.wanted:
            flags = self.network.gives_flags(item.head)
            shape = size if item.kind == "labels" and not flags else (self.network.num_classes(item.head), *size)
            kind = torch.float32 if item.kind == "scores" else torch.uint8 if flags else torch.int64
            found[item] = torch.empty(shape, dtype=kind, device=self.network.device)
        for first, stop, part in self.pieces():
            for item, values in part:
                found[item][..., first:stop, :] = values
        return found

    def pieces(self) -> Iterator[tuple[int, int, Iterator[tuple[Wanted, Tensor]]]]:
        """The rows [first, stop) of each band from top to bottom, and what is wanted of them, made one by one."""
        for first, stop in bands(next(iter(self.maps.values())).size[0], self.count):
            yield first, stop, self._band(first, stop)

    def _band(self, first: int, stop: int) -> Iterator[tuple[Wanted, Tensor]]:
        for head, each in self.maps.items():
            values = each.rows(first, stop)
            for item in (item for item in self.wanted if item.head == head):
                yield item, _made(self.network, item, values, self.are_scores)


def _made(network: Network, wanted: Wanted, values: Tensor, are_scores: bool) -> Tensor:
    if not are_scores and network.averages_logits(wanted.head):
        head = network.head(wanted.head)
        if wanted.kind == "scores":
            return scores_of(head, values)
        return head.labels({LOGITS: values[None]}, values.shape[1:])[0]
    if wanted.kind != "labels":
        return values
    return (values >= 0.5).to(torch.uint8) if network.gives_flags(wanted.head) else best_class(values, 0)


def _result_bytes(network: Network, wanted: Collection[Wanted], size: Size) -> int:
    each = [
        label_bytes(network, item.head) if item.kind == "labels" else FLOAT * network.num_classes(item.head)
        for item in wanted
    ]
    return sum(each) * size[0] * size[1]


def label_bytes(network: Network, head: str) -> int:
    """Bytes of what a pixel's labels take: one number, or a flag of a byte for each class."""
    return network.num_classes(head) if network.gives_flags(head) else LABEL
