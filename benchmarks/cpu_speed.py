"""What bfloat16, channels last, threads and workers give on a CPU: `python benchmarks/cpu_speed.py`.

- `steps`: a training step and a forward pass of a measured image, of three networks at 256 x 256, in each precision,
  memory layout and number of threads. All of them run in turn, round after round; the medians are told as ratios to
  float32 in torch's own layout on one thread, of wall time and of the processor time that all threads take. On a
  machine with other work the latter says more.
- `loading`: images a second of a whole training, its data included, by threads and workers.
- `loss`: the same training in float32 and in bfloat16, over seeds: losses of the last steps, and mean IoU.

`steps` and `loading` take minutes, `loss` as long as its trainings: name it. It reads a config, or draws shapes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from trainer import Time, now, since

from classyseg import Trainer, build_task
from classyseg.config import load_config
from classyseg.engine.precision import Precision
from classyseg.io import read_json_lines
from classyseg.structures import Sample
from classyseg.tasks import ClassyTask

SIDE = 256
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18 + fcn": (8, {"name": "resnet18", "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}}),
    "efficientnet_lite0 + fcn": (
        8,
        {"name": "efficientnet_lite0", "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}},
    ),
    "resnet50 + deeplabv3": (
        2,
        {
            "name": "resnet50",
            "output_stride": 8,
            "heads": {"main": {"name": "deeplabv3", "blocks": ["stage4"]}},
        },
    ),
}
"""The batch size of a training step, and the model."""
Variant = tuple[str, bool, int]
"""The precision, channels last, threads."""


def shapes_config(model: dict[str, Any], batch: int, side: int = SIDE) -> dict[str, Any]:
    data = {"name": "synthetic_shapes", "size": [side, side], "num_samples": 64}
    return {
        "name": "segmentation",
        "num_steps": 1000,
        "batch_size": batch,
        "dataset": {"train": {**data, "split": "train", "transforms": ["horizontal_flip"]}},
        "model": model,
        "loss": {"name": "cross_entropy"},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "hooks": [],
        "runtime": {"device": "cpu", "workers": 0},
    }


# -- steps ------------------------------------------------------------------------------------------------------------


class Stepper:
    """One task, set to each variant before its step."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.task: ClassyTask = build_task(config)
        self.task.start(None)
        samples = [self.task.data.sets["train"].sample(i, 0) for i in range(self.task.batch_size)]
        images, masks = (torch.stack([getattr(sample, key) for sample in samples]) for key in ("image", "target"))
        self.batch = self.task.on_device(Sample(images, masks, tuple(str(i) for i in range(len(samples)))))

    def set(self, variant: Variant) -> Sample:
        name, channels_last, threads = variant
        torch.set_num_threads(threads)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        engine = self.task.engine
        engine.precision = Precision(engine.runtime.model_copy(update={"precision": name}), engine.device)
        self.task.model.to(memory_format=layout)
        return self.batch.replace(image=self.batch.image.contiguous(memory_format=layout))

    def train(self, variant: Variant) -> Time:
        batch = self.set(variant)
        self.task.engine.set_mode(True)
        started = now()
        self.task.engine.step(batch, self.task, 0.0)
        return since(started)

    @torch.no_grad()
    def measure(self, variant: Variant) -> Time:
        batch = self.set(variant)
        self.task.engine.set_mode(False)
        images = batch.image[:1]
        started = now()
        self.task.engine(images)
        return since(started)


def compare_steps(rounds: int, threads: list[int], networks: Sequence[str]) -> None:
    variants = list(itertools.product(("float32", "bfloat16"), (False, True), threads))
    for network, (batch, model) in ((name, NETWORKS[name]) for name in networks):
        stepper = Stepper(shapes_config(model, batch))
        for kind, take in (("training step", stepper.train), ("forward pass", stepper.measure)):
            times: dict[Variant, list[Time]] = {variant: [] for variant in variants}
            count = rounds if kind == "training step" else 4 * rounds
            for number in range(count + 1):
                for variant in variants:
                    seconds = take(variant)
                    if number:  # the first round warms up
                        times[variant].append(seconds)
            medians = {
                variant: [statistics.median(clock) for clock in zip(*found, strict=True)]
                for variant, found in times.items()
            }
            reference = medians["float32", False, 1]
            for (name, channels_last, count_of_threads), found in medians.items():
                layout = "channels last" if channels_last else "contiguous"
                ratios = [own / other for own, other in zip(found, reference, strict=True)]
                print(
                    f"{network}, {kind}, {name}, {layout}, {count_of_threads} threads: {ratios[0]:.3f} of the wall "
                    f"time, {ratios[1]:.3f} of the processor time ({1000 * found[1]:.0f} ms)",
                    flush=True,
                )


