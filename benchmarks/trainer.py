"""What the framework costs over the loops that people write: `python benchmarks/trainer.py` measures all of it.

- `steps`: a step of a training in `Trainer`, its data included, against a hand-written loop over the same torch model,
  data and loss. The loops run in turn, step by step: after each step of the framework comes one of the other loop.
- `accuracy` (only when named): the mean IoU of both sides over `--seeds`, each trained in full on `--config`.

Lightning is measured where this Python can import it: `pip install lightning`, in an environment of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from classyseg import ClassyDataset, ClassyHook, ClassyModel, Trainer, build_task
from classyseg.config import load_config
from classyseg.hooks import WatchedTask
from classyseg.io import read_json_lines
from classyseg.layers import ConvNormAct
from classyseg.losses import CrossEntropyLoss
from classyseg.registry import DATASETS, HOOKS, MODELS, TASKS, ComponentConfig
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import apply_transforms

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
PARTS = ("steps",)
WARM_STEPS = 20
TURN = 10
NO_LIGHTNING = "skipped, Lightning is not installed here: `pip install lightning`, in an environment of its own"
NUM_CLASSES, SIDE, BATCH = 4, 48, 4


# -- the small run: its data lie in memory, a step takes about 2.5 ms -------------------------------------------------


@DATASETS.register("benchmark_noise")
class Noise(ClassyDataset):
    """A few images of noise in memory, again and again."""

    classes = tuple("abcd")
    channels = 3

    def __init__(self, *, num_samples: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (64, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        self.masks = torch.randint(0, NUM_CLASSES, (64, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def load(self, index: int) -> Sample:
        return Sample(self.images[index % 64], self.masks[index % 64], str(index))


@MODELS.register("benchmark_net")
class Net(ClassyModel):
    """Four convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        channels, stride = 3, 1
        for i, width in enumerate((16, 32, 64, 64), start=1):
            self.layers.append(ConvNormAct(channels, width, stride=2))
            channels, stride = width, stride * 2
            self.add_block(f"stage{i}", width, stride, f"layers.{i - 1}")

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        features = {}
        for i, layer in enumerate(self.layers, start=1):
            image = features[f"stage{i}"] = layer(image)
        return features


def small_config(num_steps: int) -> dict[str, Any]:
    return {
        "name": "segmentation",
        "num_steps": num_steps,
        "batch_size": BATCH,
        "dataset": {"train": {"name": "benchmark_noise", "num_samples": BATCH * num_steps}},
        "model": {"name": "benchmark_net", "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}},
        "loss": {"name": "cross_entropy"},
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "schedule": {"name": "polynomial"}},
        "runtime": {"device": "cpu", "workers": 0},
    }


# -- the loop by hand -------------------------------------------------------------------------------------------------


class Epoch(Dataset[tuple[Tensor, Tensor]]):
    """The samples of one epoch, with the framework's transforms and without its checks."""

    def __init__(self, dataset: ClassyDataset, epoch: int) -> None:
        self.dataset, self.epoch = dataset, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        dataset = self.dataset
        if not dataset.transforms:
            sample = dataset.load(index)
        else:
            generator = generator_for(dataset.seed, self.epoch, index)
            counts = {"num_samples": len(dataset), "num_classes": dataset.num_classes}
            sample = apply_transforms(dataset.transforms, dataset.load, index, generator, **counts)
        return sample.image, sample.target


