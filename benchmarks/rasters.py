"""A raster of 20,000 x 20,000 pixels, made here: trained, measured, checked, predicted. Peak memory of each.

    python benchmarks/rasters.py             # all of it; 0.6 GB of disk in a temporary folder, some minutes of a core
    python benchmarks/rasters.py --side 4000 --folder /tmp/raster

Each part runs in a fresh process, whose peak memory is all that it takes, torch included. The model is a small one, so
that what is measured is the work around it. `evaluate` compares the sums of the confusion matrix with the labels that
were counted while the mask was written: every pixel counts once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TILE = 256
CLASSES = ["water", "field", "wood", "road"]
COLORS = np.array([[30, 60, 120], [150, 160, 70], [40, 90, 40], [128, 128, 128]], np.uint8)
IGNORED = 255
GEO = [
    (33550, "d", 3, (0.25, 0.25, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0), True),
    (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32611), True),
]
PARTS = ("start", "train", "evaluate", "doctor", "predict")


def labels_at(top: int, left: int, side: int) -> np.ndarray:
    """The mask of a tile of a raster of `side`: rings, roads through them, and a corner without labels."""
    y, x = np.mgrid[top : top + TILE, left : left + TILE]
    labels = (np.hypot(y - side / 2, x - side / 3) / 700).astype(np.int64) % 3
    labels[(y % 1500 < 40) | (x % 1900 < 40)] = 3
    labels[(y < side / 10) & (x < side / 10)] = IGNORED
    return labels.astype(np.uint8)


def make(folder: Path, side: int) -> None:
    """Writes the image and the mask tile by tile, and counts the labels."""
    import tifffile

    counts = np.zeros(256, np.int64)
    places = [(top, left) for top in range(0, side, TILE) for left in range(0, side, TILE)]

    def masks() -> Iterator[np.ndarray]:
        for top, left in places:
            labels = labels_at(top, left, side)
            counts[:] += np.bincount(labels[: side - top, : side - left].ravel(), minlength=256)
            yield labels

    def images() -> Iterator[np.ndarray]:
        random = np.random.default_rng(0)
        for top, left in places:
            noise = random.integers(0, 8, (TILE, TILE, 1), np.uint8)
            yield COLORS[np.minimum(labels_at(top, left, side), 3)] + noise

    options: dict[str, Any] = {
        "dtype": np.uint8,
        "tile": (TILE, TILE),
        "compression": "deflate",
        "compressionargs": {"level": 1},
        "metadata": None,
        "extratags": GEO,
        "maxworkers": 1,
    }
    for name, tiles, more in (
        ("images", images(), {"shape": (side, side, 3), "photometric": "rgb"}),
        ("masks", masks(), {"shape": (side, side), "photometric": "minisblack"}),
    ):
        (folder / name).mkdir(parents=True)
        tifffile.imwrite(folder / name / "field.tif", tiles, **more, **options)
    (folder / "counts.json").write_text(json.dumps(counts.tolist()))


def task_config(folder: Path) -> dict[str, Any]:
    files = {
        "name": "folder",
        "images": str(folder / "images"),
        "masks": str(folder / "masks"),
        "classes": CLASSES,
    }
    tiles = {"size": 512, "overlap": 32}
    return {
        "name": "segmentation",
        "num_steps": 60,
        "batch_size": 4,
        "dataset": {"train": {**files, "tiles": tiles, "transforms": ["horizontal_flip"]}},
        "model": {"name": "plain", "heads": {"main": {"name": "fcn", "blocks": ["map"], "channels": 16}}},
        "loss": "cross_entropy",
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "hooks": ["checkpoint"],
        "runtime": {"device": "cpu", "workers": 0},
    }


def register() -> None:
    """A model of one convolution, under the name `plain`."""
    from torch import Tensor, nn

    from classyseg.models import ClassyModel, register_model

    @register_model("plain")
    class Plain(ClassyModel):
        """A convolution at stride 4."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(3, 16, 8, stride=4, padding=2), nn.ReLU())
            self.add_block("map", 16, 4, "conv")

        def extract_features(self, image: Tensor) -> dict[str, Tensor]:
            return {"map": self.conv(image)}


