"""`classyseg models`: the names of models, or a table with their blocks, sizes and costs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args, get_origin, get_type_hints

from classyseg.cli.output import emit, rewrite
from classyseg.console import shown

TABLE_SIZE = 224
HEADS_COLUMNS = ("name", "10⁶ parameters", "classes", "data set", "backbone", "heads: of blocks", "weights")
HEADS_TEXT = """\
A backbone with heads, whose parameters are counted, and the number of classes of a data set. The weights are those of
the whole model; a name also knows those of its backbone."""
WRITTEN = "<!-- the rest is written by `classyseg models --write` -->\n"
"""The line in a page after which the tables begin."""
COLUMNS = ("name", "10⁶ parameters", "10⁹ multiply-adds", "blocks: channels / stride", "output strides", "weights")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'resnet*'")
    parser.add_argument("--table", action="store_true", help="a Markdown table: parameters, cost, blocks, weights")
    parser.add_argument("--write", metavar="PAGE", help="bring these names' rows in the tables of a page up to date")


def run(arguments: argparse.Namespace) -> int:
    from classyseg.config import unknown
    from classyseg.errors import ConfigError
    from classyseg.registry import MODELS

    names = MODELS.names(arguments.pattern)
    if not names:
        raise ConfigError(
            f"{shown(arguments.pattern)} matches nothing: {unknown('model', arguments.pattern, MODELS.names())}"
        )
    if arguments.write:
        rewrite(arguments.write, lambda page: written(page, arguments.pattern))
        return 0
    for line in table(names) if arguments.table else ["\n".join(names)]:
        if not emit(line):  # nobody reads the output any more: the other models need not be built
            break
    return 0


def written(page: str, pattern: str = "*") -> str:
    """`page` with new rows in its tables: for the names that match `pattern`, and for names without a row.

    Names of plugins are left out. Other rows are not computed again, as all of them together take minutes.
    """
    from classyseg.errors import ConfigError
    from classyseg.registry import MODELS

    start, mark, rest = page.partition(WRITTEN)
    if not mark:
        raise ConfigError(f"--write: the page has no line {WRITTEN.strip()!r}, below which the tables stand")
    rows = {line.split("`")[1]: line for line in rest.splitlines() if line.startswith("| `")}
    kept = {name: line for name, line in rows.items() if not fnmatchcase(name, pattern)}
    own = [name for name in MODELS.names() if MODELS.entry(name).distribution == "classyseg"]
    return f"{start}{mark}" + "".join(f"{line}\n" for line in table(own, kept))


def table(names: Iterable[str], rows: Mapping[str, str] | None = None) -> Iterator[str]:
    """A section for each class with a row for each of its names, then one for the names with heads, as Markdown lines.

    Models are built on the `meta` device, unless `rows` has them. Those that cannot be built without a config are left
    out.
    """
    from classyseg.registry import MODELS

    families: dict[type, list[str]] = {}
    with_heads = []
    for name in names:
        fields = MODELS.config_model(name).model_fields
        if any(field.is_required() for key, field in fields.items() if key != "name"):
            continue
        if brings_heads(name):
            with_heads.append(name)
        else:
            families.setdefault(MODELS.entry(name).component, []).append(name)
    for component, members in sorted(families.items(), key=lambda item: item[1][0]):
        text = (component.__doc__ or "").split("\n\n")[0].strip()
        yield from _heading(component.__name__, text, COLUMNS, "|---|--:|--:|---|---|---|")
        yield from ((rows or {}).get(name) or row(name) for name in members)
    if with_heads:
        yield from _heading("Models with heads", HEADS_TEXT, HEADS_COLUMNS, "|---|--:|--:|---|---|---|---|")
        yield from ((rows or {}).get(name) or row(name) for name in with_heads)


def _heading(title: str, text: str, columns: Iterable[str], rule: str) -> Iterable[str]:
    return ("", f"## {title}", "", text, "", f"| {' | '.join(columns)} |", rule)


def brings_heads(name: str) -> bool:
    """Whether the registered model `name` has heads."""
    from classyseg.registry import MODELS

    return bool(MODELS.entry(name).defaults.get("heads"))


def row(name: str) -> str:
    """The row of one registered model."""
    cells = _whole_model(name) if brings_heads(name) else _backbone(name)
    return f"| {' | '.join(cell or '-' for cell in (f'`{name}`', *cells))} |"


def _backbone(name: str) -> tuple[str, ...]:
    """Computes a row; the cost is that of one image of 224 x 224, without a classifier."""
    import torch

    from classyseg.complexity import complexity
    from classyseg.models import create_backbone
    from classyseg.models.meta import features_on_meta
    from classyseg.models.public_weights import public_weights
    from classyseg.registry import MODELS

    with torch.device("meta"):
        model = create_backbone(name).eval()
    cost = complexity(model, lambda: features_on_meta(model, TABLE_SIZE))
    blocks = ", ".join(
        f"`{block.name}`: {block.channels} / {block.stride or 'vectors'}" for block in model.blocks.values()
    )
    hints = get_type_hints(MODELS.entry(name).component.__init__)  # type: ignore[misc]
    strides = ", ".join(map(str, _choices(hints.get("output_stride"))))
    known = ", ".join(f"`{weights}`" for weights in public_weights(type(model), name))
    return (f"{cost.parameters / 1e6:.2f}", f"{cost.multiply_adds / 1e9:.2f}", blocks, strides, known)


def _choices(hint: Any) -> list[Any]:
    """The values that a `Literal` in an annotation allows."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [value for part in get_args(hint) for value in _choices(part)]


def _whole_model(name: str) -> tuple[str, ...]:
    """Computes a row; parameters count the backbone and all heads, weights are for the whole model."""
    import torch

    from classyseg.models import create_model
    from classyseg.models.encoding_models import ENCODING_MODELS
    from classyseg.models.public_weights import default_num_classes, public_weights
    from classyseg.registry import MODELS

    config: Any = MODELS.validate(name, placed=True)
    num_classes = default_num_classes(config.component, name)
    with torch.device("meta"):
        model = create_model(name, num_classes=num_classes or 1)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    heads = ", ".join(f"`{key}`: {head.name} of {', '.join(head.blocks)}" for key, head in config.heads.items())
    named = ENCODING_MODELS.get(name)
    backbone, dataset = (f"`{named.backbone}`", f"`{named.dataset}`") if named else ("", "")
    weights = ", ".join(f"`{key}`" for key, known in public_weights(type(model), name).items() if known.has_heads)
    return (f"{parameters / 1e6:.2f}", str(num_classes or ""), dataset, backbone, heads, weights)
