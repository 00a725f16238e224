"""Every file of task_configs/: it says how it is run, checks, and takes its first steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classyseg import TASKS, build_task, load_config
from classyseg.cli.train import main as classy_train_main
from classyseg.datasets.camvid import CLASSES as CAMVID_CLASSES

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "task_configs").rglob("*.yaml"))
PATHS = [str(path.relative_to(ROOT)) for path in CONFIGS]
PROGRAMS = (["classyseg", "train"], ["python", "classy_train.py"])
SMALL = ["batch_size=2", "model.weights=null", "runtime.workers=0", "runtime.device=cpu", "runtime.precision=float32"]


def command_of(path: str) -> list[str]:
    """The words of the command in a config's first comment, without settings of the environment and of torchrun."""
    first = (ROOT / path).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# "), f"{path}: the first line is no comment"
    words = [word for word in shlex.split(first[2:]) if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "torchrun":
        words = ["python", *words[words.index("classy_train.py") :]]
    return words


@pytest.fixture
def fake_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data root with three images of random pixels in each split of a CamVid."""
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name, shape, top in ((split, (48, 64, 3), 256), (f"{split}annot", (48, 64), len(CAMVID_CLASSES) + 1)):
            folder = tmp_path / "camvid" / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.fromarray(random.integers(0, top, shape).astype(np.uint8)).save(folder / f"{i}.png")
    monkeypatch.setenv("CLASSYSEG_DATA", str(tmp_path))


def test_there_are_configs() -> None:
    assert "task_configs/quickstart.yaml" in PATHS


@pytest.mark.parametrize("path", PATHS)
def test_the_first_comment_is_a_command_that_runs_this_file(path: str) -> None:
    words = command_of(path)
    assert words[:2] in PROGRAMS
    assert words[words.index("--config") + 1] == path


@pytest.mark.parametrize("path", PATHS)
def test_the_command_passes_its_check(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert classy_train_main([*command_of(path)[2:], "--check"]) == 0


@pytest.mark.parametrize("path", PATHS)
def test_the_resolved_config_is_valid_and_resolves_to_itself(path: str) -> None:
    resolved = TASKS.validate(load_config(ROOT / path)).resolved()
    assert TASKS.validate(resolved).resolved() == resolved


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.usefixtures("fake_data")
def test_a_step_of_training_and_one_of_evaluation_run(path: str) -> None:
    tree = load_config(ROOT / path, SMALL)
    for transform in tree.values["dataset"]["train"].get("transforms", ()):
        if "size" in transform:
            transform["size"] = [64, 64]
    task = build_task(tree)
    task.hooks = []  # nothing to save or to show
    task.start(None)
    task.start_phase()
    task.step(next(task.batches()))
    without_gradient = [
        name
        for name, parameter in task.model.named_parameters()  # type: ignore[attr-defined]
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert not without_gradient
    assert task.last_loss.isfinite()

    task.progress.phase = "test"
    task.start_phase()
    task.step(next(task.batches()))
    assert 0 <= task.phase_metrics()["mean_iou"] <= 1
