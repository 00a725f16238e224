"""The framework against a hand-written loop over the same torch model, data and schedule.

Prints the ratio of step times, measured in turn on the same batches, and with `--seeds` the mean IoU of both, trained
in full. The hand-written loop is what people write: a DataLoader, `F.interpolate` and `F.cross_entropy`, torch's SGD
and a polynomial schedule. A second loop with classyseg's loss in place of these two shows what the framework costs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from classyseg.config import load_config
from classyseg.datasets import ClassyDataset
from classyseg.io import read_json_lines
from classyseg.losses import CrossEntropyLoss
from classyseg.registry import TASKS, ComponentConfig
from classyseg.structures import Sample
from classyseg.tasks import build_task
from classyseg.trainer import Trainer

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


class Epoch(Dataset[tuple[Tensor, Tensor]]):
    """The samples of one epoch, augmented as the framework augments them."""

    def __init__(self, dataset: ClassyDataset, epoch: int) -> None:
        self.dataset, self.epoch = dataset, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.dataset.sample(index, self.epoch)
        return sample.image, sample.target.long()


class BareLoop:
    """A training loop by hand; `fused_loss` takes classyseg's loss, else torch's interpolate and cross entropy."""

    def __init__(self, config: ComponentConfig, *, fused_loss: bool) -> None:
        parts = build_task(config)  # only to get the same data sets and the same initial weights
        self.config = config
        self.train_set, self.val_set = (parts.data.sets[name] for name in ("train", "val"))
        self.model: nn.Module = parts.model.to(memory_format=torch.channels_last)  # type: ignore[attr-defined]
        optimizer, loss = config.optimizer, config.loss  # type: ignore[attr-defined]
        self.lr, self.power = optimizer.lr, optimizer.schedule.power
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), self.lr, momentum=optimizer.momentum, weight_decay=optimizer.weight_decay
        )
        self.ignore = self.train_set.ignore_index
        self.weights = None if loss.class_weights is None else torch.tensor(loss.class_weights)
        self.fused = CrossEntropyLoss(self.ignore, class_weights=loss.class_weights) if fused_loss else None
        self.steps_per_epoch = len(self.train_set) // config.batch_size  # type: ignore[attr-defined]
        self.num_steps = self.steps_per_epoch * config.num_epochs  # type: ignore[attr-defined]
        self.warmup = self.steps_per_epoch * optimizer.schedule.warmup_epochs
        self.done = 0

    def step(self, image: Tensor, target: Tensor) -> None:
        if self.done < self.warmup:
            factor = 0.001 + (1 - 0.001) * self.done / self.warmup
        else:
            factor = (1 - (self.done - self.warmup) / (self.num_steps - self.warmup)) ** self.power
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        image = ((image / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        logits = self.model(image)["main"]
        target = target.long()
        if self.fused is not None:
            loss = self.fused(logits, target)
        else:
            full = functional.interpolate(logits, target.shape[1:], mode="bilinear")
            loss = functional.cross_entropy(full, target, self.weights, ignore_index=self.ignore)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.done += 1

    def train(self, seed: int) -> float:
        """The whole schedule; the mean IoU on the validation set."""
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        for epoch in range(self.config.num_epochs):  # type: ignore[attr-defined]
            self.model.train()
            loader = DataLoader(
                Epoch(self.train_set, epoch),
                batch_size=self.config.batch_size,  # type: ignore[attr-defined]
                shuffle=True,
                drop_last=True,
                num_workers=self.config.runtime.workers,  # type: ignore[attr-defined]
                generator=generator,
            )
            for image, target in loader:
                self.step(image, target)
        return self.evaluate()

    @torch.no_grad()
    def evaluate(self) -> float:
        self.model.eval()
        num_classes = self.val_set.num_classes
        matrix = torch.zeros(num_classes**2, dtype=torch.int64)
        for i in range(len(self.val_set)):
            sample = self.val_set[i]
            logits = self.model((sample.image[None] / 255 - MEAN) / STD)["main"]
            target = sample.target.long()
            full = functional.interpolate(logits, target.shape, mode="bilinear")
            prediction, valid = full.argmax(1)[0], target != self.ignore
            matrix += torch.bincount((target * num_classes + prediction)[valid], minlength=num_classes**2)
        counts = matrix.view(num_classes, num_classes).double()
        iou = counts.diag() / (counts.sum(0) + counts.sum(1) - counts.diag())
        return iou[~iou.isnan()].mean().item()


def compare_steps(config: ComponentConfig, num_steps: int) -> None:
    """Times the same batches through all three in turn, the order changing from step to step."""
    task = build_task(config)
    with tempfile.TemporaryDirectory() as folder:
        task.start(Path(folder))
        task.start_phase()
        batches = [batch for batch, _ in zip(task.batches(), range(num_steps), strict=False)]
        loops = {fused: BareLoop(config, fused_loss=fused) for fused in (False, True)}
        for loop in loops.values():
            loop.model.train()

        def framework(batch: Sample) -> None:
            task.step(batch)
            task.agree_to_stop(False)

        sides: dict[str, Callable[[Sample], None]] = {
            "framework": framework,
            "bare loop": lambda batch: loops[False].step(batch.image, batch.target),
            "bare loop, classyseg's loss": lambda batch: loops[True].step(batch.image, batch.target),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for name, number in _turns(list(sides), len(batches)):
            started = time.perf_counter()
            sides[name](batches[number])
            seconds[name].append(time.perf_counter() - started)
    warm = 3
    for other in ("bare loop", "bare loop, classyseg's loss"):
        ratios = [a / b for a, b in zip(seconds["framework"][warm:], seconds[other][warm:], strict=True)]
        quarters = statistics.quantiles(ratios, n=4)
        print(
            f"step time, framework / {other}: median of {len(ratios)} pairs {statistics.median(ratios):.3f} "
            f"(quartiles {quarters[0]:.3f}..{quarters[2]:.3f}); medians "
            f"{1000 * statistics.median(seconds['framework'][warm:]):.0f} and "
            f"{1000 * statistics.median(seconds[other][warm:]):.0f} ms"
        )


def _turns(names: list[str], count: int) -> Iterator[tuple[str, int]]:
    for number in range(count):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            yield name, number


def compare_accuracy(config: ComponentConfig, seeds: int) -> None:
    """Trains both sides in full for each seed and prints their mean IoU."""
    found: dict[str, list[float]] = {"framework": [], "bare loop": []}
    for seed in range(seeds):
        seeded = TASKS.validate({**config.resolved(), "seed": seed})
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            Trainer(folder).train(build_task(seeded))
            found["framework"].append(read_json_lines(Path(folder) / "metrics.jsonl")[-1]["mean_iou"])
            between = time.perf_counter()
            found["bare loop"].append(BareLoop(seeded, fused_loss=False).train(seed))
        print(
            f"seed {seed}: mean IoU framework {found['framework'][-1]:.4f} ({between - started:.0f} s), "
            f"bare loop {found['bare loop'][-1]:.4f} ({time.perf_counter() - between:.0f} s)",
            flush=True,
        )
    for name, values in found.items():
        print(f"{name}: mean {statistics.mean(values):.4f}, range {min(values):.4f}..{max(values):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="task_configs/camvid/fcn_resnet18.yaml")
    parser.add_argument("--steps", type=int, default=40, help="pairs of steps to time")
    parser.add_argument("--seeds", type=int, default=0, help="full trainings of both sides")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    config = TASKS.validate(load_config(arguments.config, ["hooks=[progress_bar]", *arguments.overrides]))
    if arguments.steps:
        compare_steps(config, arguments.steps)
    if arguments.seeds:
        compare_accuracy(config, arguments.seeds)


if __name__ == "__main__":
    main()
