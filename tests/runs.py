"""Tiny runs for the tests: a config, a task in this process, and the command line in a process of its own."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from classyseg.checkpoint import save_checkpoint
from classyseg.checkpoint_writer import CheckpointWriter
from classyseg.complexity import Complexity, complexity
from classyseg.config import dump_yaml
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.records import RunRecords
from classyseg.registry import TASKS
from classyseg.structures import BestIs, LabelMeaning, Phase, PhaseTime, Progress, Sample
from classyseg.tasks import SegmentationTask, build_task

ROOT = Path(__file__).parents[1]
SLOW_IMPORTS = ("torchvision", "torch._dynamo", "sympy")
"""Modules whose imports take about a second each."""
TIMING = ("seconds", "samples_per_second", "data_wait")
"""What differs between two runs that are otherwise the same."""

SMALL_BACKBONE: dict[str, Any] = {
    "name": "anynet",
    "depths": [1, 1, 1, 1],
    "widths": [16, 32, 48, 64],
    "group_widths": [16, 32, 48, 64],
    "bottleneck_multipliers": [1.0, 1.0, 1.0, 1.0],
    "strides": [1, 2, 2, 2],
    "stem_type": "res_stem_in",
    "stem_width": 16,
    "use_se": False,
}
"""Blocks as a ResNet's, and 0.1 million parameters: hundreds of checkpoints are written in a run of the tests."""

LIMIT = 120.0
"""Seconds after which a process counts as hanging."""


