"""A meter's update and the arg-max of logits against what other libraries do: CPU time, and the arg-max's memory.

`mmsegmentation` and `segmentation_models.pytorch` are their way of counting, written here: areas of predictions, masks
and their intersection by `torch.histc`, of the valid pixels or of each image. torchmetrics' own `MeanIoU` is measured
where it is installed. All sides of a case take turns on the same maps; their intersections are compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from classyseg.layers import argmax_at
from classyseg.meters import MeanIoUMeter

CASES = ((150, (512, 672)), (19, (1024, 2048)))
"""Classes and sizes of the maps."""
IGNORED = 255
SIDES = ("classyseg", "torch")
LIMITS = {"mmsegmentation": 0.2, "segmentation_models.pytorch": 0.2, "torchmetrics": 0.02}

Update = Callable[[Tensor, Tensor], Tensor]


def maps(classes: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A prediction that is right in about 80 % of the pixels, and a mask of smooth regions with 5 % ignored ones."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, classes, size[0] // 64, size[1] // 64, generator=generator)
    target = argmax_at(coarse, size)
    noise = torch.randint(0, classes, target.shape, generator=generator)
    prediction = torch.where(torch.rand(target.shape, generator=generator) < 0.8, target, noise)
    return prediction, target.masked_fill(torch.rand(target.shape, generator=generator) < 0.05, IGNORED)


def areas(labels: Tensor, classes: int) -> Tensor:
    return torch.histc(labels.float(), bins=classes, min=0, max=classes - 1)


def by_valid_pixels(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """mmsegmentation's way: three areas of the valid pixels. Gives those of intersections."""
    valid = target != IGNORED
    prediction, target = prediction[valid], target[valid]
    both = areas(prediction[prediction == target], classes).cpu()
    found, true = areas(prediction, classes).cpu(), areas(target, classes).cpu()
    _ = found + true - both
    return both


def by_image(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """segmentation_models.pytorch's way: the four outcomes of each image. Gives the true positives of all."""
    ignored = target == IGNORED
    prediction, target = torch.where(ignored, -1, prediction), torch.where(ignored, -1, target)
    num_ignored = ignored.flatten(1).sum(1)
    outcomes = torch.zeros(4, len(target), classes, dtype=torch.int64)
    for i, (found, true) in enumerate(zip(prediction, target, strict=True)):
        both = areas(torch.where(found == true, true, -1), classes)
        only_found, only_true = areas(found, classes) - both, areas(true, classes) - both
        neither = true.numel() - both - only_found - only_true - num_ignored[i]
        outcomes[:, i] = torch.stack([both, only_found, only_true, neither]).long()
    return outcomes[0].sum(0)


def updates(classes: int) -> dict[str, Update]:
    """By side, what counts a batch; each gives the intersections by class of this batch, or nothing to compare."""
    meter = MeanIoUMeter(tuple(map(str, range(classes))), IGNORED)

    def ours(prediction: Tensor, target: Tensor) -> Tensor:
        meter.reset()
        meter.update(prediction, target)
        return meter.matrix.diag()

    sides: dict[str, Update] = {
        "classyseg": ours,
        "mmsegmentation": lambda prediction, target: by_valid_pixels(prediction, target, classes),
        "segmentation_models.pytorch": lambda prediction, target: by_image(prediction, target, classes),
    }
    try:
        from torchmetrics.segmentation import MeanIoU
    except ImportError:
        return sides
    theirs = MeanIoU(num_classes=classes, input_format="index")

    def torchmetrics(prediction: Tensor, target: Tensor) -> Tensor:
        theirs.update(prediction, target.clamp(max=classes - 1))  # it knows no ignored label
        return torch.empty(0)

    return sides | {"torchmetrics": torchmetrics}


def compare_updates(repeats: int) -> None:
    for classes, size in CASES:
        prediction, target = maps(classes, size)
        sides = updates(classes)
        expected = sides["classyseg"](prediction, target)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, update in sides.items():
                started = time.process_time()
                found = update(prediction, target)
                seconds[name].append(time.process_time() - started)
                assert not len(found) or torch.equal(found.long(), expected), name
        print(f"update, {classes} classes, {size[0]} x {size[1]}: median CPU ms")
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, value in medians.items():
            ratio = (
                "" if name == "classyseg" else f", ratio {medians['classyseg'] / value:.4f} (at most {LIMITS[name]})"
            )
            print(f"  {name}: {1000 * value:.2f}{ratio}")


def measure_argmax(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    """The arg-max in this process: CPU seconds, and MB that the peak lies above the start."""
    generator = torch.Generator().manual_seed(0)
    low = [length // arguments.stride for length in arguments.size]
    logits = torch.randn(1, arguments.classes, *low, generator=generator)

    def run(logits: Tensor, size: tuple[int, int]) -> Tensor:
        if side == "classyseg":
            return argmax_at(logits, size)
        return functional.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)

    run(logits[:, :2, :4, :4], (8, 8))  # the libraries' own buffers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    labels = run(logits, tuple(arguments.size))
    seconds = time.process_time() - started
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    places = torch.arange(labels.numel()) % 8191
    return {"seconds": seconds, "megabytes": extra, "checksum": int((labels.flatten() * places).sum())}


def compare_argmax(arguments: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(arguments.repeats):
        for side in SIDES:
            output = subprocess.run([sys.executable, *sys.argv, "--side", side], check=True, capture_output=True)
            found[side].append(json.loads(output.stdout.splitlines()[-1]))
    assert len({run["checksum"] for runs in found.values() for run in runs}) == 1
    height, width = arguments.size
    print(f"arg-max, {arguments.classes} classes, stride {arguments.stride} to {height} x {width}: equal labels")
    for key, limit in (("seconds", 0.6), ("megabytes", 0.2)):
        ours, theirs = (statistics.median(run[key] for run in found[side]) for side in SIDES)
        print(f"  {key}: classyseg {ours:.4g}, torch {theirs:.4g}, ratio {ours / theirs:.3f} (at most {limit})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048))
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.side:
        print(json.dumps(measure_argmax(arguments.side, arguments)))
        return
    compare_argmax(arguments)  # first: a process starts with the peak memory of the one that started it
    compare_updates(arguments.repeats)


if __name__ == "__main__":
    main()
