"""Distillation against plain training: val mean IoU of a resnet18 on drawn shapes at equal steps, for several seeds.

A wide ResNet-50 is trained on many drawn images first. Then a resnet18 is trained twice for each seed on the same few
labelled images, in the same order and from the same first weights: by the labels alone, and by labels and teacher.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from classyseg import Trainer, build_task
from classyseg.io import read_json_lines


def config(model: str, arguments: argparse.Namespace, *, samples: int, steps: int, seed: int) -> dict[str, Any]:
    shapes = {"name": "synthetic_shapes", "size": [arguments.size, arguments.size]}
    return {
        "name": "segmentation",
        "seed": seed,
        "num_steps": steps,
        "val_every_steps": steps,
        "batch_size": arguments.batch,
        "dataset": {
            "train": {**shapes, "split": "train", "num_samples": samples, "transforms": ["horizontal_flip"]},
            "val": {**shapes, "split": "test", "num_samples": 128},
        },
        "model": {
            "name": model,
            "output_stride": 32,
            "heads": {"main": {"name": "fcn", "blocks": ["stage1", "stage2", "stage4"], "channels": 64}},
        },
        "loss": "cross_entropy",
        "optimizer": {
            "name": "sgd",
            "lr": 0.05,
            "weight_decay": 1e-4,
            "schedule": {"name": "polynomial", "warmup_steps": 10},
        },
        "hooks": [],
        "runtime": {"device": arguments.device, "workers": 0, "threads": arguments.threads},
    }


def mean_iou(values: dict[str, Any], folder: Path) -> float:
    Trainer(folder).train(build_task(values))
    return float(read_json_lines(folder / "metrics.jsonl")[-1]["mean_iou"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="wide_resnet50_2")
    parser.add_argument("--teacher-steps", type=int, default=500)
    parser.add_argument("--samples", type=int, default=64, help="labelled images of the student")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="keeps the runs there; a teacher that lies there is taken")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        started = time.perf_counter()
        if not (folder / "teacher/model").is_dir():
            values = config(arguments.teacher, arguments, samples=2560, steps=arguments.teacher_steps, seed=100)
            mean_iou(values, folder / "teacher")
        of_teacher = read_json_lines(folder / "teacher/metrics.jsonl")[-1]["mean_iou"]
        print(f"teacher {arguments.teacher}: {of_teacher:.4f} ({time.perf_counter() - started:.0f} s)", flush=True)
        differences = []
        for seed in range(arguments.seeds):
            values = config("resnet18", arguments, samples=arguments.samples, steps=arguments.steps, seed=seed)
            plain = mean_iou(values, folder / f"plain{seed}")
            teacher = {
                "weights": str(folder / "teacher/model"),
                "soft_targets": {"temperature": arguments.temperature, "where": "everywhere"},
            }
            distilled = mean_iou({**values, "name": "distillation", "teacher": teacher}, folder / f"distilled{seed}")
            differences.append(distilled - plain)
            print(f"seed {seed}: plain {plain:.4f}, distilled {distilled:.4f}", flush=True)
        print(f"distilled - plain: mean {statistics.mean(differences):+.4f}, least {min(differences):+.4f}")


if __name__ == "__main__":
    main()
