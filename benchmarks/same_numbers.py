"""Whether a change kept the numbers: the same runs on an older commit and on this checkout, compared bit for bit.

Small runs of many kinds, one under two processes, and runs that the old code begins and both continue; with `--all` the
first 200 steps of the quick start and two epochs of CamVid, too (some minutes). Every step's and every phase's record
(losses, learning rates, metrics) and the weights and optimizer state of the last checkpoint must be equal; what is
timed is left out. Two kinds of numbers may differ a little, as the order of additions may change: losses of an
evaluation, and all that a run with accumulation gives. It is said where they do.

`python benchmarks/same_numbers.py COMMIT` checks the older commit out into a temporary folder. `--keep FOLDER` keeps
what the old code gave, for the next time. Exit code 1 says that something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CLASSYSEG_DATA") or ROOT.parent / "shared/data")
TIMED = ("seconds", "samples_per_second", "data_wait")
"""The keys of a record that differ between any two runs."""
LAST_BITS = 1e-6
"""How far, relatively, the loss of an evaluation may be from what it was."""
ACCUMULATED = 1e-4
"""How far losses and weights may be where gradients of several parts are added."""
STOP_VARIABLE = "SAME_NUMBERS_STOP_AT"

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
"""In the spelling of the oldest commit that one may ask for; `spelled` translates it."""


@dataclass(frozen=True)
class Run:
    """A run on both sides. `stop` ends it at (phase, step of the phase) with a checkpoint."""

    changes: Mapping[str, str] = field(default_factory=dict)
    """Values in YAML at dotted paths of the config."""
    config: str | None = None
    """A task config of the old commit; without one, `BASE`."""
    processes: int = 1
    stop: tuple[str, int] | None = None
    continues: bool = False
    """Only the old code runs until `stop`; then each side continues it from the old code's checkpoint."""
    needs: str | None = None
    """A folder of real data."""
    tolerance: float = 0.0
    other_losses: bool = False
    """Whether the loss of an evaluation counts outputs that the old code gave in training alone."""


RUNS: dict[str, Run] = {
    "plain": Run(),
    # Without batch norm: over parts of two images it makes a difference of the last bit one of a percent in six steps.
    "accumulation": Run(
        {
            "runtime.accumulate_steps": "2",
            "loss": "{name: focal}",
            "model.norm": "{name: group, groups: 8}",
            "model.heads.main.norm": "{name: group, groups: 8}",
        },
        tolerance=ACCUMULATED,
    ),
    "auxiliary_head": Run(
        {
            "model.heads.aux": "{name: fcn, blocks: [stage3], train_only: true}",
            "loss": "{name: ohem_cross_entropy, head_weights: {aux: 0.4}}",
        }
    ),
    "dice": Run({"loss": "{name: dice}", "optimizer.schedule": "{name: cosine}"}),
    "psp": Run({"model.heads.main": "{name: psp, blocks: [stage4]}", "model.output_stride": "8"}),
    "upernet": Run({"model.heads.main": "{name: upernet, blocks: [stage1, stage2, stage3, stage4]}"}),
    "ocr": Run(
        {
            "model.heads.main": "{name: ocr, blocks: [stage3, stage4]}",
            "model.heads.aux": "{name: fcn, blocks: [stage3], train_only: true}",
        },
        other_losses=True,  # of the coarse prediction, too, which was there in training alone
    ),
    "swin": Run(
        {"model": "{name: swin_t, heads: {main: {name: segformer, blocks: [stage1, stage2, stage3, stage4]}}}"}
    ),
    "milestones": Run({"optimizer.schedule": "{name: multi_step, milestones: [1]}"}),
    "mid_epoch_saves": Run({"hooks": "[{name: checkpoint, every_steps: 2, best: mean_iou}]"}),
    "two_processes": Run({"loss": "{name: ohem_cross_entropy}"}, processes=2),
    "resume_in_training": Run(stop=("train", 3), continues=True),
    "resume_in_evaluation": Run({"meters": "[mean_iou, boundary_iou]"}, stop=("val", 3), continues=True),
    "resume_of_two_processes": Run({"optimizer.name": "adamw"}, processes=2, stop=("train", 4), continues=True),
}
LONG_RUNS: dict[str, Run] = {
    "quick_start": Run(
        {"hooks": "[checkpoint]", "runtime.threads": "1", "runtime.device": "cpu"},
        config="quickstart.yaml",
        stop=("train", 200),
    ),
    "camvid": Run(
        {
            "num_epochs": "2",
            "dataset.train.transforms.0.size": "[96, 128]",
            "dataset.train.transforms.0.scale": "[0.3, 0.5]",
            "dataset.test.transforms.0.size": "[120, 160]",
            "runtime.threads": "1",
            "runtime.device": "cpu",
        },
        config="camvid/fcn_resnet18.yaml",
        needs="camvid",
    ),
}


