"""Which heads and backbones export in which formats: the largest difference at each size, or the reason why not.

    python benchmarks/exports.py heads --write docs/export.md [--of psp --format onnx]
    python benchmarks/exports.py backbones --write docs/export.md

Each head is built with random weights on a small backbone, and reads as many blocks as it takes. Of each family of
backbones the variant with the fewest parameters is built, or a shorter one, with the head `fcn` on its last block. They
are exported with `--output-kind scores` in every format of `classyseg.inference.exported.formats`, and compared as
`classyseg export` compares. With --of or --format only these rows are made anew; the others of the page stay.

The rows `int8.xml` and `int8.onnx` are of 8 bits. Ranges come from images of noise, and differences are those of the 8
bits: such a file is kept by the number of its run on val, which random weights do not have. Backbones have none.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from classyseg.errors import ConfigError
from classyseg.exporting import export
from classyseg.exporting.check import OFFSETS
from classyseg.exporting.export import TRACED
from classyseg.exporting.int8 import Quantization
from classyseg.inference import Predictor
from classyseg.inference.exported.formats import FORMATS
from classyseg.models import ClassyModel, build_model, list_models
from classyseg.models.encoding_models import ENCODING_MODELS
from classyseg.registry import HEADS, MODELS

BACKBONE = {
    "name": "anynet",
    "depths": [1, 1, 1, 1],
    "widths": [16, 32, 48, 64],
    "group_widths": [16, 16, 16, 16],
    "bottleneck_multipliers": [1.0, 1.0, 1.0, 1.0],
    "strides": [2, 2, 2, 2],
    "stem_type": "simple_stem_in",
    "stem_width": 16,
    "use_se": False,
}
END = "<!-- end -->"
NUM_CLASSES = 64
"""As many as the deepest block has channels: the head `identity` wants that."""
INT8 = ("int8.xml", "int8.onnx")
ROWS = (*FORMATS, *INT8)
CALIBRATION_IMAGES = 8
LARGEST = (512, 512)
"""Of formats that have a largest size: attention between all positions of a map at stride 4 takes 1 GB there."""
BLOCKS = (["stage1", "stage2", "stage3", "stage4"], ["stage3", "stage4"], ["stage4"])
SHORTER: dict[str, dict[str, Any]] = {
    "densenet121": {"num_blocks": [2, 3, 2, 2]},
    "resnest50": {"depths": [1, 1, 1, 1]},
    "wide_resnet38": {"width": 16, "depths": [1, 1, 1, 1, 1, 1]},
    "plain_unet": {"channels": 16},
    "hrnet_w18_small_v1": {"num_blocks": [[1], [1, 1], [1, 1, 1], [1, 1, 1, 1]]},
}
"""Of these families a smaller one than the smallest name: each kind of their blocks is in it."""
OTHER_KINDS = ("resnet18", "resnet50", "swin_v2_t")
"""What has other blocks than the smallest one of its family."""


def predictor_for_head(head: str) -> Predictor:
    """The head on as many blocks as it takes."""
    problems = []
    for blocks in BLOCKS:
        torch.manual_seed(0)
        try:
            model = build_model({**BACKBONE, "heads": {"main": {"name": head, "blocks": blocks}}}, NUM_CLASSES)
            return predictor_of(model, model.heads)
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError(f"{head}: {problems}")


def predictor_for_backbone(name: str) -> Predictor:
    """The backbone with the head `fcn` on its last block."""
    torch.manual_seed(0)
    config = {"name": name, **SHORTER.get(name, {})}
    last = list(build_model(config).blocks)[-1]
    model = build_model({**config, "heads": {"main": {"name": "fcn", "blocks": [last]}}}, NUM_CLASSES)
    return predictor_of(model, model)


def predictor_of(model: ClassyModel, opened: nn.Module) -> Predictor:
    """Of a model with random weights, also where `opened` starts with zeros: they would hide what is behind them."""
    for parameter in opened.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return Predictor(model, classes=[f"class {i}" for i in range(NUM_CLASSES)])


def variants() -> dict[type, list[str]]:
    """The names of each family of models that need no config."""
    found: dict[type, list[str]] = {}
    for name in list_models():
        entry, fields = MODELS.entry(name), MODELS.config_model(name).model_fields
        has_defaults = not any(field.is_required() for key, field in fields.items() if key != "name")
        if has_defaults and name not in ENCODING_MODELS and entry.distribution == "classyseg":
            found.setdefault(entry.component, []).append(name)
    return found


def on_meta(name: str) -> ClassyModel:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return build_model({"name": name, **SHORTER.get(name, {})})


def reads_images(name: str) -> bool:
    """Whether its input is (N, C, H, W), and so its maps can be labelled."""
    return len(on_meta(name).input_shape(64, 64)) == 3


def smallest_of_families() -> list[str]:
    """Of each family of backbones that read images, the variant with the fewest parameters."""
    smallest = [
        min(names, key=lambda name: (sum(p.numel() for p in on_meta(name).parameters()), -len(name)))
        for names in variants().values()
        if reads_images(names[0])
    ]
    return sorted({*smallest, *OTHER_KINDS})


class Table(NamedTuple):
    """A table of the page: what its rows are of, and in which formats."""

    kind: str
    names: Callable[[], Sequence[str]]
    predictor_for: Callable[[str], Predictor]
    formats: Sequence[str]

    @property
    def begin(self) -> str:
        return f"<!-- {self.kind}s, written by `benchmarks/exports.py {self.kind}s --write` -->"


TABLES = {
    "heads": Table("head", HEADS.names, predictor_for_head, ROWS),
    "backbones": Table("backbone", smallest_of_families, predictor_for_backbone, ("torch_export", "onnx", "openvino")),
}


def cells(predictor: Predictor, name: str, path: Path) -> list[str]:
    """The difference at each size, or the reason."""
    kind, dot, end = name.partition(".")
    try:
        found = export(
            predictor,
            format=kind,
            output=path.with_suffix(dot + end or FORMATS[kind].suffix),
            quantization=None if kind in FORMATS else noise_only(),
            input_kind="normalized",
            output_kind="scores",
            overwrite=True,
            **({"largest": LARGEST} if kind in FORMATS and FORMATS[kind].bounded else {}),
        )
    except ConfigError as error:
        return [str(error).replace("|", "\\|").replace("\n", " ")[:300]]
    values = [f"{check.difference:.0e}" for check in found.facts.checks]
    height, width = found.facts.smallest
    values[1] += f" ({height} x {width})"
    return values if found.facts.largest else [*values, "-"]


def noise_only() -> Quantization:
    """Calibration by noise, and no number that could drop."""
    values = np.random.default_rng(0).integers(0, 256, (CALIBRATION_IMAGES, *TRACED, 3), dtype=np.uint8)
    return Quantization(list(values), measure=lambda _: ("none", 0.0))


def lines_of(text: str, table: Table) -> dict[tuple[str, str], str]:
    """The rows of the table that stands in a page, by name and format."""
    inside = text.partition(table.begin)[2].partition(END)[0]
    rows = [line for line in inside.splitlines() if line.startswith("| `")]
    keys = [tuple(cell.strip(" `") for cell in line.split("|")[1:3]) for line in rows]
    return {(key[0], key[1]): row for key, row in zip(keys, rows, strict=True)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--write", type=Path, required=True, metavar="PAGE")
    parser.add_argument("--of", action="append", default=[], metavar="NAME", help="a head or a backbone")
    parser.add_argument("--format", action="append", default=[], choices=ROWS)
    parsed = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    table = TABLES[parsed.table]
    with tempfile.TemporaryDirectory() as folder:
        for name in parsed.of or table.names():
            for kind in parsed.format or table.formats:
                found = cells(table.predictor_for(name), kind, Path(folder) / name)
                text = parsed.write.read_text(encoding="utf-8")
                rows = lines_of(text, table)
                rows[name, kind] = f"| `{name}` | `{kind}` | {' | '.join(found)} |"
                print(rows[name, kind], file=sys.stderr, flush=True)
                parsed.write.write_text(with_rows(text, rows, table), encoding="utf-8")


def with_rows(text: str, rows: dict[tuple[str, str], str], table: Table) -> str:
    """The page with these rows in the place of its table."""
    order = {name: i for i, name in enumerate(ROWS)}
    kept = [rows[key] for key in sorted(rows, key=lambda key: (key[0], order.get(key[1], len(order)), key[1]))]
    before, _, rest = text.partition(table.begin)
    after = rest.partition(END)[2]
    others = [(TRACED[0] + dy, TRACED[1] + dx) for dy, dx in OFFSETS]
    names = [f"{height} x {width}" for height, width in (TRACED, *others)]
    columns = [names[0], "smallest", *names[1:], "largest"]
    head = [f"| {table.kind} | format | " + " | ".join(columns) + " |", "|---|---|" + "--:|" * len(columns)]
    return f"{before}{table.begin}\n\n" + "\n".join([*head, *kept]) + f"\n\n{END}{after}"


if __name__ == "__main__":
    main()
