"""Which heads export in which formats: the largest difference at each size, or the reason why not.

    python benchmarks/export_heads.py --write docs/export.md [--head psp --format onnx]

Each head is built with random weights on a small backbone, exported with `--output-kind scores` in every format of
`classyseg.inference.exported.formats`, and compared as `classyseg export` compares. With --head or --format only these
rows are made anew; the others of the page stay.

The rows `int8.xml` and `int8.onnx` are of 8 bits. Ranges come from images of noise, and differences are those of the 8
bits: such a file is kept by the number of its run on val, which random weights do not have.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classyseg.errors import ConfigError
from classyseg.exporting import export
from classyseg.exporting.check import OFFSETS
from classyseg.exporting.export import TRACED
from classyseg.exporting.int8 import Quantization
from classyseg.inference import Predictor
from classyseg.inference.exported.formats import FORMATS
from classyseg.models import build_model
from classyseg.registry import HEADS

BEGIN, END = "<!-- heads, written by `benchmarks/export_heads.py --write` -->", "<!-- end -->"
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
NUM_CLASSES = 64
"""As many as the deepest block has channels: the head `identity` wants that."""
INT8 = ("int8.xml", "int8.onnx")
ROWS = (*FORMATS, *INT8)
CALIBRATION_IMAGES = 8
BLOCKS = (["stage4"], ["stage3", "stage4"], ["stage1", "stage2", "stage3", "stage4"])


def predictor_for(head: str) -> Predictor:
    """The head on the last block, or on as many as it wants, with random weights."""
    problems = []
    for blocks in BLOCKS:
        torch.manual_seed(0)
        try:
            model = build_model({**BACKBONE, "heads": {"main": {"name": head, "blocks": blocks}}}, NUM_CLASSES)
            for parameter in model.heads.parameters():
                if not parameter.any():  # what starts at zero would hide what is behind it
                    torch.nn.init.normal_(parameter, std=0.1)
            return Predictor(model, classes=[f"class {i}" for i in range(NUM_CLASSES)])
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError(f"{head}: {problems}")


def cells(head: str, name: str, folder: Path) -> list[str]:
    """The difference at each size, or the reason."""
    kind, dot, end = name.partition(".")
    suffix = dot + end or FORMATS[kind].suffix
    try:
        found = export(
            predictor_for(head),
            format=kind,
            output=folder / f"{head}{suffix}",
            quantization=None if kind in FORMATS else noise_only(),
            input_kind="normalized",
            output_kind="scores",
            overwrite=True,
        )
    except ConfigError as error:
        return [str(error).replace("|", "\\|").replace("\n", " ")[:300]]
    return [f"{check.difference:.0e}" for check in found.facts.checks]


def noise_only() -> Quantization:
    """Calibration by noise, and no number that could drop."""
    values = np.random.default_rng(0).integers(0, 256, (CALIBRATION_IMAGES, *TRACED, 3), dtype=np.uint8)
    return Quantization(list(values), measure=lambda _: ("none", 0.0))


def lines_of(text: str) -> dict[tuple[str, str], str]:
    """The rows of the table that stands in a page, by head and format."""
    inside = text.partition(BEGIN)[2].partition(END)[0]
    rows = [line for line in inside.splitlines() if line.startswith("| `")]
    keys = [tuple(cell.strip(" `") for cell in line.split("|")[1:3]) for line in rows]
    return {(key[0], key[1]): row for key, row in zip(keys, rows, strict=True)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, required=True, metavar="PAGE")
    parser.add_argument("--head", action="append", default=[], choices=HEADS.names())
    parser.add_argument("--format", action="append", default=[], choices=ROWS)
    parsed = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    text = parsed.write.read_text(encoding="utf-8")
    rows: dict[tuple[str, str], str] = lines_of(text)
    with tempfile.TemporaryDirectory() as folder:
        for head in parsed.head or HEADS.names():
            for name in parsed.format or ROWS:
                found: list[Any] = cells(head, name, Path(folder))
                rows[head, name] = f"| `{head}` | `{name}` | {' | '.join(found)} |"
                print(rows[head, name], file=sys.stderr, flush=True)
                text = parsed.write.read_text(encoding="utf-8")
                parsed.write.write_text(with_table(text, rows), encoding="utf-8")


def with_table(text: str, rows: dict[tuple[str, str], str]) -> str:
    """The page with these rows in the place of its table."""
    order = {name: i for i, name in enumerate(ROWS)}
    kept = [rows[key] for key in sorted(rows, key=lambda key: (key[0], order.get(key[1], len(order)), key[1]))]
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    others = [(TRACED[0] + dy, TRACED[1] + dx) for dy, dx in OFFSETS]
    names = [f"{height} x {width}" for height, width in (TRACED, *others)]
    columns = [names[0], "smallest", *names[1:]]
    head = ["| head | format | " + " | ".join(columns) + " |", "|---|---|" + "--:|" * len(columns)]
    return f"{before}{BEGIN}\n\n" + "\n".join([*head, *kept]) + f"\n\n{END}{after}"


if __name__ == "__main__":
    main()
