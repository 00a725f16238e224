"""Every pixel loss against its formula on logits of full size: time and peak extra memory of forward and backward.

Each side runs in fresh processes, in turn; the medians' ratios are printed. The results are compared first. With
`--busy`, another process keeps one core busy meanwhile.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIDES = ("classyseg", "full size")
LOSSES = (
    "cross_entropy",
    "focal",
    "ohem_cross_entropy",
    "dice",
    "tversky",
    "boundary",
    "soft_target_cross_entropy",
    "barron",
    "lovasz_softmax",
)
BUSY_PROMISES = {"cross_entropy": 0.4}
"""At most so much of the time of the formula beside a busy core; 1 for the others."""
BLOCK = 16
"""The side of the squares of one class that the masks are made of, in pixels."""


def measure(name: str, side: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One forward and backward of `side` in this process: seconds, and MB that the peak lies above the start."""
    import torch

    from classyseg.losses import BoundaryLoss, build_loss

    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from full_size_losses import full_size

    torch.manual_seed(0)
    low, blocks = arguments.size // arguments.stride, arguments.size // BLOCK
    logits = torch.randn(arguments.batch, arguments.classes, low, low, requires_grad=True)
    target = torch.randint(0, arguments.classes, (arguments.batch, blocks, blocks))
    target = target.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    target[torch.rand(target.shape) < 0.1] = 255
    ours = build_loss(name, 255)

    def run(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if side == "classyseg":
            return ours(logits, target)
        if not isinstance(ours, BoundaryLoss):
            return full_size(name, logits, target)
        rows = slice(0, target.shape[1])
        present = [labels[labels != 255].unique() for labels in target]
        weights = [
            ours.distances(*pair, logits.shape[1]) for pair in zip(target, [rows] * len(target), present, strict=True)
        ]
        return full_size(name, logits, target, distances=torch.stack(weights))

    # The libraries' own buffers, on a small case.
    run(torch.randn(1, 3, 4, 4, requires_grad=True), torch.zeros(1, 16, 16, dtype=torch.int64)).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    loss = run(logits, target)
    loss.backward()
    seconds = time.perf_counter() - started
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert logits.grad is not None
    weights = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)
    return {
        "seconds": seconds,
        "megabytes": extra,
        "loss": loss.item(),
        "gradient_norm": logits.grad.double().norm().item(),
        "gradient_probe": (logits.grad.double() * weights).sum().item(),
    }


@contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """Within it, a process of our own computes without a pause."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def compare(name: str, repeats: int, *, busy: bool) -> None:
    """Measures both sides of a loss `repeats` times in turn and prints the ratios."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            command = [sys.executable, *sys.argv, "--loss", name, "--side", side]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            found[side].append(json.loads(output.stdout.splitlines()[-1]))
    ours, theirs = (found[side][0] for side in SIDES)
    for key, scale, tolerance in (
        ("loss", abs(theirs["loss"]), 1e-5),
        ("gradient_norm", theirs["gradient_norm"], 1e-4),
        ("gradient_probe", theirs["gradient_norm"], 1e-2),
    ):
        assert abs(ours[key] - theirs[key]) <= tolerance * scale, (name, key, ours[key], theirs[key])
    texts = []
    for key, unit, promise in (
        ("seconds", "s", f" (at most {BUSY_PROMISES.get(name, 1.0)})" if busy else ""),
        ("megabytes", "MB", ""),
    ):
        medians = [statistics.median(run[key] for run in found[side]) for side in SIDES]
        texts.append(f"{medians[0]:.3g} / {medians[1]:.4g} {unit} = {medians[0] / medians[1]:.3f}{promise}")
    print(f"{name}: time {texts[0]}; memory {texts[1]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loss", choices=LOSSES, help="only this one")
    parser.add_argument("--busy", action="store_true", help="beside a process that keeps a core busy")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.loss, arguments.side, arguments)))
        return
    with busy_core(arguments.busy):
        for name in [arguments.loss] if arguments.loss else LOSSES:
            compare(name, arguments.repeats, busy=arguments.busy)


if __name__ == "__main__":
    main()
