"""Every family against the installed reference: random weights go from the reference through our loader, all blocks are
compared in float64, and a table is printed for docs/parity.md.

    python tests/parity/compare.py [--pattern 'resnet*'] [--library timm] [--write docs/parity.md]

It needs an environment of its own, which CI does not have: classyseg, and whichever of the references shall be compared
(`pip install timm classy-vision torch-encoding paddlepaddle paddleseg`), and 9 GB of memory for the largest. References
that are not there are left out and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES
from references import Case

from classyseg.models import ClassyModel, create_backbone
from classyseg.models.load_weights import COMPUTED, match

LIMIT = 1e-5
MARKER = "<!-- the rest is written by tests/parity/compare.py -->"


@dataclass(frozen=True)
class Result:
    """How far apart the blocks are: the largest difference over the largest magnitude of the block."""

    case: Case
    blocks: int
    difference: float
    note: str = ""

    @property
    def is_over(self) -> bool:
        return not self.difference <= LIMIT  # also where it is no number

    def row(self) -> str:
        value = self.note or f"{self.difference:.1e}{' **over the limit**' if self.is_over else ''}"
        settings = ", ".join(f"{key}: {value}" for key, value in self.case.config.items()) or "-"
        cells = (f"`{self.case.name}`", settings, self.case.library, self.case.reference, str(self.blocks), value)
        return f"| {' | '.join(cells)} |"


def compare(case: Case) -> Result:
    torch.manual_seed(0)
    reference = case.build()
    with torch.device("meta"):  # all but what a model computes itself comes from the reference
        model: ClassyModel = create_backbone(case.name, **case.config)
    if any(COMPUTED.search(key) for key in model.state_dict()):
        model = create_backbone(case.name, **case.config)
    model.double().eval()
    state, report = match(model, reference.state())
    if report.problems():
        return Result(case, 0, float("inf"), f"weights do not fit: {report.problems()[:200]}")
    model.load_state_dict(state, strict=False, assign=True)
    differences: list[Tensor] = []
    for height, width in case.sizes:
        shape = (1, *model.input_shape(height, width))
        image = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with torch.no_grad():
            ours: Sequence[Tensor] = list(model(image).values())
            theirs = reference.blocks(image)
        if [tuple(x.shape) for x in ours] != [tuple(x.shape) for x in theirs]:
            shapes = f"{[tuple(x.shape) for x in ours]} and {[tuple(x.shape) for x in theirs]}"
            return Result(case, len(ours), float("inf"), f"other shapes: {shapes}")
        pairs = zip(ours, theirs, strict=True)
        differences += [(found - expected).abs().max() / expected.abs().max() for found, expected in pairs]
    return Result(case, len(ours), float(torch.stack(differences).max()))


def results(pattern: str, library: str) -> Iterator[Result]:
    missing = set()
    for case in CASES:
        if not fnmatch(case.name, pattern) or not fnmatch(case.library, library):
            continue
        if importlib.util.find_spec(case.module) is None:
            missing.add(case.module)
        else:
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
    over = []
    for result in results(arguments.pattern, arguments.library):
        over += [result] if result.is_over else []
        lines.append(result.row())
        print(result.row(), flush=True)
    if arguments.write:
        before = arguments.write.read_text(encoding="utf-8").partition(MARKER)[0]
        arguments.write.write_text(before + MARKER + "\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines) - 2} compared, {len(over)} over the limit")
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
