"""Small models with random weights in folders, for tests of what learns from a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from classyseg.inference import Predictor
from classyseg.models import build_model
from runs import SMALL_BACKBONE

SHAPES = ("background", "disc", "square", "triangle")
"""The classes of `synthetic_shapes`."""
OF_MASKS: dict[str, Any] = {"main": {"name": "fcn", "blocks": ["stage2", "stage4"], "channels": 16, "dropout": 0.2}}
OF_IMAGES: dict[str, Any] = {"main": {"name": "linear", "blocks": ["stage4"]}}


def save_teacher(
    folder: Path,
    *,
    classes: tuple[str, ...] = SHAPES,
    heads: dict[str, Any] = OF_MASKS,
    seed: int = 1,
    backbone: dict[str, Any] = SMALL_BACKBONE,
    **options: Any,
) -> Path:
    """A model's folder with the random weights of `seed`; `options` are those of `Predictor`."""
    torch.manual_seed(seed)
    config = {**backbone, "heads": heads}
    Predictor(build_model(config, len(classes)), classes=classes, device="cpu", model_config=config, **options).save(
        folder
    )
    return folder
