"""What the framework costs over the loops that people write: `python benchmarks/trainer.py` measures all of it.

- `steps`: a step of a training in `Trainer`, its data included, against a hand-written loop over the same torch model,
  data and loss. The loops run in turn, step by step: after each step of the framework comes one of the other loop.
- `start`: seconds from nothing to the end of the first training step, in fresh processes, against Lightning's.
- `stall`: how long a training waits for an asynchronous checkpoint of 400 MB, against `torch.save` of the same tensors.
- `ema`: a step with the hook `ema`, against one without it.
- `trackers`: a step that is told to each tracker, against one without. By default they are told every 50th.
- `accuracy` (only when named): the mean IoU of both sides over `--seeds`, each trained in full on `--config`.

Lightning is measured where this Python can import it: `pip install lightning`, in an environment of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bare_loop import BareLoop
from torch import Tensor, nn

from classyseg import ClassyDataset, ClassyHook, ClassyModel, Trainer, build_task
from classyseg.config import load_config
from classyseg.hooks import CheckpointHook, WatchedTask
from classyseg.io import read_json_lines
from classyseg.layers import ConvNormAct
from classyseg.registry import DATASETS, HOOKS, MODELS, TASKS, ComponentConfig
from classyseg.structures import Sample
from classyseg.tasks import ClassyTask

PARTS = ("steps", "start", "stall", "ema", "trackers")
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

    def __init__(self, *, num_samples: int, side: int = SIDE) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (64, 3, side, side), dtype=torch.uint8, generator=generator)
        self.masks = torch.randint(0, NUM_CLASSES, (64, side, side), dtype=torch.uint8, generator=generator)
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def load(self, index: int) -> Sample:
        return Sample(self.images[index % 64], self.masks[index % 64], str(index))


@MODELS.register("benchmark_net")
class Net(ClassyModel):
    """Four convolutions, and a buffer of `ballast` MB that only makes checkpoints larger."""

    def __init__(self, *, ballast: int = 0) -> None:
        super().__init__()
        self.register_buffer("ballast", torch.rand(ballast * 250_000))
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
        warm = min(WARM_STEPS, len(self.times["framework"]) // 4)
        for name in self.others:
            for kind, clock, pick in (
                ("processor time, median", 1, statistics.median),
                ("processor time, fastest tenth", 1, first_tenth),
                ("wall time, fastest tenth", 0, first_tenth),
            ):
                ours, theirs = (
                    1000 * pick([time[clock] for time in self.times[side][warm:]]) for side in ("framework", name)
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


# -- start -------------------------------------------------------------------------------------------------------------

OURS = """
import sys
sys.path.insert(0, {folder!r})
import trainer
trainer.first_step()
"""
LIGHTNING = """
import logging, time, warnings
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
import lightning, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for width in (16, 32, 64, 64):
            layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.net = nn.Sequential(*layers, nn.Conv2d(64, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, {classes}, 1))

    def training_step(self, batch, index):
        image, target = batch
        logits = nn.functional.interpolate(self.net(image.float() / 255), target.shape[1:], mode="bilinear")
        return nn.functional.cross_entropy(logits, target.long())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)

class First(lightning.Callback):
    def on_train_batch_end(self, *arguments):
        print("FIRST", time.time(), time.process_time(), flush=True)

