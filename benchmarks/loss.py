"""`cross_entropy` against `interpolate` + `F.cross_entropy`: time and peak extra memory of forward and backward.

Each side runs in fresh processes, in turn; the medians' ratios are printed. The results are compared first.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

SIDES = ("classyseg", "torch")


def measure(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One forward and backward of `side` in this process: seconds, and MB that the peak lies above the start."""
    import torch
    from torch.nn import functional

    from classyseg.losses import CrossEntropyLoss

    torch.manual_seed(0)
    size = (arguments.size, arguments.size)
    low = arguments.size // arguments.stride
    logits = torch.randn(arguments.batch, arguments.classes, low, low, requires_grad=True)
    target = torch.randint(0, arguments.classes, (arguments.batch, *size))
    target[torch.rand(target.shape) < 0.1] = 255
    ours = CrossEntropyLoss(255)

    def run(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if side == "classyseg":
            return ours(logits, target)
        return functional.cross_entropy(functional.interpolate(logits, size, mode="bilinear"), target, ignore_index=255)

    # The libraries' own buffers, on a small case.
    run(torch.randn(1, 3, 4, 4, requires_grad=True), torch.zeros(1, *size, dtype=torch.int64)).backward()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(arguments.repeats):
        for side in SIDES:
            output = subprocess.run([sys.executable, *sys.argv, "--side", side], check=True, capture_output=True)
            found[side].append(json.loads(output.stdout.splitlines()[-1]))
    ours, theirs = (found[side][0] for side in SIDES)
    for key, tolerance in (("loss", 1e-6), ("gradient_norm", 1e-5), ("gradient_probe", 1e-4)):
        difference = abs(ours[key] - theirs[key]) / abs(theirs[key])
        print(f"{key}: {ours[key]:.9g} and {theirs[key]:.9g}, relative difference {difference:.1e}")
        assert difference <= tolerance, key
    for key in ("seconds", "megabytes"):
        medians = [statistics.median(run[key] for run in found[side]) for side in SIDES]
        ranges = [f"{min(r[key] for r in found[side]):.3g}..{max(r[key] for r in found[side]):.3g}" for side in SIDES]
        print(
            f"{key}: classyseg {medians[0]:.4g} ({ranges[0]}), torch {medians[1]:.4g} ({ranges[1]}), "
            f"ratio {medians[0] / medians[1]:.3f}"
        )


if __name__ == "__main__":
    main()
