"""Damaged and hostile run folders, made from one small run that was stopped; each is resumed, and what came is judged.

`python tests/run_faults.py 300` makes so many (seeded), and prints what was wrong and how many ended in which way.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from classyseg.cli.train import main as train
from classyseg.trainer import Stopped, Trainer
from runs import SignalAt, tiny_task, write_config

CHANGES: dict[str, Any] = {
    "num_epochs": 2,
    "batch_size": 4,
    "dataset.train.num_samples": 16,
    "dataset.train.size": [16, 16],
    "dataset.val.num_samples": 2,
    "dataset.val.size": [16, 16],
    "meters": ["mean_iou", "confusion_matrix"],
    "hooks": [{"name": "checkpoint", "every_steps": 2, "keep": 9, "best": "mean_iou"}, {"name": "log", "every": 1}],
}
LAST_STEP = 8
SECONDS = 120
"""After so long a resumed run counts as hanging."""
TOP = (
    *(
        "config.yaml",
        "metrics.jsonl",
        "steps.jsonl",
        ".lock",
        "confusion_matrix.csv",
        "bad_samples.jsonl",
        "non_finite.jsonl",
    ),
    *(".started", ".files", ".before", ".before-moving", ".replaced"),
)
POINTERS = ("checkpoints/LATEST", "checkpoints/BEST")

Mutation = Callable[[Path, random.Random], str]
"""Changes a run's folder, and says what it did."""


# -- the run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workplace:
    """A stopped run, the uninterrupted one, and a folder for what lies outside."""

    root: Path
    config: Path
    stopped: Path
    whole: Path


def make_workplace(root: Path, optimizer: str = "sgd") -> Workplace:
    changes = {**CHANGES, "optimizer.name": optimizer}
    place = Workplace(root, write_config(root, changes), root / "stopped", root / "whole")
    Trainer(place.whole).train(tiny_task(changes))
    try:
        Trainer(place.stopped).train(tiny_task(changes, SignalAt("train", 1, 3)))
    except Stopped:
        return place
    raise AssertionError("the run was not stopped")


def resumed(place: Workplace, folder: Path) -> tuple[int | str, str]:
    """The exit code of `--resume`, or what it raised, and what it printed."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"hangs for {SECONDS} s")

    printed = io.StringIO()
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            code: int | str = train(["--config", str(place.config), "--output", str(folder), "--resume"])
    except BaseException as error:  # a traceback, to a user
        code = f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        logging.disable(logging.NOTSET)
    return code, printed.getvalue()


def picture(folder: Path) -> dict[str, tuple[Any, ...]]:
    """All that can be told of what lies in `folder`, but for when it was read."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


def judged(place: Workplace, mutation: Mutation, seed: int, scratch: Path) -> tuple[str, str, str]:
    """What was done to the run's folder, how its resumption ended, and what is wrong with that (or nothing)."""
    shutil.rmtree(scratch, ignore_errors=True)
    outside, folder = scratch / "outside", scratch / "run"
    shutil.copytree(place.stopped, folder)
    (outside / "folder/step-2").mkdir(parents=True)
    for name in ("file", "folder/step-2/state.json", "folder/LATEST.tmp-1", "folder/step-99/x"):
        (outside / name).parent.mkdir(exist_ok=True)
        (outside / name).write_text("kept\n")
    told = mutation(folder, random.Random(seed))
    before = picture(outside)
    code, printed = resumed(place, folder)
    wrong = ""
    if picture(outside) != before:
        wrong = "something outside the run's folder changed"
    elif code == 0:
        for name in ("model.safetensors", "optimizer.safetensors"):
            ours, expected = (root / f"checkpoints/step-{LAST_STEP}" / name for root in (folder, place.whole))
            if not ours.is_file() or ours.read_bytes() != expected.read_bytes():
                wrong = f"exit code 0, and another {name}"
    elif code != 2:
        wrong = f"ended with {code}"
    elif printed.count("error: ") != 1 or str(folder) not in printed or "Traceback" in printed:
        wrong = f"the message names no file of the run: {printed}"
    return told, f"exit code {code}", wrong and f"{told}: {wrong}\n{printed[-600:]}"


