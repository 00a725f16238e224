"""A backbone whose maps are sorted by index has a form in ONNX, at every size; docs/export.md has all families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from classyseg.exporting import export
from classyseg.inference import Predictor
from classyseg.models import build_model

SWIN = {"name": "swin_t", "embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4}


@pytest.mark.slow
def test_swin_equals_torch_in_onnx_at_every_size(tmp_path: Path) -> None:
    """ONNX has no remainder by a free size."""
    torch.manual_seed(0)
    model = build_model({**SWIN, "heads": {"main": {"name": "linear", "blocks": ["stage4"]}}}, 3)
    predictor = Predictor(model, classes=["a", "b", "c"], device="cpu")
    made = export(predictor, format="onnx", output=tmp_path / "m.onnx", input_kind="normalized", output_kind="logits")
    assert len(made.facts.checks) > 8
    assert all(check.difference is not None and check.difference < 1e-5 for check in made.facts.checks)