class BareLoop:
    """A training loop by hand; `fused_loss` takes classyseg's loss, else torch's interpolate and cross entropy."""

    def __init__(self, config: ComponentConfig, *, fused_loss: bool) -> None:
        parts = build_task(config)  # only to get the same data sets and the same initial weights
        self.config: Any = config
        self.train_set = parts.data.sets["train"]
        self.val_set = parts.data.sets.get("val")
        self.model: nn.Module = parts.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer, loss = self.config.optimizer, self.config.loss
        self.lr, self.power = optimizer.lr, optimizer.schedule.power
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), self.lr, momentum=optimizer.momentum, weight_decay=optimizer.weight_decay
        )
        self.ignore = self.train_set.ignore_index
        self.weights = None if loss.class_weights is None else torch.tensor(loss.class_weights)
        self.fused = CrossEntropyLoss(self.ignore, class_weights=loss.class_weights) if fused_loss else None
        self.steps_per_epoch = len(self.train_set) // self.config.batch_size
        self.num_steps = parts.num_steps
        self.warmup = self.steps_per_epoch * optimizer.schedule.warmup_epochs
        self.done = 0

    def loader(self, epoch: int, generator: torch.Generator | None = None) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(
            Epoch(self.train_set, epoch),
            batch_size=self.config.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.config.runtime.workers,
            generator=generator,
        )

    def steps(self) -> Iterator[None]:
        """Steps for ever, one for each `next`, each with the time to load its batch."""
        self.model.train()
        epoch = 0
        while True:
            for image, target in self.loader(epoch):
                self.step(image, target)
                yield
            epoch += 1

    def step(self, image: Tensor, target: Tensor) -> None:
        if self.done < self.warmup:
            factor = 0.001 + (1 - 0.001) * self.done / self.warmup
        else:
            factor = (1 - (self.done - self.warmup) / (self.num_steps - self.warmup)) ** self.power
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        loss = self.loss(image, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.done += 1

    def loss(self, image: Tensor, target: Tensor) -> Tensor:
        image = ((image / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        logits = self.model(image)["main"]
        target = target.long()
        if self.fused is not None:
            return self.fused(logits, target)  # type: ignore[no-any-return]
        full = functional.interpolate(logits, target.shape[1:], mode="bilinear")
        return functional.cross_entropy(full, target, self.weights, ignore_index=self.ignore)

    def train(self, seed: int) -> float:
        """The whole schedule; the mean IoU on the validation set."""
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        for epoch in range(self.config.num_epochs):
            self.model.train()
            for image, target in self.loader(epoch, generator):
                self.step(image, target)
        return self.evaluate()

    @torch.no_grad()
    def evaluate(self) -> float:
        assert self.val_set is not None
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


# -- steps ------------------------------------------------------------------------------------------------------------


class Turns:
    """Runs `TURN` steps of each other loop after every `TURN` steps of a framework, and times all of them.

    The first step of a turn finds a processor's caches full of the others' work. It does not count.
    """

    def __init__(self, others: Mapping[str, Iterator[None]]) -> None:
        self.others = others
        self.times: dict[str, list[Time]] = {name: [] for name in ("framework", *others)}
        self.done = 0
        self.resumed = now()

    def after_step(self) -> None:
        if self.done % TURN:
            self.times["framework"].append(since(self.resumed))
        self.done += 1
        if self.done % TURN == 0:
            for name, steps in self.others.items():
                next(steps)
                for _ in range(TURN - 1):
                    started = now()
                    next(steps)
                    self.times[name].append(since(started))
        self.resumed = now()

    def report(self, framework: str) -> None:
        """A machine with other work delays both sides at random: its processor time says more."""
        for name in self.others:
            for kind, clock, pick in (
                ("processor time, median", 1, statistics.median),
                ("processor time, fastest tenth", 1, first_tenth),
                ("wall time, fastest tenth", 0, first_tenth),
            ):
                ours, theirs = (
                    1000 * pick([time[clock] for time in self.times[side][WARM_STEPS:]]) for side in ("framework", name)
                )
                print(
                    f"step, {framework} / {name}: {ours / theirs:.3f} ({ours:.3f} and {theirs:.3f} ms, {kind})",
                    flush=True,
                )


Time = tuple[float, float]


def now() -> Time:
    """Wall time and the processor time of this process."""
    return time.perf_counter(), time.process_time()


def since(start: Time) -> Time:
    end = now()
    return end[0] - start[0], end[1] - start[1]


def first_tenth(seconds: Sequence[float]) -> float:
    """The time that one step in ten stays below."""
    return statistics.quantiles(seconds, n=10)[0]


@HOOKS.register("benchmark_turns")
class TurnsHook(ClassyHook):
    """Gives the turn to the other loops."""

    turns: Turns

    def on_step(self, task: WatchedTask) -> None:
        if task.progress.phase == "train":
            self.turns.after_step()


def compare_steps(config: dict[str, Any]) -> None:
    """A training, and the loops by hand between its steps."""
    ready = TASKS.validate(config)
    loops = {
        "bare loop with the same loss": BareLoop(ready, fused_loss=True),
        "bare loop": BareLoop(ready, fused_loss=False),
    }
    turns = Turns({name: loop.steps() for name, loop in loops.items()})
    task = build_task({**config, "hooks": ["checkpoint", "progress_bar", "benchmark_turns"]})
    for hook in task.hooks:
        if isinstance(hook, TurnsHook):
            hook.turns = turns
    with tempfile.TemporaryDirectory() as folder:
        Trainer(folder).train(task)
    turns.report("framework")
    if importlib.util.find_spec("lightning") is None:
        print(f"step of Lightning: {NO_LIGHTNING}")
    else:
        compare_lightning_steps(ready)


def compare_lightning_steps(config: ComponentConfig) -> None:
    """The same of Lightning's trainer."""
    import lightning

    loop = BareLoop(config, fused_loss=True)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = loop.model

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return loop.loss(*batch)

        def configure_optimizers(self) -> Any:
            schedule = torch.optim.lr_scheduler.PolynomialLR(loop.optimizer, loop.num_steps, loop.power)
            return {"optimizer": loop.optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class Callback(lightning.Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            turns.after_step()

    other = BareLoop(config, fused_loss=True)
    turns = Turns({"bare loop with the same loss": other.steps()})
    quiet_lightning()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=loop.num_steps,
            callbacks=[Callback()],
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), loop.loader(0))
    turns.report("Lightning")


def quiet_lightning() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


# -- accuracy ---------------------------------------------------------------------------------------------------------


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}, accuracy; all but the last")
    parser.add_argument("--config", help="a task config for `steps` and `accuracy`, in place of the small run")
    parser.add_argument("--steps", type=int, default=1000, help="how many steps to time")
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings of both sides")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="changes of the config")
    arguments = parser.parse_intermixed_args()
    for part in arguments.parts or PARTS:
        if part == "steps":
            compare_steps(steps_config(arguments.config, arguments.steps + WARM_STEPS + TURN, arguments.set))
        elif part == "accuracy":
            config = arguments.config or parser.error("accuracy: give --config")
            compare_accuracy(TASKS.validate(load_config(config, arguments.set)), arguments.seeds)
        else:
            parser.error(f"found the part {part}; accepted are {', '.join(PARTS)}, accuracy")


def steps_config(path: str | None, num_steps: int, changes: Sequence[str]) -> dict[str, Any]:
    """A run of so many steps that does not measure."""
    if path is None:
        return small_config(num_steps)
    length = [f"num_steps={num_steps}", "num_epochs=null", "optimizer.schedule.warmup_epochs=0"]
    unmeasured = ["dataset.val=null", "val_every_epochs=null", "hooks=[checkpoint, progress_bar]"]
    config: dict[str, Any] = TASKS.validate(load_config(path, [*length, *unmeasured, *changes])).resolved()
    return config


if __name__ == "__main__":
    main()