# -- one run in a process of its own, with the code of either side ---------------------------------------------------


def train(arguments: Sequence[str]) -> int:
    """The command line of training, with a hook that stops where `STOP_VARIABLE` says (as SIGTERM would)."""
    from classyseg.cli.train import main as train_main
    from classyseg.hooks import ClassyHook, register_hook

    phase, _, step = os.environ.get(STOP_VARIABLE, "").partition(":")

    @register_hook("stop_at")
    class StopAt(ClassyHook):
        """Ends the run at a step of a phase; steps of training are counted over all epochs."""

        def on_step(self, task: Any) -> None:
            progress = task.progress
            training = progress.phase == "train"
            number = progress.step if training else progress.step_in_phase
            if step and (phase == "train") == training and number == int(step):
                signal.raise_signal(signal.SIGTERM)

    return train_main(list(arguments))


# -- configs ---------------------------------------------------------------------------------------------------------


def knows_val(checkout: Path) -> bool:
    """Whether the code calls the data that training is measured on `val`, no longer `test`."""
    files = (checkout / "classyseg/tasks").rglob("*.py")
    return any("val_every_epochs" in path.read_text(encoding="utf-8") for path in files)


def spelled(config: dict[str, Any], checkout: Path) -> dict[str, Any]:
    """A config of before in the words of `checkout`."""
    data = config["dataset"]
    if not knows_val(checkout) or "val" in data:
        return config
    words = {"test_every_epochs": "val_every_epochs"}
    renamed = {words.get(key, key): value for key, value in config.items()}
    return renamed | {"dataset": {{"test": "val"}.get(key, key): value for key, value in data.items()}}


def config_of(run: Run, old_checkout: Path) -> dict[str, Any]:
    """The run's config in the old commit's words."""
    path = old_checkout / "task_configs" / run.config if run.config else None
    config = yaml.safe_load(path.read_text(encoding="utf-8") if path else BASE)
    for place, text in run.changes.items():
        *parents, last = place.split(".")
        node = config
        for parent in parents:
            if parent == "test" and parent not in node:
                parent = "val"
            node = node[int(parent) if isinstance(node, list) else parent]
        node[last] = yaml.safe_load(text)
    config["hooks"] = [hook for hook in config["hooks"] if hook not in ("progress_bar", "report")]
    config["hooks"] += [{"name": "log", "every": 1}, "stop_at"]
    return config


# -- both sides ------------------------------------------------------------------------------------------------------


class Side:
    """The code of one commit: `start` trains with it, `end` says in words what went wrong."""

    running: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout

    def start(self, run: Run, config: dict[str, Any], output: Path, *, stops: bool, resumes: bool = False) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        path = output.parent / f"{output.name}.json"
        path.write_text(json.dumps(spelled(config, self.checkout), indent=1), encoding="utf-8")
        launch = [sys.executable]
        if run.processes > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(run.processes)]
        command = [*launch, str(Path(__file__).resolve()), "--train", "--config", str(path), "--output", str(output)]
        command += ["--resume"] if resumes else []
        environment = os.environ | {"PYTHONPATH": str(self.checkout), "OMP_NUM_THREADS": "1"}
        environment |= {"CLASSYSEG_DATA": str(DATA), STOP_VARIABLE: ""}
        if stops and run.stop:
            environment[STOP_VARIABLE] = f"{run.stop[0]}:{run.stop[1]}"
        self._stopped = bool(environment[STOP_VARIABLE])
        self._log = output.parent / f"{output.name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, cwd=self.checkout, env=environment, stdout=log, stderr=log)
        self.running.append(self._process)

    def end(self, run: Run) -> str:
        code = self._process.wait()
        self.running.remove(self._process)
        # torchrun gives 1 for any error of its processes
        expected = (143, 1) if self._stopped and run.processes > 1 else (143,) if self._stopped else (0,)
        return "" if code in expected else f"exit code {code}: {self._log.read_text(errors='replace')[-6000:]}"


