"""Every family against the installed reference: random weights go from the reference through our loader, all blocks are
compared in float64, and a table is printed for docs/parity.md.

    python tests/parity/compare.py [--pattern 'resnet*'] [--library timm] [--write docs/parity.md]

It needs an environment of its own, which CI does not have: classyseg, and whichever of the references shall be compared
(`pip install timm classy-vision torch-encoding paddlepaddle paddleseg`). References that are not there are left out and
named.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from references import CASES, Case, Reference

from classyseg.models import ClassyModel, create_backbone
from classyseg.models.weights import match

SIZES = ((96, 96), (97, 129))
LIMIT = 1e-5
MARKER = "<!-- the rest is written by tests/parity/compare.py -->"


@dataclass(frozen=True)
class Result:
    """How far apart the blocks are: the largest difference over the largest magnitude of the block."""

    case: Case
    blocks: int
    difference: float
    note: str = ""

    def row(self) -> str:
        value = self.note or f"{self.difference:.1e}{'' if self.difference <= LIMIT else ' **over the limit**'}"
        settings = ", ".join(f"{key}: {value}" for key, value in self.case.config.items()) or "-"
        cells = (f"`{self.case.name}`", settings, self.case.library, self.case.reference, str(self.blocks), value)
        return f"| {' | '.join(cells)} |"


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Running statistics and norms that an untrained network does not have; the rest as it was initialised."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if getattr(part, "running_var", None) is not None:
                part.running_mean.normal_(0, 0.1, generator=generator)
                part.running_var.uniform_(0.5, 1.5, generator=generator)
            if part.__class__.__name__.endswith(("Norm", "Norm2d", "Norm3d", "NormAct2d", "NormAct")):
                if getattr(part, "weight", None) is not None:
                    part.weight.uniform_(0.5, 1.0, generator=generator)
                if getattr(part, "bias", None) is not None:
                    part.bias.normal_(0, 0.1, generator=generator)


def compare(case: Case) -> Result:
    torch.manual_seed(0)
    reference: Reference = case.build()
    model: ClassyModel = create_backbone(case.name, **case.config)
    state, report = match(model, reference.state())
    if report.problems():
        return Result(case, 0, float("inf"), f"weights do not fit: {report.problems()[:200]}")
    model.load_state_dict(state, strict=False)
    model.double().eval()
    largest, blocks = 0.0, 0
    for height, width in case.sizes or SIZES:
        shape = (1, *model.input_shape(height, width))
        image = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with torch.no_grad():
            ours: Sequence[Tensor] = list(model(image).values())
            theirs = reference.blocks(image)
        if [tuple(x.shape) for x in ours] != [tuple(x.shape) for x in theirs]:
            shapes = f"{[tuple(x.shape) for x in ours]} and {[tuple(x.shape) for x in theirs]}"
            return Result(case, len(ours), float("inf"), f"other shapes: {shapes}")
        blocks = len(ours)
        for found, expected in zip(ours, theirs, strict=True):
            largest = max(largest, float((found - expected).abs().max() / expected.abs().max()))
    return Result(case, blocks, largest)


def results(pattern: str, library: str) -> Iterator[Result]:
    missing = set()
    for case in CASES:
        if not fnmatch(case.name, pattern) or not fnmatch(case.library, library):
            continue
        try:
            importlib.import_module(case.module)
        except ImportError:
            missing.add(case.module)
            continue
        yield compare(case)
    if missing:
        print(f"not installed, left out: {', '.join(sorted(missing))}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pattern", default="*")
    parser.add_argument("--library", default="*")
    parser.add_argument("--write", type=Path, help="a page whose text behind the marker is replaced by the table")
    arguments = parser.parse_args()
    lines = [
        "| backbone | config | library | its name | blocks | max difference / max magnitude |",
        "|---|---|---|---|--:|--:|",
    ]
    worst = 0.0
    for result in results(arguments.pattern, arguments.library):
        worst = max(worst, result.difference)
        lines.append(result.row())
        print(result.row(), flush=True)
    if arguments.write:
        before = arguments.write.read_text(encoding="utf-8").partition(MARKER)[0]
        arguments.write.write_text(before + MARKER + "\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines) - 2} compared, the worst {worst:.1e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