# -- mutations -------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def steps_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoints/step-*"), key=lambda path: int(path.name[5:]))


def hashes_made_right(step: Path) -> None:
    manifest = json.loads((step / "manifest.json").read_text())
    for name in list(manifest["files"]):
        content = (step / name).read_bytes() if (step / name).is_file() else None
        if content is None:
            del manifest["files"][name]
        else:
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (step / "manifest.json").write_text(json.dumps(manifest, indent=1))


def damage_bytes(folder: Path, generator: random.Random) -> str:
    path = generator.choice(files_of(folder))
    content = bytearray(path.read_bytes())
    kind = generator.choice(["a flipped bit", "truncated", "emptied", "longer", "zeros", "noise", "deleted"])
    if kind == "a flipped bit" and content:
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    elif kind == "truncated":
        del content[generator.randrange(len(content) + 1) :]
    elif kind == "emptied":
        content.clear()
    elif kind == "longer":
        content += generator.randbytes(20)
    elif kind == "zeros":
        content[:] = bytes(len(content))
    elif kind == "noise":
        content[:] = generator.randbytes(len(content))
    path.write_bytes(content)
    if kind == "deleted":
        path.unlink()
    return f"{path.relative_to(folder)}: {kind}"


def exchange(folder: Path, generator: random.Random) -> str:
    """Two files, or two checkpoints, change their places; or one takes the other's."""
    kind = generator.choice(["files", "checkpoints", "a copy", "another number"])
    if kind == "files":
        one, other = generator.sample(files_of(folder), 2)
    else:
        one, other = generator.sample(steps_of(folder), 2)
    names = f"{one.relative_to(folder)} and {other.relative_to(folder)}"
    if kind == "another number":
        number = generator.choice(
            ["step-400", "step-99999999999999999999999", "step-007", "step-٣", "step--1", "step-0"]
        )
        one.rename(one.with_name(number))
        return f"{one.relative_to(folder)}: renamed to {number}"
    if kind == "a copy":
        shutil.rmtree(other)
        shutil.copytree(one, other)
        return f"{names}: the first in both places"
    aside = folder / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    return f"{names}: exchanged"


ODD: list[Any] = [
    *(None, True, -1, 0, 1, 3, 999, 10**6, 2**63, 10**30, -(10**400), 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "train", "val", "step-4", "\x1b[2J", "x" * 10_000, "../../outside/file", "/etc/passwd", "\ud800"),
    *([], {}, [1], {"a": 1}, [[[]]]),
]


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def mutate_tree(tree: Any, generator: random.Random, at: tuple[Any, ...] | None = None) -> str:
    *parents, key = at or generator.choice(list(places(tree)))
    node = tree
    for parent in parents:
        node = node[parent]
    kind = generator.choice(["odd", "odd", "odd", "missing", "more", "near"])
    path = ".".join(map(str, [*parents, key]))
    if kind == "missing":
        del node[key]
    elif kind == "more" and isinstance(node, dict):
        node[generator.choice(["x", "", "format", "files", "../../outside/file"])] = generator.choice(ODD)
    elif kind == "near" and isinstance(node[key], int | float):
        node[key] += generator.choice([-1, 1, 0.5, 10**6])
    else:
        node[key] = generator.choice(ODD)
        return f"{path} = {node[key]!r:.40}"
    return f"{path}: {kind}"