def records(path: Path, *, renames: bool) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [{key: value for key, value in json.loads(line).items() if key not in TIMED} for line in lines]
    if renames:
        found = [record | ({"phase": "val"} if record.get("phase") == "test" else {}) for record in found]
    return found


def tensors(run: Path) -> dict[str, torch.Tensor]:
    newest = run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text(encoding="utf-8").split()[0]
    files = (newest / "model.safetensors", newest / "optimizer.safetensors")
    return {f"{path.stem}.{name}": tensor for path in files for name, tensor in load_file(path).items()}


def distance(before: Any, after: Any) -> float:
    """How far two values of records are from each other, relatively; infinity where they are no numbers."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        return max((distance(before[key], after[key]) for key in before), default=0.0)
    if not (isinstance(before, int | float) and isinstance(after, int | float)):
        return 0.0 if before == after else float("inf")
    return abs(before - after) / max(abs(before), 1e-12)


class Differences:
    """What differs between two runs: `wrong` in words, `last_bits` as the largest distance that is allowed."""

    def __init__(self, tolerance: float, *, other_losses: bool = False) -> None:
        self.tolerance = tolerance
        self.of_losses = float("inf") if other_losses else LAST_BITS
        self.wrong: list[str] = []
        self.last_bits = 0.0

    def of_records(self, before: list[dict[str, Any]], after: list[dict[str, Any]], kind: str) -> None:
        if len(before) != len(after):
            self.wrong.append(f"{len(before)} records of {kind}s were written, now {len(after)}")
        for old, new in zip(before, after, strict=False):
            evaluated = old.get("phase", "train") != "train"
            for key in old:
                if old[key] == new.get(key):
                    continue
                allowed = max(self.tolerance, self.of_losses if evaluated and key == "loss" else 0.0)
                self._add(distance(old[key], new.get(key)), allowed, f"{kind} {old}: {key} is {new.get(key)}")

    def of_tensors(self, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
        if before.keys() != after.keys():
            self.wrong.append(f"other tensors in the checkpoint: {sorted(before.keys() ^ after.keys())[:5]}")
        for name in sorted(before.keys() & after.keys()):
            old, new = before[name], after[name]
            if old.shape != new.shape or old.dtype != new.dtype:
                self.wrong.append(f"{name} was {old.dtype} {tuple(old.shape)}, is {new.dtype} {tuple(new.shape)}")
            elif not torch.equal(old, new):
                far = (old.double() - new.double()).norm() / old.double().norm().clamp(min=1e-12)
                self._add(far.item(), self.tolerance, f"{name} differs by {far.item():.1e} of its length")

    def _add(self, far: float, allowed: float, text: str) -> None:
        if far <= allowed:
            self.last_bits = max(self.last_bits, far)
        else:
            self.wrong.append(text)

    def __str__(self) -> str:
        if self.wrong:
            return "; ".join(self.wrong[:3]) + (f"; and {len(self.wrong) - 3} more" if len(self.wrong) > 3 else "")
        if not self.last_bits:
            return "equal, bit for bit"
        if self.of_losses == float("inf"):
            return "equal, bit for bit, but for losses of evaluation, which count more terms than before, on purpose"
        return f"equal, bit for bit, but for last bits of losses ({self.last_bits:.0e})"


class Comparison:
    """Runs on both sides, in `folder`. What the old side gave lies in `kept`, if anywhere, by name and config."""

    def __init__(self, old_checkout: Path, kept: Path | None, folder: Path) -> None:
        self.old, self.new = Side(old_checkout), Side(ROOT)
        self._kept, self._folder = kept, folder

    def compare(self, name: str, run: Run) -> Differences:
        """What was written is gone afterwards, but for what is kept: all runs at once would fill a small disk.

        Raises: `RuntimeError` with what was printed where a run failed.
        """
        config = config_of(run, self.old.checkout)
        key = hashlib.sha256(repr((config, run)).encode()).hexdigest()[:8]
        try:
            return self._compare(run, config, (self._kept or self._folder / "old") / f"{name}-{key}")
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _compare(self, run: Run, config: dict[str, Any], old: Path) -> Differences:
        new = self._folder / "new"
        done = old.with_name(f"{old.name}.done")
        begun = old.with_name(f"{old.name}.begun")
        known = done.exists()
        if not known:
            for path in (old, begun):
                shutil.rmtree(path, ignore_errors=True)
        if run.continues and not known:
            self.old.start(run, config, old, stops=True)
            self._ended(run, old=True)
            shutil.copytree(old, begun)
        if run.continues:
            shutil.copytree(begun, new)
        how = {"stops": not run.continues, "resumes": run.continues}
        self.new.start(run, config, new, **how)
        if not known:
            self.old.start(run, config, old, **how)
        self._ended(run, old=not known, new=True)
        done.touch()
        found = Differences(run.tolerance, other_losses=run.other_losses)
        for file, kind in (("metrics.jsonl", "phase"), ("steps.jsonl", "step")):
            sides = ((old, self.old), (new, self.new))
            found.of_records(*(records(at / file, renames=not knows_val(side.checkout)) for at, side in sides), kind)
        found.of_tensors(tensors(old), tensors(new))
        return found

    def _ended(self, run: Run, *, old: bool = False, new: bool = False) -> None:
        problems = [f"old: {self.old.end(run)}"] if old else []
        problems += [f"new: {self.new.end(run)}"] if new else []
        problems = [text for text in problems if not text.endswith(": ")]
        if problems:
            raise RuntimeError("; ".join(problems))


MARK = "same-numbers-"
"""How the temporary folders of this script begin; the number of its process follows."""


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """`commit` in a folder of its own, which goes when the comparison ends: at a signal, too."""
    git = ["git", "-C", str(ROOT), "worktree"]
    remove_left()
    with tempfile.TemporaryDirectory(prefix=f"{MARK}{os.getpid()}-") as text:
        folder = Path(text) / "checkout"
        try:
            subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def remove_left() -> None:
    """Removes what a killed comparison left: checkouts of this repository whose process is gone."""
    git = ["git", "-C", str(ROOT), "worktree"]
    listed = subprocess.run([*git, "list", "--porcelain"], check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        path = Path(line.removeprefix("worktree "))
        made_by = re.fullmatch(rf"{MARK}(\d+)-.*", path.parent.name)
        if line.startswith("worktree ") and made_by and not Path(f"/proc/{made_by[1]}").exists():
            subprocess.run([*git, "remove", "--force", str(path)], check=False)
            shutil.rmtree(path.parent, ignore_errors=True)
    subprocess.run([*git, "prune"], check=False)


def end_at(number: int, frame: object) -> None:
    """Ends this script as an error does, so that it cleans up; and the runs that it started."""
    signal.signal(number, signal.SIG_IGN)  # `timeout` sends more than one
    for process in Side.running:
        process.terminate()
    for process in Side.running:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the commit to compare this checkout with")
    parser.add_argument("--runs", nargs="+", choices=[*RUNS, *LONG_RUNS], help="these only")
    parser.add_argument("--all", action="store_true", help=f"the long ones, too: {', '.join(LONG_RUNS)}")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="keep (and use) what the old code gives there")
    arguments = parser.parse_args()
    known = RUNS | LONG_RUNS
    names = arguments.runs or [*(known if arguments.all else RUNS)]
    git = ["git", "-C", str(ROOT), "rev-parse", f"{arguments.commit}^{{commit}}"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    equal = True
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end_at)
    with checked_out(commit) as checkout:
        kept = arguments.keep.resolve() / commit if arguments.keep else None
        comparison = Comparison(checkout, kept, checkout.parent / "runs")
        for name in names:
            needed = known[name].needs
            if needed and not (DATA / needed).is_dir():
                print(f"{name}: not compared, {DATA / needed} is not there (set CLASSYSEG_DATA)", flush=True)
                continue
            try:
                found = comparison.compare(name, known[name])
                equal = equal and not found.wrong
                print(f"{name}: {found}", flush=True)
            except RuntimeError as error:
                equal = False
                print(f"{name}: {error}", flush=True)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(train(sys.argv[2:]) if sys.argv[1:2] == ["--train"] else main())
