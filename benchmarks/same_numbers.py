"""Whether a change kept the numbers: small runs on an older commit and on this checkout, compared bit for bit.

Every run's records (losses, learning rates, metrics) and the weights and optimizer state of its last checkpoint must
be equal; what is timed is left out. `python benchmarks/same_numbers.py COMMIT` checks the older commit out into a
temporary folder. Exit code 1 says that something differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
TIMED = ("seconds", "samples_per_second", "data_wait")
"""The keys of a record that differ between any two runs."""

BASE = """
name: segmentation
num_epochs: 2
batch_size: 4
dataset:
  train:
    name: synthetic_shapes
    split: train
    num_samples: 24
    size: [48, 48]
    transforms: [{name: random_scale_crop, size: [40, 40]}, horizontal_flip, color_jitter]
  test: {name: synthetic_shapes, split: test, num_samples: 5, size: [48, 48]}
model: {name: resnet18, heads: {main: {name: fcn, blocks: [stage2, stage4], dropout: 0.2}}}
loss: {name: cross_entropy}
optimizer: {name: sgd, lr: 0.02, weight_decay: 1.0e-4, schedule: {name: polynomial, warmup_epochs: 0.5}}
meters: [mean_iou]
hooks: [checkpoint]
runtime: {device: cpu, threads: 1, workers: 0}
"""

RUNS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "accumulation": ("runtime.accumulate_steps=2", "loss={name: focal}"),
    "auxiliary_head": (
        "model.heads.aux={name: fcn, blocks: [stage3], train_only: true}",
        "loss={name: ohem_cross_entropy, head_weights: {aux: 0.4}}",
    ),
    "dice": ("loss={name: dice}", "optimizer.schedule={name: cosine}"),
    "psp": ("model.heads.main={name: psp, blocks: [stage4]}", "model.output_stride=8"),
    "upernet": ("model.heads.main={name: upernet, blocks: [stage1, stage2, stage3, stage4]}",),
    "ocr": (
        "model.heads.main={name: ocr, blocks: [stage3, stage4]}",
        "model.heads.aux={name: fcn, blocks: [stage3], train_only: true}",
    ),
    "swin": ("model={name: swin_t, heads: {main: {name: segformer, blocks: [stage1, stage2, stage3, stage4]}}}",),
    "milestones": ("optimizer.schedule={name: multi_step, milestones: [1]}",),
    "mid_epoch_saves": ("hooks=[{name: checkpoint, every_steps: 2, best: mean_iou}]",),
}
"""Names of small runs and how each differs from `BASE`."""


def trained(checkout: Path, config: Path, output: Path, overrides: tuple[str, ...]) -> str:
    """Trains with the code of `checkout`; gives the end of what it printed where it failed, else nothing."""
    command = [sys.executable, "-m", "classyseg", "train", "--config", str(config), "--output", str(output), *overrides]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr[-500:]}"


def records(run: Path) -> list[Mapping[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMED} for line in lines]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    newest = run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text(encoding="utf-8").split()[0]
    files = (newest / "model.safetensors", newest / "optimizer.safetensors")
    return {f"{path.stem}.{name}": tensor for path in files for name, tensor in load_file(path).items()}


def differences(old: Path, new: Path) -> list[str]:
    """What differs between two runs' folders, in words."""
    found = []
    for before, after in zip(records(old), records(new), strict=True):
        found += [
            f"{before['phase']} record of epoch {before['epoch']}: {key} was {before[key]}, is {after.get(key)}"
            for key in before
            if before[key] != after.get(key)
        ]
    before, after = tensors(old), tensors(new)
    if before.keys() != after.keys():
        found.append(f"other tensors in the checkpoint: {sorted(before.keys() ^ after.keys())[:5]}")
    changed = [name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])]
    if changed:
        found.append(f"{len(changed)} of {len(before)} tensors differ, such as {min(changed)}")
    return found


def compare(old_checkout: Path, folder: Path, names: list[str]) -> bool:
    """Trains each run on both sides and prints a line for it; whether all are equal."""
    config = folder / "base.yaml"
    config.write_text(BASE, encoding="utf-8")
    equal = True
    for name in names:
        sides = {"old": old_checkout, "new": ROOT}
        failed = {side: trained(at, config, folder / side / name, RUNS[name]) for side, at in sides.items()}
        found = [f"{side}: {text}" for side, text in failed.items() if text]
        found = found or differences(folder / "old" / name, folder / "new" / name)
        print(f"{name}: {'equal, bit for bit' if not found else '; '.join(found)}", flush=True)
        equal = equal and not found
    return equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="the commit to compare this checkout with")
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder / "checkout"), arguments.commit], check=True)
        try:
            return 0 if compare(folder / "checkout", folder, arguments.runs) else 1
        finally:
            subprocess.run([*git, "remove", "--force", str(folder / "checkout")], check=True)


if __name__ == "__main__":
    sys.exit(main())
