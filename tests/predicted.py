"""Runs of `classyseg predict`, and what they write; images to predict, and their labels by a plain loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

import runs
from classyseg.cli.main import main
from classyseg.models import build_model

MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


def noise(height: int, width: int, channels: int = 3, *, seed: int = 0, kind: type = np.uint8) -> np.ndarray:
    shape = (height, width, channels)[: 2 if channels == 1 else 3]
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def plain_labels(run: Path, path: Path) -> np.ndarray:
    """The labels of an image by what anybody would write: Pillow, the model, bilinear logits, arg-max."""
    model = build_model(runs.tiny_config()["model"], 4)
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float() / 255
    with torch.no_grad():
        logits = model.eval()(((image - MEAN) / STD).permute(2, 0, 1)[None])["main"]
    full = functional.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)
    return full[0].argmax(0).numpy()


def predict(trained: Path, *words: object) -> int:
    return main(["predict", str(trained), *map(str, words), "--device", "cpu"])


def summary(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "predictions.json").read_text(encoding="utf-8"))
    return found


def labels_in(output: Path) -> set[str]:
    return {str(path.relative_to(output)) for path in output.rglob("*.png")}


def refused(trained: Path, output: Path, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What the command says that ends with exit code 2, and writes nothing."""
    before = sorted(output.rglob("*")) if output.exists() else None
    capsys.readouterr()
    assert predict(trained, *words, "--output", output) == 2
    assert (sorted(output.rglob("*")) if output.exists() else None) == before
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "Traceback" not in told
    return told
