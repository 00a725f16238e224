"""The comparison without which no file is kept: the file, run by its own runtime, with the model, at many sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from classyseg.inference.exported.contract import DiffersError, Format, Run
from classyseg.inference.exported.facts import Checked, ExportFacts

if TYPE_CHECKING:
    from classyseg.exporting.graph import Reference


@dataclass(frozen=True)
class Case:
    """Images (N, ...) for a comparison; `of` says what they are."""

    images: Tensor
    of: str = "noise"


def sizes_for(traced: tuple[int, int], facts: ExportFacts) -> list[tuple[int, int]]:
    """Sizes that differ from `traced` in both axes, and most of them in both remainders by 32.

    The first is the smallest, if it is not `traced` itself; the last is the largest, where there is one.

    Where sides must be multiples of a number, remainders are those of the number of multiples.
    """
    unit = facts.multiple
    step = max(1, unit // 32)
    found: list[tuple[int, int]] = []
    low = tuple(max(unit, -(-side // unit) * unit) for side in facts.smallest)

    def moved(axis: int, by: int) -> int:
        by = by if traced[axis] + by >= low[axis] else -by
        return traced[axis] + by

    wanted = [low, *((moved(0, step * dy), moved(1, step * dx)) for dy, dx in OFFSETS)]
    for height, width in wanted:
        size = (max(low[0], height // unit * unit), max(low[1], width // unit * unit))
        fits = facts.largest is None or (size[0] <= facts.largest[0] and size[1] <= facts.largest[1])
        other = size[0] != traced[0] and size[1] != traced[1]
        if (other or size == low != traced) and size not in found and fits:
            found.append(size)
    return found if facts.largest is None or facts.largest in found else [*found, facts.largest]


OFFSETS = ((-31, 37), (5, -43), (67, 1), (-19, -59), (34, 99), (130, -14), (-46, 70), (95, 163), (192, 256))
"""Added to the traced size: taller and smaller, wider and narrower, with other remainders by 2, 4, 8, 16 and 32."""


def noise(facts: ExportFacts, count: int, size: Sequence[int], seed: int, white: float = 255.0) -> Tensor:
    """Images of noise in the type of the file's input."""
    generator = torch.Generator().manual_seed(seed)
    frames = () if facts.frames is None else (facts.frames,)
    shape = (count, facts.channels, *frames, *size)
    if facts.input_kind == "normalized":
        return torch.randn(shape, generator=generator)
    values = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return values if facts.image_type == "uint8" else values.float() * (white / 255)


def compare(run: Run, reference: Reference, case: Case, row: Format, tolerance: float) -> Checked:
    """Compares scores or logits, within the `tolerance`, or labels: they may differ where the best scores are as close.

    Raises: `DiffersError` with the size and the difference, also where the file cannot be run.
    """
    images = case.images
    size = (images.shape[-2], images.shape[-1])
    place = f"at {size[0]} x {size[1]}, {len(images)} at once"

    def differs(what: str) -> DiffersError:
        error = DiffersError(f"--format {row.name}: {what}")
        error.size = size
        return error

    with torch.no_grad():
        expected = reference(images)
    try:
        found = run(images)
    except Exception as error:  # every runtime has errors of its own
        line = next(iter(str(error).splitlines()), "")
        raise differs(f"fails {place}: {type(error).__name__}: {line[:300]}") from None
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise differs(
            f"gives {tuple(found.shape)} of {found.dtype} {place}; the model gives "
            f"{tuple(expected.shape)} of {expected.dtype}"
        )
    if reference.output_kind != "labels":
        difference = _difference(found, expected)
        if not difference <= tolerance:
            raise differs(
                f"differs from the model by {difference:.3g} of the range of values {place}; accepted is {tolerance:g}"
            )
        return Checked(size=size, batch=len(images), difference=difference, of=case.of)
    unequal = found != expected
    close = _unsure(reference, images, tolerance) if unequal.any() else torch.zeros_like(unequal)
    wrong = int((unequal & ~close).sum())
    if wrong:
        raise differs(
            f"{wrong} of {unequal.numel()} labels differ from the model's {place}, where its best scores are not close"
        )
    return Checked(size=size, batch=len(images), labels=float(unequal.double().mean()), of=case.of)


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the range of the expected values; infinite for what is not finite."""
    found, expected = found.double(), expected.double()
    if not found.isfinite().all() or not expected.isfinite().all():
        return float("inf") if not torch.equal(found, expected) else 0.0
    spread = float(expected.max() - expected.min()) or float(expected.abs().max()) or 1.0
    return float((found - expected).abs().max()) / spread


def _unsure(reference: Reference, images: Tensor, tolerance: float) -> Tensor:
    """Where the two best scores of the model are closer than the tolerance."""
    with torch.no_grad():
        scores = reference(images, "scores")
    if reference.predictor.multi_label:
        return (scores - 0.5).abs() < tolerance
    if scores.shape[1] == 1:
        return torch.zeros(scores[:, 0].shape, dtype=torch.bool)
    best = scores.topk(2, dim=1).values
    return best[:, 0] - best[:, 1] < tolerance


def cases(facts: ExportFacts, traced: tuple[int, int], batch: int, images: Iterable[Tensor]) -> Iterator[Case]:
    """What a file is compared on: noise at many sizes, one image and `batch` at once; and `images` of the val set."""
    count = facts.batch
    yield Case(noise(facts, count or batch, traced, 0))
    for i, size in enumerate(sizes_for(traced, facts), start=1):
        yield Case(noise(facts, count or (batch if i % 2 else 1), size, i))
    for image in images:
        yield Case(image[None].expand(count or 1, *image.shape).contiguous(), of="val")
