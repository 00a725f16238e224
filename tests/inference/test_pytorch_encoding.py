"""The protocol `pytorch_encoding` against numbers of PyTorch-Encoding's own `MultiEvalModule`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classyseg import ClassyHead
from classyseg.inference import Predictor
from classyseg.models import ClassyModel
from classyseg.structures import BlockInfo

CASES = json.loads((Path(__file__).parents[1] / "goldens" / "multi_eval.json").read_text(encoding="utf-8"))


def wave(*shape: int) -> Tensor:
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 0.7 + 0.3).reshape(shape).float()


class Identity(ClassyHead):
    """The classes are the block's channels."""

    def __init__(self, blocks: Sequence[BlockInfo], num_classes: int) -> None:
        super().__init__()

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return features[0]


class Toy(ClassyModel):
    """One convolution at stride 2, which counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
        with torch.no_grad():
            self.conv.weight.copy_(wave(4, 3, 3, 3))
            self.conv.bias.copy_(wave(4))  # type: ignore[union-attr]
        self.add_block("map", 4, 2)
        self.attach_head("main", Identity([self.block("map")], 4))
        self.calls = 0

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        self.calls += not image.is_meta
        return {"map": self.conv(image)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['size']} {case['scales']}")
def test_scores_labels_and_runs_are_those_of_its_own_module(case: dict[str, Any]) -> None:
    height, width = case["size"]
    model = Toy()
    options = {key: case[key] for key in ("base_size", "crop_size", "scales", "flip")}
    protocol = {"name": "pytorch_encoding", **options}
    predictor = Predictor(model, classes=list("abcd"), protocol=protocol, device="cpu")
    image = ((wave(3, height, width) * 0.5 + 0.5) * 255).round().byte()

    scores = predictor.scores(image).astype(np.float64)

    assert model.calls == case["calls"]
    assert scores.mean((1, 2)) == pytest.approx(case["mean"], abs=1e-6)
    points = ((0, 0), (height // 2, width // 3), (height - 1, width - 1))
    for (row, column), shares in zip(points, case["rows"], strict=True):
        assert scores[:, row, column] == pytest.approx(shares, abs=2e-6)
    assert np.bincount(predictor.predict(image).ravel(), minlength=4).tolist() == case["counts"]
