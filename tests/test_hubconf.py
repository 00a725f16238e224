"""`torch.hub.load` of a clone: models by name, and trained ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from predicted import noise

from served import small_predictor

ROOT = str(Path(__file__).parents[1])


def test_torch_hub_lists_and_makes_models_of_a_clone() -> None:
    model = torch.hub.load(ROOT, "create_backbone", "resnet18", source="local")
    assert sum(value.numel() for value in model.parameters()) == 11_176_512  # torchvision's, without its classifier
    assert "resnet18" in torch.hub.load(ROOT, "list_models", "resnet*", source="local")


def test_torch_hub_loads_a_trained_model(tmp_path: Path) -> None:
    predictor, image = small_predictor(), noise(20, 30)
    folder = predictor.save(tmp_path / "model")
    found = torch.hub.load(ROOT, "load", str(folder), source="local", device="cpu")
    assert np.array_equal(found.predict(image), predictor.predict(image))
