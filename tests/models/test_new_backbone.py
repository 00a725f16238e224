"""A new ConvNet backbone is one file and one line: contract tests, commands and pages find it by themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = '''"""NewNet: a plain stack of strided convolutions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from classyseg.layers import ConvNormAct
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS


@MODELS.register("newnet")
class NewNet(ClassyModel):
    """A stem at stride 2, then stages that each halve the size: blocks `stage1` onwards.

    Args:
        widths: Channels of the stages.
    """

    def __init__(self, *, widths: tuple[Annotated[int, Field(ge=1)], ...] = (8, 12, 16, 24)) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, widths[0], stride=2)
        self.stages = nn.ModuleDict()
        channels, stride = widths[0], 2
        for i, width in enumerate(widths, start=1):
            stride *= 2
            self.stages[f"stage{i}"] = ConvNormAct(channels, width, stride=2)
            before = ["stem"] if i == 1 else []
            self.add_block(f"stage{i}", width, stride, *before, f"stages.stage{i}")
            channels = width

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x, features = self.stem(image), {}
        for name, stage in self.stages.items():
            x = features[name] = self.run_layer(stage, x)
        return features
'''
LINE = "from classyseg.models.backbones.newnet import NewNet\n"
CONTRACT = "tests/models/test_contract.py"


@pytest.mark.slow
def test_a_file_and_a_line_are_a_new_backbone(tmp_path: Path) -> None:
    for folder in ("classyseg", "tests", "docs", "task_configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.cfg", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / "classyseg/models/backbones/newnet.py").write_text(FILE, encoding="utf-8")
    doors = tmp_path / "classyseg/models/__init__.py"
    doors.write_text(f"{doors.read_text(encoding='utf-8')}\n{LINE}", encoding="utf-8")

    assert run(tmp_path, "-m", "classyseg", "models", "newnet").split() == ["newnet"]
    run(tmp_path, "-m", "classyseg", "models", "newnet", "--write", "docs/backbones.md")
    run(tmp_path, "-m", "classyseg", "config", "keys", "--write", "docs/configs.md")
    row = "`stage1`: 8 / 4, `stage2`: 12 / 8, `stage3`: 16 / 16, `stage4`: 24 / 32"
    assert row in (tmp_path / "docs/backbones.md").read_text(encoding="utf-8")
    assert "Channels of the stages." in (tmp_path / "docs/configs.md").read_text(encoding="utf-8")
    others = [ROOT / "docs" / page for page in ("backbones.md", "configs.md")]
    for page in others:  # nothing else changed
        before = set(page.read_text(encoding="utf-8").splitlines())
        assert before <= set((tmp_path / "docs" / page.name).read_text(encoding="utf-8").splitlines())

    chosen = "(newnet and not compil and not export) or every_family"  # which take half of the time
    options = ("-q", "-n", "0", "-p", "no:cacheprovider", "-k", chosen)
    assert "passed" in run(tmp_path, "-m", "pytest", *options, CONTRACT)


def run(folder: Path, *arguments: str) -> str:
    """What a Python with the package in `folder` prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
