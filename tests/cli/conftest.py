"""A run of a few steps, trained once, for the commands that take a trained model."""

from __future__ import annotations

from pathlib import Path

import pytest

import runs
from classyseg.cli.main import main


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on drawn shapes, of 4 classes."""
    folder = tmp_path_factory.mktemp("trained")
    config = runs.write_config(folder, {"num_epochs": 1, "hooks": ["checkpoint"]})
    assert main(["train", str(config), "--output", str(folder / "run")]) == 0
    return folder / "run"
