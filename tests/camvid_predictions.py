"""Whether `predict` and `evaluate` agree on CamVid, and what that takes.

`python tests/camvid_predictions.py RUN DATA` measures a run of CamVid on its split `val` with `classyseg evaluate`,
labels its 101 images with `classyseg predict`, and counts a confusion matrix over the PNGs with numpy alone: the two
must be equal. DATA is the folder in which `camvid` lies. Without RUN (`-`), a model with random weights serves.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

NUM_CLASSES, IGNORED = 11, 11
MODEL = {"name": "resnet18", "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}}


def random_model(folder: Path) -> Path:
    from classyseg.datasets.named.camvid import CamVid
    from classyseg.inference import Predictor
    from classyseg.models import build_model

    torch.manual_seed(0)
    model = build_model(MODEL, NUM_CLASSES)
    return Predictor(
        model, classes=CamVid.classes, palette=CamVid.palette, ignore_index=IGNORED, model_config=MODEL
    ).save(folder)


def matrix_of(labels: Path, masks: Path) -> np.ndarray:
    matrix = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    for path in sorted(masks.glob("*.png")):
        true, found = np.array(Image.open(path)), np.array(Image.open(labels / path.name))
        known = true != IGNORED
        matrix += np.bincount(true[known] * NUM_CLASSES + found[known], minlength=NUM_CLASSES**2).reshape(matrix.shape)
    return matrix


def mean_iou(matrix: np.ndarray) -> float:
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return float(np.mean(np.diag(matrix)[union > 0] / union[union > 0]))


def main(run: str, data: str) -> int:
    from classyseg.cli.main import main as classyseg

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = random_model(folder / "model") if run == "-" else Path(run)
        times = [time.perf_counter()]
        words = ["--data-root", data, "--output", str(folder), "dataset.val={name: camvid, split: val}"]
        codes = [classyseg(["evaluate", str(model), *words])]
        times.append(time.perf_counter())
        images = Path(data) / "camvid" / "val"
        codes.append(classyseg(["predict", str(model), str(images), "--output", str(folder / "labels")]))
        times.append(time.perf_counter())
        measured = json.loads((folder / "evaluation-val.json").read_text(encoding="utf-8"))
        counted = matrix_of(folder / "labels", images.with_name("valannot"))
    print(f"evaluate: mean IoU {measured['mean_iou']:.6f}, {times[1] - times[0]:.1f} s")
    print(f"predict, and a count over the PNGs: mean IoU {mean_iou(counted):.6f}, {times[2] - times[1]:.1f} s")
    equal = measured["confusion_matrix"] == counted.tolist()
    print("the confusion matrices are equal" if equal else "THE CONFUSION MATRICES DIFFER")
    return int(not equal or codes != [0, 0])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
