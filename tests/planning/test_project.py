"""`classyseg new project` on drawn data: a config that passes all checks without a word, and trains."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import classyseg
from classyseg.cli.main import main

SIZE = (48, 64)


def drawn(root: Path, count: int = 24) -> Path:
    """Images with bright rectangles on noise, and masks of 0 and 255 of them."""
    rng = np.random.default_rng(0)
    for i in range(count):
        mask = np.zeros(SIZE, bool)
        top, left = rng.integers(0, 24, 2)
        mask[top : top + 20, left : left + 24] = True
        image = rng.integers(0, 120, (*SIZE, 3)) + 130 * mask[..., None]
        for folder, array in (("images", image), ("masks", 255 * mask)):
            path = root / folder / f"{chr(97 + i)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(path)
    return root


@pytest.mark.slow
def test_a_project_passes_all_checks_without_a_word_and_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, project = drawn(tmp_path / "data"), tmp_path / "project"
    assert main(["new", "project", str(project), "--data", str(data), "--minutes", "1", "--device", "cpu"]) == 0
    assert sorted(path.name for path in project.iterdir()) == ["README.md", "config.yaml"]
    config = str(project / "config.yaml")
    text = (project / "config.yaml").read_text(encoding="utf-8")
    assert re.search(r"num_steps: \d+  # 1 minutes: ", text)
    assert re.search(r"batch_size: 8  # 8 of \d+x\d+ take [\d.]+[MG] of [\d.]+G", text)
    capsys.readouterr()
    assert main(["config", "check", config]) == 0
    assert capsys.readouterr() == (f"{config}: ok\n", "")
    assert main(["data", "check", config, "--workers", "0"]) == 0
    assert capsys.readouterr().out.endswith("0 faults, 0 warnings\n")
    short = ["num_steps=4", "val_every_steps=4", "hooks=[]", "runtime.workers=0", "runtime.precision=float32"]
    short += ["optimizer.schedule={name: polynomial}"]  # the planned warm-up is as long as the plan
    assert main(["train", config, "--output", str(tmp_path / "run"), *short]) == 0
    labels = classyseg.load(tmp_path / "run").predict(str(data / "images" / "a.png"))
    assert labels.shape == SIZE


def test_a_folder_with_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "mine.txt").write_text("mine", encoding="utf-8")
    assert main(["new", "project", str(tmp_path / "project"), "--data", str(tmp_path)]) == 2
    assert "holds files" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--data", "nowhere"], "no such folder"),
        (["--data", ".", "--minutes", "0.1"], "--minutes"),
        (["--data", ".", "--classes", "a,,b"], "--classes"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(
    options: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "project", "project", *options]) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "project").exists()


def test_training_in_one_line_refuses_a_folder_with_a_run_before_it_looks_at_data(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: segmentation\n", encoding="utf-8")
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(classyseg.ConfigError, match="run"):
        classyseg.train(tmp_path / "nowhere", minutes=1, output=tmp_path / "run")
