"""A run of a version that called validation `test`: `tests/old_run`, written by commit 5cfb455.

There, `run` is the run's folder with the checkpoint of its first epoch and the records of both. `end.safetensors` holds
the weights after the second.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from classyseg import Trainer, build_task
from classyseg.checkpoint import load_checkpoint
from classyseg.config import ConfigError, load_config
from classyseg.registry import TASKS
from classyseg.tasks import SegmentationTask
from runs import read_records

OLD = Path(__file__).parents[1] / "old_run"


def todays_config(folder: Path) -> Path:
    """The run's config as one writes it today."""
    path = folder / "config.yaml"
    text = path.read_text(encoding="utf-8").replace("\n  test:", "\n  val:")
    path.write_text(text.replace("test_every_epochs", "val_every_epochs"), encoding="utf-8")
    return path


def test_a_run_of_before_goes_on_as_it_would_have(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(OLD / "run", folder)
    before = read_records(folder / "metrics.jsonl")
    Trainer(folder, resume=True).train(build_task(load_config(todays_config(folder))))
    after = read_records(folder / "metrics.jsonl")
    assert [record["phase"] for record in after] == ["train", "val", "train", "val"]
    for old, new in zip(before, after, strict=True):
        assert new.keys() == old.keys()
        for key in {"epoch", "step", "loss", "lr", "mean_iou", "pixel_accuracy"} & old.keys():
            assert new[key] == pytest.approx(old[key], rel=1e-3)  # of another machine
    expected, found = load_file(OLD / "end.safetensors"), load_file(folder / "checkpoints/step-6/model.safetensors")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (folder / "checkpoints/BEST").read_text(encoding="utf-8").startswith("step-6 ")


def test_a_checkpoint_of_before_is_read_in_the_words_of_today() -> None:
    state = load_checkpoint(OLD / "run/checkpoints/step-3").state
    assert state["progress"] == {"epoch": 1, "phase": "val", "step": 3, "step_in_phase": 0}
    assert (state["config"]["val_every_epochs"], [*state["config"]["dataset"]]) == (1, ["train", "val"])


def test_a_config_of_before_is_told_what_to_write() -> None:
    config = load_config(OLD / "run/config.yaml")
    with pytest.raises(ConfigError, match=r"test_every_epochs.*'val_every_epochs'"):
        TASKS.validate(config)
    del config.values["test_every_epochs"]
    with pytest.raises(ConfigError, match=r"^dataset\.val.*missing.*dataset\.test.*rename"):
        SegmentationTask.check(TASKS.validate(config))