def tiny_config(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A run of 3 epochs of 6 steps on drawn images; `changes` sets values at dotted paths."""
    config: dict[str, Any] = {
        "name": "segmentation",
        "num_epochs": 3,
        "batch_size": 8,
        "dataset": {
            "train": {
                "name": "synthetic_shapes",
                "split": "train",
                "num_samples": 48,
                "size": [32, 32],
                "transforms": ["horizontal_flip"],
            },
            "val": {"name": "synthetic_shapes", "split": "test", "num_samples": 6, "size": [32, 32]},
        },
        "model": {
            **SMALL_BACKBONE,
            "heads": {"main": {"name": "fcn", "blocks": ["stage2", "stage4"], "channels": 16, "dropout": 0.2}},
        },
        "loss": {"name": "cross_entropy"},
        "optimizer": {"name": "sgd", "lr": 0.02, "schedule": {"name": "polynomial", "warmup_epochs": 0.5}},
        "meters": ["mean_iou"],
        "hooks": [],
        "runtime": {"device": "cpu", "threads": 1, "workers": 0},
    }
    for path, value in (changes or {}).items():
        *parents, key = path.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[key] = copy.deepcopy(value) if isinstance(value, dict) else value  # the next path may go into it
    return config


IMAGES: dict[str, Any] = {"name": "synthetic_image", "split": "train", "num_samples": 16, "size": [8, 8]}
CLIPS: dict[str, Any] = {
    "name": "synthetic_video",
    "split": "train",
    "num_videos": 8,
    "video_frames": 6,
    "clips": {"frames": 3, "per_video": 1},
    "size": [8, 8],
}
PARTS_BY_KIND: dict[str, dict[str, Any]] = {
    "masks": {},
    "whole images": {
        "dataset": {"train": IMAGES, "val": {**IMAGES, "split": "test", "num_samples": 7}},
        "model": {**SMALL_BACKBONE, "heads": {"main": {"name": "linear", "blocks": ["stage4"]}}},
        "loss": {"name": "cross_entropy", "label_smoothing": 0.1},
        "meters": [{"name": "accuracy", "topk": [1, 2]}],
    },
    "clips": {
        "dataset": {"train": CLIPS, "val": {**CLIPS, "split": "test", "num_videos": 5}},
        "model": {
            "name": "resnext3d",
            "depths": [1, 1, 1, 1],
            "stem_channels": 8,
            "stage_channels": 8,
            "groups": 1,
            "width_per_group": 8,
            "frames": 3,
            "heads": {"main": {"name": "linear", "blocks": ["stage4"]}},
        },
        "meters": [{"name": "accuracy", "topk": [1, 2]}],
    },
}
"""What a run on data of each kind has in the place of the parts of `tiny_config`."""


def kind_of_task(name: str) -> str:
    """Which of `PARTS_BY_KIND` the task of that name takes."""
    task: Any = TASKS.entry(name).component
    return "clips" if task.takes_clips else "whole images" if task.whole_images else "masks"


def tiny_config_of(name: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """As `tiny_config`, for the task `name`, on data of the kind that it takes."""
    return tiny_config({**PARTS_BY_KIND[kind_of_task(name)], "name": name, **(changes or {})})


def write_config(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(dump_yaml(tiny_config(changes)), encoding="utf-8")
    return path


def tiny_task(changes: Mapping[str, Any] | None = None, *hooks: ClassyHook) -> SegmentationTask:
    """The task of `tiny_config(changes)`, watched by `hooks` beside the configured ones."""
    task = build_task(tiny_config(changes))
    assert isinstance(task, SegmentationTask)
    task.hooks = [*task.hooks, *hooks]
    return task


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file without what measures time."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMING} for record in records]


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Fails with the names of the tensors that differ in a bit."""
    assert found.keys() == expected.keys()
    assert [key for key, value in found.items() if not torch.equal(value, expected[key])] == []


class SignalAt(ClassyHook):
    """Sends this process a signal at one batch: the trainer sees what a user's Ctrl-C or a cluster would cause."""

    def __init__(self, phase: str, epoch: int, step_in_phase: int, number: int = signal.SIGTERM) -> None:
        self.moment = (phase, epoch, step_in_phase)
        self.number = number

    def on_step(self, task: WatchedTask) -> None:
        progress = task.progress
        if (progress.phase, progress.epoch, progress.step_in_phase) == self.moment:
            signal.raise_signal(self.number)


class Sees(ClassyHook):
    """Keeps the phase, the batch and the prediction of all that it is shown."""

    sees_predictions: Collection[Phase] = ("val", "test")

    def __init__(self) -> None:
        self.shown: list[tuple[str, Sample, Tensor]] = []

    def on_prediction(self, task: WatchedTask, batch: Sample, prediction: Tensor) -> None:
        self.shown.append((task.progress.phase, batch, prediction.clone()))

    @property
    def names(self) -> list[str]:
        return [name for _, batch, _ in self.shown for name in batch.names]


class FakeTask:
    """What a hook watches, without a model: 2 epochs of 10 steps; a checkpoint of it holds one number."""

    def __init__(self, run_folder: Path | None = None) -> None:
        self.config: dict[str, Any] = {"name": "segmentation"}
        self.progress = Progress()
        self.num_epochs: int | None = 2
        self.num_steps = 20
        self.run_folder = run_folder
        self.records = RunRecords(run_folder)
        self.writer = CheckpointWriter()
        self.last_loss = torch.tensor(0.5)
        self.metrics: dict[str, Any] = {}
        self.unseen_classes: Collection[str] = ()
        self.steps_per_epoch = self.num_batches = 10
        self.num_samples = 20
        self.labels = LabelMeaning(("sky", "road"), ((70, 130, 180), (128, 64, 128)), 255)
        self.lr = 0.1
        self.stop_reason: str | None = None
        self.samples_per_second = 20.0
        self.data_wait = 0.25
        self.phase_time = PhaseTime(0.0, 0.0, 0)

    @property
    def training_is_over(self) -> bool:
        return self.progress.step >= self.num_steps

    def request_stop(self, reason: str) -> None:
        raise AssertionError(reason)

    request_pause = request_stop

    def step_loss(self) -> float:
        return self.last_loss.item()

    def optimizer_numbers(self) -> dict[str, Any]:
        return {"gradient_norm": 1.0, "groups": {}}

    def input_shape(self, size: tuple[int, int] | None = None) -> tuple[tuple[int, ...], str]:
        return (4,), "a test"

    def complexity(self, shape: tuple[int, ...]) -> Complexity:
        model = nn.Sequential(nn.Linear(*shape, 2))
        return complexity(model, lambda: model(torch.zeros(1, *shape)))

    def describe_data(self) -> dict[str, dict[str, Any]]:
        return {"val": {"samples": 20, "size": None, "channels": 3, "bits": 8}}

    def recompute_batch_norm(self, num_batches: int) -> bool:
        return True

    def best_is(self, number: str) -> BestIs | None:
        return "smallest" if number == "loss" else "largest" if "iou" in number else None

    def save_checkpoint(self, *, asynchronous: bool = False) -> Path | None:
        if self.run_folder is None:
            return None
        step = self.progress.step
        save = self.writer.write if asynchronous else save_checkpoint
        return save(self.run_folder / "checkpoints", step, {"model": {"x": torch.tensor(step)}}, {})

    def steps(self, hook: ClassyHook, count: int = 10) -> None:
        for _ in range(count):
            self.progress.step += self.progress.phase == "train"
            self.progress.step_in_phase += 1
            hook.on_step(self)

    def end_phase(self, hook: ClassyHook, **values: Any) -> None:
        """Ends the phase as a task does: the record first, and `progress` at the next phase."""
        now = self.progress
        training = now.phase == "train"
        self.metrics = {"phase": now.phase, "epoch": now.epoch + training, "step": now.step, **values}
        self.progress = Progress(now.epoch + training, "val" if training else "train", now.step)
        hook.on_phase_end(self)


# -- the command line in processes of its own ----------------------------------------------------------------------

DISK_SECONDS = "TEST_DISK_SECONDS"
"""A variable of a `Command`'s environment: how much longer the disk takes to keep a file."""

_processes = multiprocessing.get_context("forkserver")  # imports torch once, not for every process
_processes.set_forkserver_preload(["classyseg.tasks", "classyseg.trainer", "classyseg.cli.train", "torch._dynamo"])


class Command:
    """`classy_train.py`, `classyseg evaluate` or a script of one's own, running; what it prints goes to the file `log`.

    Of a script, the first of `arguments` is its path.
    """

    def __init__(self, arguments: Sequence[object], log: Path, environment: Mapping[str, object] | None = None) -> None:
        self.log = log
        values = {key: str(value) for key, value in (environment or {}).items()}
        self._process = _processes.Process(target=_run, args=([str(a) for a in arguments], str(log), values))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def wait(self) -> int:
        """The exit code; minus the signal's number when a signal ended the process."""
        self._process.join(LIMIT)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"the process hangs; it said:\n{self.text}")
        return self._process.exitcode

    def signal_when(self, number: int, moment: Callable[[], bool]) -> None:
        """Sends `number` at a moment that still holds while the process stands still."""
        while True:
            self._process.join(0.002)
            assert self._process.exitcode is None, f"the process ended before the moment came:\n{self.text}"
            if not moment():
                continue
            os.kill(self.pid, signal.SIGSTOP)
            _wait_until_stopped(self.pid)
            holds = moment()
            if holds:
                os.kill(self.pid, number)
            os.kill(self.pid, signal.SIGCONT)
            if holds:
                return


