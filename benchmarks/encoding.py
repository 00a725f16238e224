"""The encoding layer against its definition, a residual for each position and codeword: peak extra memory and time.

Each side runs a forward and a backward pass in fresh processes, in turn; the medians' ratios are printed. The results
are compared first.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

SIDES = ("classyseg", "naive")
LIMIT = 0.1
"""Of the naive form's memory, at the default sizes."""


def measure(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One forward and backward of `side` in this process: seconds, and MB that the peak lies above the start."""
    import torch

    from classyseg.layers import Encoding

    torch.manual_seed(0)
    layer = Encoding(arguments.channels, arguments.codes)
    x = torch.randn(arguments.batch, arguments.channels, arguments.size, arguments.size, requires_grad=True)

    def run(x: torch.Tensor) -> torch.Tensor:
        if side == "classyseg":
            return layer(x)
        residuals = x.flatten(2).transpose(1, 2).unsqueeze(2) - layer.codewords  # (N, L, K, D)
        weights = (layer.scale * residuals.square().sum(3)).softmax(2)
        return (weights.unsqueeze(3) * residuals).sum(1)

    run(torch.randn(1, arguments.channels, 4, 4)).sum().backward()  # the libraries' own buffers
    layer.zero_grad()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    codes = run(x)
    codes.square().mean().backward()
    seconds = time.perf_counter() - started
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    gradients = [x.grad, layer.codewords.grad, layer.scale.grad]
    norms = {f"gradient_norm_{i}": g.double().norm().item() for i, g in enumerate(gradients) if g is not None}
    return {"seconds": seconds, "megabytes": extra, "codes_norm": codes.double().norm().item(), **norms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--codes", type=int, default=32)
    parser.add_argument("--size", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(arguments.repeats):
        for side in SIDES:
            command = [sys.executable, *sys.argv, "--side", side]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            found[side].append(json.loads(output.stdout.splitlines()[-1]))
    ours, theirs = (found[side][0] for side in SIDES)
    for key in [key for key in theirs if "norm" in key]:
        assert abs(ours[key] - theirs[key]) <= 1e-4 * abs(theirs[key]), (key, ours[key], theirs[key])
    for key, unit, limit in (("megabytes", "MB", f" (at most {LIMIT})"), ("seconds", "s", "")):
        medians = [statistics.median(run[key] for run in found[side]) for side in SIDES]
        print(f"{key}: {medians[0]:.3g} / {medians[1]:.4g} {unit} = {medians[0] / medians[1]:.3f}{limit}", flush=True)


if __name__ == "__main__":
    main()