# -- loading ----------------------------------------------------------------------------------------------------------


def compare_loading(source: Path | None, steps: int, side: int, rounds: int, threads: list[int]) -> None:
    """Images a second after the first quarter of a training, whose steps warm up, in turn."""
    variants = list(itertools.product(threads, (0, 1, 2)))
    found: dict[tuple[str, int, int], list[float]] = {}
    for _, precision, (number, workers) in itertools.product(range(rounds), ("float32", "bfloat16"), variants):
        config = config_of_run(source, steps, side)
        config["dataset"].pop("val", None)
        config["dataset"].pop("test", None)
        runtime = {**config.get("runtime", {}), "threads": number, "workers": workers, "precision": precision}
        task = build_task({**config, "hooks": [], "runtime": runtime})
        task.start(None)
        try:
            task.start_phase()
            started, first = 0.0, steps // 4
            for i, batch in enumerate(itertools.islice(task.batches(), steps)):
                if i == first:
                    started = time.perf_counter()
                task.step(batch)
            seconds = time.perf_counter() - started
        finally:
            task.close()
        found.setdefault((precision, number, workers), []).append((steps - first) * task.batch_size / seconds)
    reference = statistics.median(found["float32", 1, 0])
    for (precision, number, workers), speeds in found.items():
        speed = statistics.median(speeds)
        print(f"{precision}, {number} threads, {workers} workers: {speed / reference:.3f} ({speed:.1f} images/s)")


def config_of_run(source: Path | None, steps: int, side: int) -> dict[str, Any]:
    """The config of a file, or of drawn shapes, for so many steps."""
    if source is None:
        batch, model = NETWORKS["resnet18 + fcn"]
        config = shapes_config(model, batch, side)
        val = {"name": "synthetic_shapes", "split": "test", "size": [side, side], "num_samples": 50}
        config["dataset"]["val"] = val
    else:
        config = dict(load_config(source).values)
    lengths = ("num_epochs", "val_every_epochs", "val_every_steps")
    return {**{key: value for key, value in config.items() if key not in lengths}, "num_steps": steps}


# -- loss -------------------------------------------------------------------------------------------------------------


def compare_loss(source: Path | None, steps: int, side: int, seeds: int, threads: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {"float32": [], "bfloat16": []}
    for seed, precision in itertools.product(range(seeds), found):
        config = config_of_run(source, steps, side)
        runtime = {**config.get("runtime", {}), "precision": precision, "threads": threads}
        every = {"val_every_steps": steps}
        task = build_task({**config, **every, "seed": seed, "hooks": [], "runtime": runtime})
        with tempfile.TemporaryDirectory() as folder:
            Trainer(folder).train(task)
            records = list(read_json_lines(Path(folder) / "metrics.jsonl"))
        loss = [record["loss"] for record in records if record["phase"] == "train"][-1]
        (score,) = (record["mean_iou"] for record in records if record["phase"] == "val")
        found[precision].append((loss, score))
        print(f"seed {seed}, {precision}: training loss {loss:.4f}, mean IoU {score:.4f}", flush=True)
    for i, what in enumerate(("training loss", "mean IoU")):
        pairs = list(zip(*([each[i] for each in found[name]] for name in ("bfloat16", "float32")), strict=True))
        gaps = [own - other for own, other in pairs]
        spread = statistics.stdev(other for _, other in pairs) if len(pairs) > 1 else float("nan")
        print(f"{what}, bfloat16 - float32: {statistics.mean(gaps):+.4f}; over seeds, float32 varies by {spread:.4f}")


def parts(argv: list[str] | None = None) -> Iterator[None]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="steps, loading (both if none is named), loss")
    parser.add_argument("--config", type=Path, help="of a training; else a resnet18 learns drawn shapes")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--side", type=int, default=SIDE, help="of the drawn shapes that `loading` and `loss` learn")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    args = parser.parse_args(argv)
    chosen = args.parts or ["steps", "loading"]
    if unknown := set(chosen) - {"steps", "loading", "loss"}:
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    if "steps" in chosen:
        yield compare_steps(args.rounds, sorted({1, *args.threads}), args.networks)
    if "loading" in chosen:
        yield compare_loading(args.config, args.steps, args.side, args.rounds, args.threads)
    if "loss" in chosen:
        yield compare_loss(args.config, args.steps, args.side, args.seeds, max(args.threads))


if __name__ == "__main__":
    for _ in parts():
        pass
