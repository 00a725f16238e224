"""Prediction against what it stands for, written out here: sliding windows, whole images, and a budget of memory.

    python benchmarks/inference.py windows   # against mmsegmentation's `slide_inference`: time and peak memory
    python benchmarks/inference.py whole     # CamVid's images against a bare loop of model + arg-max: time
    python benchmarks/inference.py budget    # one image of 4096 x 8192 and 150 classes: peak memory, the same labels
    python benchmarks/inference.py estimate  # what forward passes take, against the estimate that budgets rest on

Times are of the processor, of both sides in one process, in turn; memory is the peak of fresh processes above what the
model and a first small image take. Labels of both sides are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

MODELS = {
    "resnet18": {"name": "resnet18", "output_stride": 8, "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}},
    "resnet50": {"name": "resnet50", "output_stride": 8, "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}},
    "swin": {
        "name": "swin_t",
        "heads": {"main": {"name": "segformer", "blocks": ["stage1", "stage2", "stage3", "stage4"]}},
    },
    "small": {
        "name": "resnet18",
        "depths": [1, 1, 1, 1],
        "heads": {"main": {"name": "fcn", "blocks": ["stage2"], "channels": 16}},
    },
}
"""`small` costs little itself, so that the windows' own work is what is compared."""
CROP, STRIDE = 512, 341


def predictor_of(model: str, num_classes: int, **options: Any) -> Any:
    import torch

    from classyseg.inference import Predictor
    from classyseg.models import build_model

    torch.manual_seed(0)
    torch.set_num_threads(1)
    classes = [f"class{i}" for i in range(num_classes)]
    return Predictor(build_model(MODELS[model], num_classes), classes=classes, device="cpu", **options)