images = torch.randint(0, 256, (64, 3, {side}, {side}), dtype=torch.uint8)
masks = torch.randint(0, {classes}, (64, {side}, {side}), dtype=torch.uint8)
loader = DataLoader(TensorDataset(images, masks), {batch}, shuffle=True)
lightning.Trainer(accelerator="cpu", max_steps=1, callbacks=[First()], logger=False).fit(Module(), loader)
"""


@HOOKS.register("benchmark_first")
class FirstHook(ClassyHook):
    """Tells when the first step is done."""

    def on_step(self, task: WatchedTask) -> None:
        print("FIRST", time.time(), time.process_time(), flush=True)


def first_step() -> None:
    """A training of one step, with the hooks that a config has by itself."""
    with tempfile.TemporaryDirectory() as folder:
        hooks = ["checkpoint", "progress_bar", "benchmark_first"]
        Trainer(folder).train(build_task({**small_config(1), "hooks": hooks}))


def compare_starts(repeats: int) -> None:
    if importlib.util.find_spec("lightning") is None:
        print(f"start: {NO_LIGHTNING}")
        return
    numbers = {"side": SIDE, "batch": BATCH, "classes": NUM_CLASSES}
    codes = {"framework": OURS.format(folder=str(Path(__file__).parent)), "Lightning": LIGHTNING.format(**numbers)}
    found: dict[str, list[Time]] = {side: [] for side in codes}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for side, code in codes.items():
                started = time.time()
                run = subprocess.run(
                    [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, cwd=folder
                )
                line = next(line for line in run.stdout.splitlines() if "FIRST" in line)
                ended, cpu = map(float, line.partition("FIRST")[2].split()[:2])
                found[side].append((ended - started, cpu))
    for clock, kind in enumerate(("wall time", "processor time")):
        ours, theirs = (statistics.median(time[clock] for time in found[side]) for side in codes)
        print(f"start, framework / Lightning: {ours / theirs:.3f} (at most 0.7; {ours:.2f} and {theirs:.2f} s, {kind})")


# -- stall -------------------------------------------------------------------------------------------------------------


@HOOKS.register("benchmark_stall")
class StallHook(ClassyHook):
    """Saves as the hook `checkpoint` does, and by `torch.save`, in turn; times both."""

    def __init__(self) -> None:
        self.checkpoints = CheckpointHook(every_epochs=None, every_steps=1, keep=1, asynchronous=True)
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def on_step(self, task: WatchedTask) -> None:
        assert isinstance(task, ClassyTask)
        assert task.run_folder is not None
        started = time.perf_counter()
        self.checkpoints.on_step(task)
        self.ours.append(time.perf_counter() - started)
        task.writer.wait()
        groups = task.checkpoint_tensors()
        started = time.perf_counter()
        torch.save(groups, task.run_folder / "by_torch.pt")
        self.theirs.append(time.perf_counter() - started)


def measure_stall(megabytes: int, repeats: int) -> None:
    config = small_config(repeats + 1)
    config["model"]["ballast"] = megabytes
    task = build_task({**config, "hooks": ["benchmark_stall"]})
    (hook,) = task.hooks
    assert isinstance(hook, StallHook)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(folder).train(task)
    # The first save of a run makes room for the copies; the later ones reuse it.
    first, ours, theirs = hook.ours[0], statistics.median(hook.ours[1:]), statistics.median(hook.theirs[1:])
    print(
        f"stall of {megabytes} MB, asynchronous / torch.save: {ours / theirs:.3f} (at most 0.3; {1000 * ours:.0f} and "
        f"{1000 * theirs:.0f} ms, medians of {repeats}; the run's first one {1000 * first:.0f} ms)"
    )


# -- ema ---------------------------------------------------------------------------------------------------------------


def steps_of(task: ClassyTask, folder: str) -> Iterator[None]:
    """The steps of a run's only phase, as the trainer takes them."""
    task.start(Path(folder))
    task.start_phase()
    for batch in task.batches():
        task.step(batch)
        task.agree_to_stop(False)
        yield


def measure_ema(num_steps: int) -> None:
    config = small_config(num_steps)
    config["model"] = {"name": "resnet18", "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}}
    config["dataset"]["train"]["side"] = 128
    sides = {name: build_task({**config, "hooks": hooks}) for name, hooks in (("with", ["ema"]), ("without", []))}
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        turns = Turns({"a step without": steps_of(sides["without"], two)})
        for _ in steps_of(sides["with"], one):
            turns.after_step()
    turns.report("with `ema` (at most 1.03)")
    for task in sides.values():
        task.close()


# -- trackers ----------------------------------------------------------------------------------------------------------


def measure_trackers(num_steps: int) -> None:
    """A step that is told to a tracker, against one of a run without; the tracker writes in a thread meanwhile."""
    for name in ("csv", "tensorboard", "wandb", "mlflow"):
        config = small_config(num_steps)
        hooks = [{"name": name, "every": 1}]
        sides = {side: build_task({**config, "hooks": own}) for side, own in (("with", hooks), ("without", []))}
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            turns = Turns({"a step without": steps_of(sides["without"], two)})
            for _ in steps_of(sides["with"], one):
                turns.after_step()
            for task in sides.values():
                task.close()
        turns.report(f"with `{name}`, every step told")


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
    parser.add_argument("--repeats", type=int, default=5, help="how many starts, and how many saves, of both sides")
    parser.add_argument("--ema-steps", type=int, default=101, help="how many steps of `ema`")
    parser.add_argument("--tracker-steps", type=int, default=1000, help="how many steps of `trackers`")
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings of both sides")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="changes of the config")
    arguments = parser.parse_intermixed_args()
    for part in arguments.parts or PARTS:
        if part == "steps":
            compare_steps(steps_config(arguments.config, arguments.steps + WARM_STEPS + TURN, arguments.set))
        elif part == "start":
            compare_starts(arguments.repeats)
        elif part == "stall":
            measure_stall(400, arguments.repeats)
        elif part == "ema":
            measure_ema(arguments.ema_steps)
        elif part == "trackers":
            measure_trackers(arguments.tracker_steps)
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