def state_with_valid_hashes(folder: Path, generator: random.Random) -> str:
    step = generator.choice([*steps_of(folder)[-2:], steps_of(folder)[-1]])
    if generator.random() < 0.15:
        text = generator.choice(
            ["[]", "null", "", "{", "[" * 100_000, '{"format": 1}', "7" * 6000, '{"progress": NaN}']
        )
        (step / "state.json").write_text(text)
        told = f"{text:.20}"
    else:
        state = json.loads((step / "state.json").read_text())
        shown = [
            at for at in places(state) if at[0] in ("progress", "loss_sum", "format", "num_tensors", "bad_samples")
        ]
        told = mutate_tree(state, generator, generator.choice(shown) if generator.random() < 0.6 else None)
        (step / "state.json").write_text(json.dumps(state))
    hashes_made_right(step)
    return f"{step.name}/state.json: {told}"


def manifest(folder: Path, generator: random.Random) -> str:
    step = generator.choice([*steps_of(folder)[-2:], steps_of(folder)[-1]])
    tree = json.loads((step / "manifest.json").read_text())
    told = mutate_tree(tree, generator)
    (step / "manifest.json").write_text(json.dumps(tree))
    return f"{step.name}/manifest.json: {told}"


def tensors_with_valid_hashes(folder: Path, generator: random.Random) -> str:
    step = generator.choice([*steps_of(folder)[-2:], steps_of(folder)[-1]])
    path = step / f"{generator.choice(['model', 'optimizer'])}.safetensors"
    tensors: dict[str, Tensor] = load_file(path)
    key = generator.choice(sorted(tensors))
    value = tensors[key]
    kinds = {
        "not a number": lambda: value.double().mul(float("nan")).to(value.dtype),
        "infinite": lambda: value.double().add(float("inf")).to(value.dtype),
        "one more": lambda: torch.cat([value.flatten(), value.flatten()[:1]]),
        "a scalar": lambda: value.flatten()[0].clone(),
        "another shape": lambda: value.reshape(1, *value.shape),
        "wide": lambda: value.double() if value.is_floating_point() else value.int(),
        "half": lambda: value.half(),
        "integers": lambda: value.int() if value.is_floating_point() else value.float(),
        "nothing": lambda: value.flatten()[:0].clone(),
    }
    kind = generator.choice([*kinds, "missing", "missing file", "renamed", "more", "none left", "another checkpoint's"])
    if kind in kinds:
        tensors[key] = kinds[kind]()
        if key.endswith("num_batches_tracked") and kind in ("not a number", "infinite"):
            tensors[key] = value.float().mul(float("nan"))
    elif kind == "missing":
        del tensors[key]
    elif kind == "renamed":
        tensors[f"{key}x"] = tensors.pop(key)
    elif kind == "more":
        tensors["more"] = torch.zeros(3)
    elif kind == "none left":
        tensors.clear()
    save_file(tensors, path)
    if kind == "missing file":
        path.unlink()
    if kind == "another checkpoint's":
        shutil.copy(steps_of(folder)[0] / "model.safetensors", step / "optimizer.safetensors")
    hashes_made_right(step)
    return f"{step.name}/{path.name}: '{key}' {kind}"


def a_wrong_kind(folder: Path, generator: random.Random) -> str:
    """A link, a pipe, a socket or a folder where a file is, or would be."""
    outside = folder.parent / "outside"
    steps = [str(path.relative_to(folder)) for path in steps_of(folder)]
    inner = [f"{step}/{name}" for step in steps for name in ("state.json", "model.safetensors", "manifest.json", "new")]
    new = ["checkpoints/step-8", "checkpoints/step-7.damaged", "checkpoints/new", "new", ".writable"]
    half = ["config.yaml", "metrics.jsonl", "checkpoints/LATEST", "checkpoints/step-8", "checkpoints/BEST"]
    half = [f"{name}.tmp-{os.getpid()}" for name in half]
    name = generator.choice([*TOP, *POINTERS, "checkpoints", *generator.sample(steps, 2), *inner[-8:], *new, *half])
    path = folder / name
    was_folder = path.is_dir()
    if path.exists() and generator.random() < 0.5:
        path.rename(outside / "moved")
    elif path.exists():
        shutil.rmtree(path) if was_folder else path.unlink()
    targets = ["file", "folder", "nothing", "moved", "folder/step-2/state.json"]
    kind = generator.choice(
        ["a link"] * 5 + ["a relative link", "a loop", "a pipe", "a socket", "a folder", "a hard link"]
    )
    if kind in ("a link", "a relative link"):
        target = outside / (generator.choice(targets) if not (outside / "moved").exists() else "moved")
        path.symlink_to(os.path.relpath(target, path.parent) if kind == "a relative link" else target)
    elif kind == "a loop":
        path.symlink_to(path.name)
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
            made.bind(path.name)
    elif kind == "a folder":
        path.mkdir()
        (path / "x").write_text("x")
    else:
        os.link(outside / "file", path)
    return f"{name}: {kind}"