def image_of(height: int, width: int) -> Any:
    """Smooth blobs with noise, (H, W, 3) bytes."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (height // 64, width // 64, 3), dtype=np.uint8)
    smooth = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth.astype(np.int16) + random.integers(-20, 21, smooth.shape, dtype=np.int16), 0, 255).astype(
        "u1"
    )


def mmsegmentation(predictor: Any, image: Any) -> Any:
    """`EncoderDecoder.slide_inference` and `postprocess_result`, mmsegmentation 1.2, for one image."""
    import numpy as np
    import torch
    from torch.nn import functional

    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.no_grad():
        inputs = predictor.normalized(pixels)
        height, width = inputs.shape[2:]
        rows = max(height - CROP + STRIDE - 1, 0) // STRIDE + 1
        columns = max(width - CROP + STRIDE - 1, 0) // STRIDE + 1
        preds = inputs.new_zeros((1, len(predictor.classes), height, width))
        count = inputs.new_zeros((1, 1, height, width))
        for i in range(rows):
            for j in range(columns):
                bottom, right = min(i * STRIDE + CROP, height), min(j * STRIDE + CROP, width)
                top, left = max(bottom - CROP, 0), max(right - CROP, 0)
                part = inputs[:, :, top:bottom, left:right]
                logits = functional.interpolate(
                    predictor.model(part)["main"], part.shape[2:], mode="bilinear", align_corners=False
                )
                preds += functional.pad(logits, (left, width - right, top, height - bottom))
                count[:, :, top:bottom, left:right] += 1
        logits = preds / count
        logits = functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        return logits[0].argmax(0).numpy().astype(np.uint8)


def ours(predictor: Any, image: Any) -> Any:
    return predictor.predict(image)


SIDES: dict[str, Callable[[Any, Any], Any]] = {"ours": ours, "mmsegmentation": mmsegmentation}
WINDOWS = {"name": "sliding_window", "size": [CROP, CROP], "stride": [STRIDE, STRIDE]}


def peak() -> int:
    """The highest resident memory since the last `forget_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def taken(call: Callable[[], Any]) -> tuple[Any, int]:
    """What `call` gives, and how far its peak lies above the memory before."""
    forget_peak()
    before = peak()
    found = call()
    return found, peak() - before


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def in_turn(sides: list[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """Processor seconds of each side, which run one after the other, so often."""
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for times, side in zip(found, sides, strict=True):
            started = time.process_time()
            side()
            times.append(time.process_time() - started)
    return found


def windows(arguments: argparse.Namespace) -> None:
    sizes = [(512, 1536, 150), (1024, 2048, 19), (1024, 2048, 150)]
    if arguments.numbers:
        sizes = [(arguments.numbers[0], arguments.numbers[1], arguments.numbers[2])]
    for height, width, num_classes in sizes:
        predictor = predictor_of(arguments.model, num_classes, protocol=WINDOWS)
        image = image_of(height, width)
        same = float((ours(predictor, image) == mmsegmentation(predictor, image)).mean())
        seconds = in_turn(
            [partial(ours, predictor, image), partial(mmsegmentation, predictor, image)], arguments.repeats
        )
        memory = [
            statistics.median(_fresh(side, arguments, height, width, num_classes) for _ in range(2)) for side in SIDES
        ]
        print(
            f"{height} x {width}, {num_classes} classes, {arguments.model}: time {ratio(*seconds):.3f} "
            f"({statistics.median(seconds[0]):.2f} s / {statistics.median(seconds[1]):.2f} s), memory "
            f"{memory[0] / memory[1]:.3f} ({memory[0] / 1e6:.0f} MB / {memory[1] / 1e6:.0f} MB), "
            f"equal labels {same:.6f}",
            flush=True,
        )


def _fresh(side: str, arguments: argparse.Namespace, height: int, width: int, num_classes: int) -> int:
    """Peak memory of one side in a process of its own."""
    numbers = [str(number) for number in (height, width, num_classes)]
    command = [sys.executable, __file__, "side", "--side", side, "--model", arguments.model, "--numbers", *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def side(arguments: argparse.Namespace) -> None:
    height, width, num_classes = arguments.numbers
    predictor = predictor_of(arguments.model, num_classes, protocol=WINDOWS)
    image = image_of(height, width)
    SIDES[arguments.side](predictor, image[:CROP, :CROP])  # the libraries' own buffers
    _, most = taken(lambda: SIDES[arguments.side](predictor, image))
    print(json.dumps({"bytes": most}))


def whole(arguments: argparse.Namespace) -> None:
    import numpy as np
    import torch
    from PIL import Image
    from torch.nn import functional

    root = Path(os.environ.get("CLASSYSEG_DATA", "../shared/data")) / "camvid" / "test"
    images = [np.array(Image.open(path).convert("RGB")) for path in sorted(root.iterdir())[: arguments.images]]
    predictor = predictor_of(arguments.model, 11)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    @torch.no_grad()
    def bare() -> list[Any]:
        found = []
        for image in images:
            x = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
            logits = predictor.model((x / 255 - mean) / std)["main"]
            full = functional.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)
            found.append(full[0].argmax(0).numpy().astype(np.uint8))
        return found

    def loaded() -> list[Any]:
        return list(predictor.predict(images))

    same = float(np.mean([np.mean(a == b) for a, b in zip(loaded(), bare(), strict=True)]))
    seconds = in_turn([loaded, bare], arguments.repeats)
    print(
        f"CamVid, {len(images)} images, {arguments.model}: time {ratio(*seconds):.3f} "
        f"({statistics.median(seconds[0]):.2f} s / {statistics.median(seconds[1]):.2f} s), equal labels {same:.6f}"
    )


def budget(arguments: argparse.Namespace) -> None:
    height, width = arguments.numbers[:2] if arguments.numbers else (4096, 8192)
    image = image_of(height, width)
    limit = arguments.max_memory
    predictor = predictor_of(arguments.model, 150, protocol=WINDOWS, max_memory=limit)
    predictor.predict(image[:CROP, :CROP])
    started = time.process_time()
    found, most = taken(lambda: predictor.predict(image))
    print(
        f"{height} x {width}, 150 classes, {arguments.model}, max_memory {limit}: {most / 1e9:.3f} GB above the model, "
        f"{time.process_time() - started:.0f} s",
        flush=True,
    )
    predictor.max_memory = None
    unlimited, most = taken(lambda: predictor.predict(image))
    print(f"without a limit: {most / 1e9:.3f} GB; labels equal: {bool((found == unlimited).all())}")


def estimate(arguments: argparse.Namespace) -> None:
    """Peak of a forward pass against the tensors that live at once on the `meta` device."""
    import torch

    for name in MODELS if arguments.model == "small" else [arguments.model]:
        for size in (256, 512, 768):
            predictor = predictor_of(name, 150)
            network = predictor.network
            with torch.no_grad():
                network(torch.zeros(1, 3, 64, 64))
                image = torch.rand(1, 3, size, size)
                _, most = taken(partial(network, image))
            told = network.forward_bytes((1, 3, size, size))
            live = network._forwards[size, size]
            print(
                f"{name} {size}: peak {most / 1e6:.0f} MB, live {live / 1e6:.0f} MB ({most / live:.2f}), "
                f"estimate {told / 1e6:.0f} MB",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["windows", "whole", "budget", "estimate", "side"])
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--max-memory", default="2G")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--numbers", type=int, nargs="*", default=[], help="height, width and, of windows, classes")
    arguments = parser.parse_args()
    globals()[arguments.what](arguments)


if __name__ == "__main__":
    main()
