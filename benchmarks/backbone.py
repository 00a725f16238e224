"""Backbones: memory of training with checkpointed or compressed activations, fused inference, and each family's
forward pass against the library whose layers or structure it has.

Both sides of a comparison run in turn in one go, and ratios are printed: memory in fresh processes, time in one.
    python benchmarks/backbone.py memory | fuse | forward [--pattern 'resnet*']
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

MEMORY = ("plain", "checkpointing", "bfloat16", "int8")
RETURNS_FREED = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""The C library gives freed blocks back at once, so that the process's peak is that of the tensors alive."""
TORCHVISION = {
    "resnet50": "resnet50",
    "resnext50_32x4d": "resnext50_32x4d",
    "wide_resnet50_2": "wide_resnet50_2",
    "densenet121": "densenet121",
    "efficientnet_b0": "efficientnet_b0",
    "mobilenet_v2": "mobilenet_v2",
    "regnet_y_800mf_torchvision": "regnet_y_800mf",
    "regnet_x_800mf": "regnet_x_800mf",
    "convnext_tiny": "convnext_tiny",
    "swin_t": "swin_t",
    "swin_v2_t": "swin_v2_t",
    "vit_b_16": "vit_b_16",
}
TIMM = {
    "resnest50": "resnest50d",
    "resnet50s": "resnet50s",
    "resnet50d": "resnet50d",
    "hrnet_w18": "hrnet_w18",
    "xception65_deeplab": "xception65",
    "vit_base_r50_s16": "vit_base_r50_s16_224",
}
"""Our name and the name of the same network in the library."""
OPTIONS: dict[str, dict[str, Any]] = {
    "hrnet_w18": {"padding": "symmetric", "fuse_upsample": "nearest"},
    "xception65_deeplab": {"output_stride": 32},
}
"""What makes our network the library's where our defaults are another reference's."""


def measure_memory(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One forward and backward in this process: MB that the peak lies above the start, and a gradient's numbers."""
    import torch

    from classyseg.models import build_model

    options: dict[str, Any] = {"checkpointing": {"activation_checkpointing": True}}.get(side, {})
    if side in ("bfloat16", "int8"):
        options = {"activation_compression": side}
    torch.manual_seed(0)
    model = build_model({"name": arguments.model, **options}).train()

    def step(size: int) -> None:
        generator = torch.Generator().manual_seed(1)
        deepest = list(model(torch.randn(1, 3, size, size, generator=generator)).values())[-1]
        (deepest * torch.linspace(-1, 1, deepest.numel()).view_as(deepest)).sum().backward()

    step(64)  # the libraries' own buffers, and the gradients
    model.zero_grad(set_to_none=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    step(arguments.size)
    seconds = time.perf_counter() - started
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch.save(gradients, f"{arguments.folder}/{side}.pt")
    return {"megabytes": extra, "seconds": seconds}


def memory(arguments: argparse.Namespace) -> None:
    import tempfile

    import torch

    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in MEMORY}
        for _ in range(arguments.repeats):
            for side in MEMORY:
                command = [sys.executable, *sys.argv, "--side", side, "--folder", folder]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=RETURNS_FREED)
                found[side].append(json.loads(output.stdout.splitlines()[-1]))
        plain = torch.load(f"{folder}/plain.pt", weights_only=True)
        for side in MEMORY[1:]:
            other = torch.load(f"{folder}/{side}.pt", weights_only=True)
            difference = sum((a - b).double().square().sum() for a, b in zip(plain, other, strict=True)).sqrt()
            norm = sum(a.double().square().sum() for a in plain).sqrt()
            ratios = {
                key: statistics.median(row[key] for row in found[side])
                / statistics.median(row[key] for row in found["plain"])
                for key in ("megabytes", "seconds")
            }
            print(
                f"{arguments.model} {arguments.size} x {arguments.size}, {side} / plain: peak extra memory "
                f"{ratios['megabytes']:.3f}, time {ratios['seconds']:.3f}, "
                f"difference of the gradients / their norm {difference / norm:.1e}"
            )


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int) -> tuple[float, float, float]:
    """The median of the ratios of times, ours / theirs, run in turn, with its quartiles."""
    ratios = []
    for i in range(pairs + 2):
        times = {}
        for side in (ours, theirs) if i % 2 else (theirs, ours):
            started = time.perf_counter()
            side()
            times[side] = time.perf_counter() - started
        if i >= 2:
            ratios.append(times[ours] / times[theirs])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high


def fused(arguments: argparse.Namespace) -> None:
    import torch

    from classyseg.models import create_backbone, fuse

    for name in ("resnet18", "resnet50", "resnet101", "mobilenet_v2", "hrnet_w18", "regnet_x_400mf"):
        if not fnmatch(name, arguments.pattern):
            continue
        model = create_backbone(name).eval()
        fast = fuse(model)
        image = torch.randn(1, 3, arguments.size, arguments.size)
        with torch.inference_mode():
            expected, found = list(model(image).values())[-1], list(fast(image).values())[-1]
            error = (found - expected).abs().max() / expected.abs().max()
            middle, low, high = paired(lambda m=fast, x=image: m(x), lambda m=model, x=image: m(x), arguments.pairs)
        print(f"{name}: fused / plain time {middle:.3f} ({low:.3f}..{high:.3f}), difference {error:.1e}")


def forward(arguments: argparse.Namespace) -> None:
    import torch
    import torchvision

    from classyseg.models import create_backbone

    sides = [(ours, theirs, torchvision.models.get_model) for ours, theirs in TORCHVISION.items()]
    try:
        import timm

        sides += [(ours, theirs, timm.create_model) for ours, theirs in TIMM.items()]
    except ImportError:
        print("timm is not installed; its families are left out")
    for name, theirs, build in sides:
        if not fnmatch(name, arguments.pattern):
            continue
        ours, other = create_backbone(name, **OPTIONS.get(name, {})).eval(), build(theirs).eval()
        if "hrnet" in name:
            other = build(theirs, features_only=True, feature_location="").eval()
        image = torch.randn(1, 3, 224, 224)
        with torch.inference_mode():
            middle, low, high = paired(lambda m=ours, x=image: m(x), lambda m=other, x=image: m(x), arguments.pairs)
        print(f"{name}: ours / {build.__module__.split('.')[0]} time {middle:.3f} ({low:.3f}..{high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "fuse", "forward"))
    parser.add_argument("--model", default="resnet101", help="of memory")
    parser.add_argument("--size", type=int, default=512, help="of the image, of memory and fuse")
    parser.add_argument("--repeats", type=int, default=3, help="of memory")
    parser.add_argument("--pairs", type=int, default=20, help="of fuse and forward")
    parser.add_argument("--pattern", default="*", help="of fuse and forward")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=MEMORY, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.side:
        print(json.dumps(measure_memory(arguments.side, arguments)))
        return
    {"memory": memory, "fuse": fused, "forward": forward}[arguments.what](arguments)


if __name__ == "__main__":
    main()