LINES = (
    *("null", "[]", "7", "{}", "{", "NaN", '"text"', "\x00\x00", "\udcff", "[" * 5000, '{"phase": 1}', "7" * 6000),
    *('{"phase": "train", "epoch": "1", "step": 4}', '{"phase": "val", "epoch": 1e999, "step": 4}', '{"step": null}'),
    *('{"step": 99999}', '{"phase": "train", "epoch": 99, "step": 999}', '{"phase": "train"}', "<html>", "  ", "\r"),
)


def records(folder: Path, generator: random.Random) -> str:
    path = folder / generator.choice(["metrics.jsonl", "steps.jsonl", "bad_samples.jsonl"])
    lines = path.read_text().split("\n") if path.exists() else [""]
    line = generator.choice(LINES)
    lines.insert(generator.randrange(len(lines)), line)
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    return f"{path.name}: a line {line!r:.40}"


TEXTS = (
    *(
        "",
        "\n",
        "step-4",
        "step-4 x\n",
        "step-4 nan\n",
        "step-999 2.0\n",
        "../../outside/folder 9.0\n",
        "step-4 1e999\n",
    ),
    *("/ 9.0\n", "step-4 0.5 0.6\n", "step- 1\n", "\x00", "x" * 100_000, "step-4 0_1\n", ". 1.0\n", "step-4.tmp-1 1.0"),
)


def pointers(folder: Path, generator: random.Random) -> str:
    path = folder / generator.choice([*POINTERS, ".lock", "config.yaml", "confusion_matrix.csv", ".files", ".started"])
    text = generator.choice(TEXTS)
    path.write_bytes(generator.choice([text.encode(), text.encode() + b"\xff\xfe"]))
    return f"{path.name}: {text!r:.40}"


KINDS: dict[str, Mutation] = {
    "bytes": damage_bytes,
    "exchange": exchange,
    "state": state_with_valid_hashes,
    "manifest": manifest,
    "tensors": tensors_with_valid_hashes,
    "kind": a_wrong_kind,
    "records": records,
    "pointers": pointers,
}


def run_all(count: int, root: Path, *, told: Callable[[str], object] = print) -> list[str]:
    """Judges `count` mutated folders, of all kinds in turn; returns what is wrong."""
    places_by_optimizer = []
    for optimizer in ("sgd", "adamw"):
        (root / optimizer).mkdir(parents=True)
        places_by_optimizer.append(make_workplace(root / optimizer, optimizer))
    ends: Counter[tuple[str, str]] = Counter()
    wrong = []
    started = time.perf_counter()
    for seed in range(count):
        kind = list(KINDS)[seed % len(KINDS)]
        _, end, problem = judged(places_by_optimizer[seed // len(KINDS) % 2], KINDS[kind], seed, root / "scratch")
        ends[kind, end] += 1
        if problem:
            wrong.append(f"seed {seed}, {problem}")
            told(wrong[-1])
    for (kind, end), number in sorted(ends.items()):
        told(f"{kind:10} {end:14} {number}")
    told(f"{count} folders in {time.perf_counter() - started:.0f} s, {len(wrong)} wrong")
    return wrong


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(bool(run_all(int(sys.argv[1]), Path(temporary))))
