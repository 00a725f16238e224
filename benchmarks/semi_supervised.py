"""Semi-supervised training against training on the labels alone: CamVid with a part of its labels, for several seeds.

Both sides take the same labelled images, the same first weights, as many steps and the same moving average of weights.
As in FixMatch and UniMatch, labelled images are cropped and flipped on both sides; strong views are of the others.
One of them also learns from all images of the training split without their labels.

CamVid's training images come from three drives. With `--labelled first`, the labels are those of the first images, all
of one drive, and a seed says how a training begins. With `--labelled random`, each seed has labels of other images.
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

CROP = [{"name": "random_scale_crop", "size": [64, 96], "scale": [0.2, 0.4]}, "horizontal_flip"]
NUM_TRAIN = 367
"""The images of CamVid's training split."""
JITTER = {"name": "color_jitter", "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.1}


def config(arguments: argparse.Namespace, seed: int, cache: str) -> dict[str, Any]:
    train = {"name": "camvid", "split": "train", "cache_samples": cache}
    random = {"share": arguments.share, "share_seed": seed}
    labelled = random if arguments.labelled == "random" else {"first": round(arguments.share * NUM_TRAIN)}
    return {
        "name": "segmentation",
        "seed": seed,
        "num_steps": arguments.steps,
        "val_every_steps": arguments.steps,
        "batch_size": arguments.batch,
        "dataset": {
            "train": {"name": "subset", "dataset": train, **labelled, "transforms": CROP},
            "val": {
                "name": "camvid",
                "split": "val",
                "transforms": [{"name": "resize", "size": [108, 144], "image_only": True}],
            },
        },
        "model": {
            "name": arguments.model,
            "weights": arguments.weights,
            "heads": {"main": {"name": "fcn", "blocks": ["stage2", "stage3", "stage4"], "channels": 64}},
        },
        "loss": "cross_entropy",
        "optimizer": {
            "name": "adamw",
            "lr": arguments.lr,
            "schedule": {"name": "polynomial", "warmup_steps": 10},
        },
        "hooks": [{"name": "ema", "decay": 0.99}],
        "runtime": {"device": arguments.device, "workers": 0, "threads": arguments.threads},
    }


def unlabelled(arguments: argparse.Namespace, cache: str) -> dict[str, Any]:
    return {
        "data": {"name": "camvid", "split": "train", "cache_samples": cache, "transforms": CROP},
        "options": {
            "strong": [JITTER, "gaussian_blur"],
            "num_strong": arguments.strong,
            "threshold": arguments.threshold,
            "weight": arguments.weight,
            "ramp_up_steps": arguments.steps // 4,
        },
    }


def mean_iou(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    started = time.perf_counter()
    Trainer(folder).train(build_task(values))
    train, val = (
        [r for r in read_json_lines(folder / "metrics.jsonl") if r["phase"] == phase][-1] for phase in ("train", "val")
    )
    return {"mean_iou": val["mean_iou"], "seconds": time.perf_counter() - started, "confident": train.get("confident")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.125)
    parser.add_argument("--labelled", choices=("first", "random"), default="first")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--weights", default="imagenet1k_v1")
    parser.add_argument("--strong", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        cache = str(Path(folder) / "cache")
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            values = config(arguments, seed, cache)
            plain = mean_iou(values, Path(folder) / f"plain{seed}")
            more = unlabelled(arguments, cache)
            values |= {
                "name": "semi_supervised",
                "dataset": {**values["dataset"], "unlabelled": more["data"]},
                "unlabelled": more["options"],
            }
            found = mean_iou(values, Path(folder) / f"semi{seed}")
            differences.append(found["mean_iou"] - plain["mean_iou"])
            print(
                f"seed {seed}: labels alone {plain['mean_iou']:.4f} ({plain['seconds']:.0f} s), with unlabelled images "
                f"{found['mean_iou']:.4f} ({found['seconds']:.0f} s; sure of {found['confident']:.0%})",
                flush=True,
            )
    print(f"semi-supervised - supervised: mean {statistics.mean(differences):+.4f}, least {min(differences):+.4f}")


if __name__ == "__main__":
    main()
