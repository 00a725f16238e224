"""`classyseg models`: the names, or a table of what stands behind them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import get_args, get_type_hints

TABLE_SIZE = 224
COLUMNS = ("name", "10⁶ parameters", "10⁹ multiply-adds", "blocks: channels / stride", "output strides", "weights")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'resnet*'")
    parser.add_argument("--table", action="store_true", help="a Markdown table: parameters, cost, blocks, weights")


def run(arguments: argparse.Namespace) -> int:
    from classyseg.config import ConfigError, unknown
    from classyseg.registry import MODELS

    names = MODELS.names(arguments.pattern)
    if not names:
        raise ConfigError(
            f"'{arguments.pattern}' matches nothing: {unknown('model', arguments.pattern, MODELS.names())}"
        )
    for line in table(names) if arguments.table else names:
        print(line)
    return 0


def table(names: Iterable[str]) -> Iterator[str]:
    """A section for each class with a row for each of its names, as lines of Markdown.

    Models are built on the `meta` device; those that cannot be built without a config are left out.
    """
    from classyseg.registry import MODELS

    families: dict[type, list[str]] = {}
    for name in names:
        entry = MODELS.entry(name)
        required = any(
            field.is_required() for key, field in MODELS.config_model(name).model_fields.items() if key != "name"
        )
        if not required:
            families.setdefault(entry.component, []).append(name)
    for component, members in sorted(families.items(), key=lambda item: item[1][0]):
        yield from ("", f"## {component.__name__}", "", (component.__doc__ or "").split("\n\n")[0].strip(), "")
        yield f"| {' | '.join(COLUMNS)} |"
        yield "|---|--:|--:|---|---|---|"
        yield from (row(name) for name in members)


def row(name: str) -> str:
    """The row of one registered model: its cost is that of one image of 224 x 224, without a classifier."""
    import torch

    from classyseg.complexity import complexity
    from classyseg.models import create_backbone
    from classyseg.registry import MODELS

    with torch.device("meta"):
        model = create_backbone(name).eval()
    cost = complexity(model, lambda: model.run_on_meta(TABLE_SIZE))
    blocks = ", ".join(f"`{block.name}`: {block.channels} / {block.stride}" for block in model.blocks.values())
    hints = get_type_hints(MODELS.entry(name).component.__init__)  # type: ignore[misc]
    strides = ", ".join(str(value) for value in get_args(hints.get("output_stride")) if value is not None)
    known = ", ".join(f"`{weights}`" for weights in model.known_weights(name))
    cells = (f"`{name}`", f"{cost.parameters / 1e6:.2f}", f"{cost.multiply_adds / 1e9:.2f}", blocks, strides, known)
    return f"| {' | '.join(cell or '-' for cell in cells)} |"
