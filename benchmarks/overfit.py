"""Whether a classifier can learn real images at all: 100 photos, each of a class of its own, learnt by heart.

    CLASSYSEG_DATA=../shared/data python benchmarks/overfit.py

Trains `resnet18` from random weights on the first images of `imagenet_sample`, 64 x 64 pixels, without augmentation,
and measures the same images. Ends with exit code 1 if 95 % or fewer are right. One thread. The images (`images/*.jpg`,
and `labels.csv` with the columns `file` and `class_name`) are no part of the project: where they are missing, the
script says so.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from typing import Any

from classyseg import Trainer, build_task
from classyseg.errors import ConfigError
from classyseg.io import data_folder

ENOUGH = 0.95


def config(num_images: int, epochs: int, seed: int) -> dict[str, Any]:
    folder = data_folder("imagenet_sample")  # which says where it looked, if it is not there
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(num_images), strict=False)]
    names = [row["class_name"] for row in rows]
    images = {
        "name": "image_paths",
        "images": str(folder / "images"),
        "classes": names,
        "paths": [row["file"] for row in rows],
        "labels": names,
        "transforms": [{"name": "resize", "size": [64, 64]}],
    }
    return {
        "name": "classification",
        "seed": seed,
        "num_epochs": epochs,
        "val_every_epochs": epochs,
        "batch_size": 10,
        "dataset": {"train": images, "val": images},
        "model": {"name": "resnet18", "heads": {"main": {"name": "linear", "blocks": ["stage4"]}}},
        "loss": "cross_entropy",
        "optimizer": {"name": "adamw", "lr": 1.0e-3, "schedule": {"name": "cosine", "warmup_epochs": 1}},
        "hooks": [],
        "runtime": {"device": "cpu", "threads": 1, "workers": 0, "eval_batch_size": 50},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        task = build_task(config(arguments.images, arguments.epochs, arguments.seed))
    except ConfigError as error:
        sys.exit(f"{error}; set CLASSYSEG_DATA to the folder around it")
    began = time.process_time()
    Trainer().train(task)
    found = float(task.metrics["accuracy_top_1"])
    seconds = time.process_time() - began
    print(f"{arguments.images} images, {arguments.epochs} epochs: {found:.1%} right ({seconds:.0f} s of one core)")
    return int(found <= ENOUGH)


if __name__ == "__main__":
    sys.exit(main())