def run_command(arguments: Sequence[object], log: Path, environment: Mapping[str, object] | None = None) -> int:
    return Command(arguments, log, environment).wait()


def start_job(arguments: Sequence[object], folder: Path, processes: int = 2) -> list[Command]:
    """The command line in as many processes as a `torchrun` on this machine would start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        Command(arguments, folder / f"rank{rank}.log", {**shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in range(processes)
    ]


def in_two_processes(work: Callable[[Path], None], folder: Path) -> None:
    """Calls `work(folder)` in each process of a group of two; an error in one fails here with what it printed."""
    group = [_processes.Process(target=_join_and_work, args=(work, folder, rank)) for rank in range(2)]
    for process in group:
        process.start()
    for process in group:
        process.join(LIMIT)
        process.kill()  # where it hangs
        process.join()
    printed = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("work*.log")))
    assert [process.exitcode for process in group] == [0, 0], printed


def _join_and_work(work: Callable[[Path], None], folder: Path, rank: int) -> None:
    _print_to(folder / f"work{rank}.log")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    work(folder)
    torch.distributed.destroy_process_group()


def _run(arguments: Sequence[str], log: str, environment: Mapping[str, str]) -> None:
    # Data workers come from a fork, as they do from a script before Python 3.14; a process from a fork server would use
    # that for them too, and each would import torch anew.
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(environment)
    _print_to(log)
    _slow_down_the_disk(float(environment.get(DISK_SECONDS, 0)))
    from classyseg.cli import main, train

    if arguments[0].endswith(".py"):
        sys.argv = [*arguments]
        runpy.run_path(arguments[0], run_name="__main__")
    is_command = arguments[:1] == ["evaluate"]  # of `classyseg`; else they are those of `classy_train.py`
    sys.exit((main.main if is_command else train.main)(arguments))


def _slow_down_the_disk(seconds: float) -> None:
    keep = os.fsync

    def fsync(descriptor: Any) -> None:
        time.sleep(seconds)
        keep(descriptor)

    os.fsync = fsync


def _print_to(log: str | Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _wait_until_stopped(pid: int) -> None:
    while Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "TZ":
        os.sched_yield()


def slow_imports(code: str, *arguments: object) -> str:
    """Runs `code`, which sets `status`, in a process of its own; gives it, and the slow modules that were imported."""
    code = f"import sys; {code}; print(status, *[name for name in {SLOW_IMPORTS} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    print(done.stderr, file=sys.stderr)  # pytest shows it where the test fails
    return done.stdout.splitlines()[-1]