def start(folder: Path) -> dict[str, Any]:
    """What a process takes that imports torch, and then classyseg, and computes nothing."""
    import torch

    alone = peak()
    import classyseg

    return {"torch": f"{torch.__version__}, {alone} MB", "classyseg": classyseg.__version__}


def train(folder: Path) -> dict[str, Any]:
    from classyseg.cli.main import main

    config = folder / "config.json"
    config.write_text(json.dumps(task_config(folder)))
    assert main(["train", str(config), "--output", str(folder / "run"), "--overwrite"]) == 0
    return {}


def evaluate(folder: Path) -> dict[str, Any]:
    import classyseg
    from classyseg.datasets import build_dataset
    from classyseg.evaluation import evaluate as measure
    from classyseg.meters import build_meter

    dataset = build_dataset({**task_config(folder)["dataset"]["train"], "transforms": []})
    predictor = classyseg.load(folder / "run", device="cpu")
    meters = [build_meter(name, CLASSES, IGNORED) for name in ("confusion_matrix", "mean_iou")]
    result = measure(predictor, dataset, meters, batch_size=1).result()
    found = np.array(result["confusion_matrix"]).sum(1).tolist()
    expected = json.loads((folder / "counts.json").read_text())[: len(CLASSES)]
    assert found == expected, f"counted {found}, where the mask has {expected}"
    return {"tiles": len(dataset), "pixels": sum(found), "mean_iou": result["mean_iou"]}


def doctor(folder: Path) -> dict[str, Any]:
    from classyseg.doctor import check_data

    diagnosis = check_data({"dataset.train": task_config(folder)["dataset"]["train"]})
    (summary,) = diagnosis.summaries
    expected = json.loads((folder / "counts.json").read_text())
    labels = (*range(len(CLASSES)), IGNORED)
    assert [summary.pixels[label] for label in labels] == [expected[label] for label in labels]
    return {"findings": [finding.kind for finding in diagnosis.findings], "mean": summary.mean}


def predict(folder: Path) -> dict[str, Any]:
    import tifffile

    from classyseg.cli.main import main

    words = ["--output", str(folder / "out"), "--overwrite", "--device", "cpu"]
    protocol = '{"name": "sliding_window", "size": [512, 512], "overlap": 0.1}'
    assert main(["predict", str(folder / "run"), str(folder / "images"), "--protocol", protocol, *words]) == 0
    with tifffile.TiffFile(folder / "out" / "field.tif") as file:
        page = file.pages[0]
        assert [page.tags[tag].value for tag, *_ in GEO] == [value for *_, value, _ in GEO]
        return {"labels": f"{page.shape}, {page.dtype}, {(folder / 'out' / 'field.tif').stat().st_size} bytes"}


def peak() -> int:
    """The most memory that this process has taken so far, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1000


def run(part: str, folder: Path) -> None:
    started = time.perf_counter()
    if part != "start":
        register()
    told = globals()[part](folder)
    print(json.dumps({"part": part, "peak_mb": peak(), "seconds": round(time.perf_counter() - started, 1), **told}))


def all_parts(folder: Path, side: int) -> None:
    started = time.perf_counter()
    if not (folder / "counts.json").is_file():
        make(folder, side)
    sizes = {name: (folder / name / "field.tif").stat().st_size // 10**6 for name in ("images", "masks")}
    print(f"{side} x {side}: written in {time.perf_counter() - started:.0f} s, MB of the files: {sizes}", flush=True)
    for part in PARTS:
        subprocess.run([sys.executable, __file__, "--part", part, "--folder", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="keep the files here, and use those that are there")
    parser.add_argument("--part", choices=PARTS, help="this alone, in this process")
    arguments = parser.parse_args()
    if arguments.part:
        run(arguments.part, arguments.folder)
    elif arguments.folder:
        all_parts(arguments.folder, arguments.side)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            all_parts(Path(temporary), arguments.side)


if __name__ == "__main__":
    main()
