"""The hook by which a config asks for averaged weights; `tests/engine/test_averaging.py` has the average itself."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from classyseg.averaging import AveragingConfig
from classyseg.cli.train import main as classy_train
from classyseg.config import ConfigError
from classyseg.hooks import EMAHook
from runs import tiny_task, write_config


def test_the_hook_has_every_option_of_the_average_with_its_default() -> None:
    options = {name: given.default for name, given in inspect.signature(EMAHook).parameters.items()}

    assert options == AveragingConfig().model_dump()
    chosen = {"decay": 0.5, "warmup": False, "start_step": 3, "every": 2, "buffers": "copy"}
    assert EMAHook(**chosen).averaging == AveragingConfig(**chosen)


def test_a_run_by_config_gives_away_the_average(tmp_path: Path) -> None:
    hooks = [{"name": "ema", "decay": 0.5, "warmup": False}, {"name": "checkpoint", "every_steps": 1, "keep": 9}]
    small = {"num_epochs": 1, "dataset.train.num_samples": 24, "dataset.val.num_samples": 1, "hooks": hooks}
    config = write_config(tmp_path, small)

    assert classy_train(["--config", str(config), "--output", str(tmp_path / "run")]) == 0
    steps = [load_file(tmp_path / f"run/checkpoints/step-{step}/model.safetensors") for step in (1, 2, 3)]
    found = load_file(tmp_path / "run/model/model.safetensors")
    first = load_file(tmp_path / "run/checkpoints/step-1/average.safetensors")
    name = next(name for name in found if name.endswith("weight"))
    expected = 0.25 * first[name] + 0.25 * steps[1][name] + 0.5 * steps[2][name]  # by the formula, twice
    torch.testing.assert_close(found[name], expected)
    assert not torch.equal(found[name], steps[2][name])


def test_a_run_has_one_average() -> None:
    with pytest.raises(ConfigError, match=r"hooks\[1\].*one average"):
        tiny_task({"hooks": ["ema", "ema"]})
