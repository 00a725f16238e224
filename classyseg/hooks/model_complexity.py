"""The hook that tells what a model costs, module by module."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from classyseg.complexity import Complexity, Cost
from classyseg.distributed import failing_together, is_primary
from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.registry import HOOKS
from classyseg.run_folder import COMPLEXITY

log = logging.getLogger(__name__)


@HOOKS.register("model_complexity")
class ModelComplexityHook(ClassyHook):
    """At the start, counts parameters, multiply-adds and activations of the model and each of its modules.

    The log has the sums and those of the parts, a table of the hook's name in the run's folder all modules. They are
    for one input in eval mode, so that heads with `train_only` count as parameters alone. A multiply-add counts as one,
    as in papers. Only convolutions, matrix products and attention are counted, and as activations what they give.
    Nothing is computed: the model runs without values, on the shapes alone.

    Args:
        size: Height and width of the input. null: those of `dataset.train` after its transforms, else of `val`; if
            their samples have no common size, 224 x 224, and the table says so.
    """

    def __init__(
        self, *, size: tuple[Annotated[int, Field(ge=1, le=65536)], Annotated[int, Field(ge=1, le=65536)]] | None = None
    ) -> None:
        self.size = size

    def on_start(self, task: WatchedTask) -> None:
        with failing_together():
            if is_primary():
                self._tell(task)

    def _tell(self, task: WatchedTask) -> None:
        shape, source = task.input_shape(self.size)
        text = f"one input of {' x '.join(map(str, shape))} ({source})"
        try:
            cost = task.complexity(shape)
        except Exception as error:  # a plugin's model may fail in any way without values; it may train well
            log.warning("model_complexity: %s cannot be counted (%s: %s)", text, type(error).__name__, error)
            return
        log.info("the model has %s, for %s", _short(cost), text)
        for name, part in cost.by_module.items():
            if _is_shown(name, cost):
                log.info("    %s: %s", name, _short(part))
        task.records.give(COMPLEXITY, "\n".join(_page(cost, text)) + "\n")


def _is_shown(name: str, cost: Complexity) -> bool:
    """Whether the log has a part: layers right under the model, and each head."""
    container, _, inner = name.partition(".")
    at_top = not inner if container != "heads" else bool(inner) and "." not in inner
    part = cost.by_module[name]
    return at_top and (part.parameters > 0 or part.multiply_adds > 0)


def _short(cost: Cost) -> str:
    return (
        f"{cost.parameters / 1e6:.3g} million parameters, {cost.multiply_adds / 1e9:.3g} billion multiply-adds, "
        f"{cost.activations / 1e6:.3g} million activations"
    )


def _page(cost: Complexity, text: str) -> Iterator[str]:
    yield from (
        "# What the model costs",
        "",
        f"In eval mode, for {text}. Each row counts what is within the module.",
        "",
    )
    rows = [("module", "parameters", "multiply-adds", "share", "activations")]
    for name, part in {"the whole model": cost, **cost.by_module}.items():
        if part.parameters or part.multiply_adds:
            share = f"{part.multiply_adds / cost.multiply_adds:.1%}" if cost.multiply_adds else "-"
            numbers = (f"{part.parameters:,}", f"{part.multiply_adds:,}", share, f"{part.activations:,}")
            rows.append((name if part is cost else f"`{name}`", *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, (name, *cells) in enumerate(rows):
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield f"| {' | '.join([name.ljust(widths[0]), *right])} |"
        if i == 0:
            yield f"|{'-' * (widths[0] + 2)}|{'|'.join('-' * (width + 1) + ':' for width in widths[1:])}|"
