"""A run in every format: exports it, and compares latency, memory, size and mean IoU of all files in one go.

    python benchmarks/export.py RUN --data-root data --size 360x480 --threads 2

Formats whose library is not installed are left out, and named. At the end it tells the aims: OpenVINO or onnxruntime at
most 0.7 of the latency of torch, 8 bits at most 0.5, with a drop of at most 1 point of mean IoU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from classyseg.cli.main import main as classyseg

FILES = {
    "torch.pt2": "torch_export",
    "aoti.pt2": "aoti",
    "onnx.onnx": "onnx",
    "openvino.xml": "openvino",
    "executorch.pte": "executorch",
    "int8.onnx": "int8",
    "int8.xml": "int8",
}
FLOAT_AIM, INT8_AIM, DROP_AIM = 0.7, 0.5, 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--output", default="exports", help="the folder of the files; what is there is not made again")
    parser.add_argument("--data-root")
    parser.add_argument("--size", default="360x480")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--repeats", default="20")
    parser.add_argument("--batch-size", default="4")
    parser.add_argument("--samples", help="measure at most so many samples")
    parser.add_argument("--formats", nargs="*", default=[*FILES], metavar="FILE", help=" ".join(FILES))
    arguments = parser.parse_args()
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    data = [] if arguments.data_root is None else ["--data-root", arguments.data_root]
    made = []
    for name in arguments.formats:
        path = folder / name
        if not path.exists():
            print(f"== {name}", flush=True)
            classyseg(["export", arguments.run, "--format", FILES[name], "--output", str(path), *data])
        if path.exists():
            made.append(str(path))
        else:
            print(f"left out: {name}", file=sys.stderr)
    result = folder / "benchmark.json"
    samples = [] if arguments.samples is None else ["--samples", arguments.samples]
    options = ["--size", arguments.size, "--threads", arguments.threads, "--repeats", arguments.repeats]
    options += ["--batch-size", arguments.batch_size, "--data", arguments.run, "--json", str(result)]
    code = classyseg(["benchmark", arguments.run, *made, *options, *samples, *data])
    return code or aims(json.loads(result.read_text(encoding="utf-8"))["models"])


def aims(models: list[dict[str, Any]]) -> int:
    """Tells which aims are met. Returns 1 if one is not."""
    first = models[0]["measured"]["mean_iou"]
    fast = {Path(model["model"]).name: model["latency_ratio"] for model in models[1:] if not is_int8(model)}
    fast = {name: ratio for name, ratio in fast.items() if name in ("onnx.onnx", "openvino.xml")}
    small = {Path(model["model"]).name: model for model in models[1:] if is_int8(model)}
    met = [min(fast.values(), default=9.0) <= FLOAT_AIM]
    print(f"float32, at most {FLOAT_AIM}: {', '.join(f'{name} {ratio:.2f}' for name, ratio in fast.items())}")
    for name, model in small.items():
        ratio, drop = model["latency_ratio"], 100 * (first - model["measured"]["mean_iou"])
        met.append(ratio <= INT8_AIM and drop <= DROP_AIM)
        print(f"8 bits, at most {INT8_AIM} with a drop of {DROP_AIM:g}: {name} {ratio:.2f}, {drop:.2f} points")
    return 0 if all(met) else 1


def is_int8(model: dict[str, Any]) -> bool:
    return bool(model["kind"].endswith("int8"))


if __name__ == "__main__":
    sys.exit(main())
