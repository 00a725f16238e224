"""LAMB, LARS, TensorFlow's RMSProp and layer-wise decay give the numbers of timm, which are recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from classyseg.models import create_backbone, parameter_depths
from classyseg.optim import build_optimizer
from classyseg.structures import RunLength

TIMM: dict[str, Any] = json.loads((Path(__file__).parents[1] / "goldens" / "optim_timm.json").read_text())
OPTIONS: dict[str, dict[str, Any]] = {
    "lamb": {"lr": 0.01, "weight_decay": 0.02},
    "lamb, clipped": {"lr": 0.01, "weight_decay": 0.02, "clip_norm": 1.0},
    "lamb, trust_clip": {
        "lr": 0.01,
        "weight_decay": 0.02,
        "betas": [0.8, 0.95],
        "eps": 1e-3,
        "trust_clip": True,
    },
    "lamb, no decay": {"lr": 0.01, "weight_decay": 0.0},
    "lamb, always_adapt": {"lr": 0.01, "weight_decay": 0.0, "always_adapt": True},
    "lars": {"lr": 0.5, "weight_decay": 0.02},
    "lars, nesterov": {"lr": 0.5, "weight_decay": 0.02, "nesterov": True, "trust_coefficient": 0.02},
    "lars, trust_clip": {"lr": 0.5, "weight_decay": 0.02, "trust_clip": True, "trust_coefficient": 0.5},
    "lars, no decay": {"lr": 0.05, "momentum": 0.0},
    "lars, always_adapt": {"lr": 0.5, "always_adapt": True},
    "rmsprop_tf": {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.02, "eps": 1e-3},
    "rmsprop_tf, centered": {"lr": 0.01, "weight_decay": 0.02, "eps": 1e-3, "centered": True},
    "rmsprop_tf, lr outside": {"lr": 0.01, "momentum": 0.9, "alpha": 0.95, "lr_in_momentum": False},
}


@pytest.mark.parametrize("case", TIMM["weights"])
def test_four_steps_of_a_schedule_end_at_timms_weights(case: str) -> None:
    starts = {
        "matrix": torch.arange(12.0).sin().view(3, 4),
        "vector": torch.arange(3.0).cos(),
        "zero": torch.zeros(2, 2),
    }
    parameters = {name: nn.Parameter(start) for name, start in starts.items()}
    config = {"name": case.partition(",")[0], "schedule": "polynomial", **OPTIONS[case]}
    optimizer = build_optimizer(config, parameters.items(), RunLength(1.0, 4))
    for i in range(TIMM["steps"]):
        for k, parameter in enumerate(parameters.values()):
            gradient = (torch.arange(float(parameter.numel())) * (i + 1) + k).sin().view(parameter.shape)
            parameter.grad = gradient * (1.0 if k else 0.1)
        optimizer.set_progress(i / 4)
        optimizer.step()
    for parameter, wanted in zip(parameters.values(), TIMM["weights"][case], strict=True):
        torch.testing.assert_close(parameter.detach().flatten(), torch.tensor(wanted), rtol=1e-5, atol=1e-6)


RULES: dict[str, list[tuple[str, str]]] = {
    "vit_tiny_patch16_224": [
        ("cls_token", "class_token"),
        ("pos_embed", "encoder.pos_embedding"),
        (r"patch_embed\.proj", "conv_proj"),
        (r"blocks\.(\d+)\.norm1", r"encoder.layers.encoder_layer_\1.ln_1"),
        ("^norm", "encoder.ln"),
    ],
    "swin_tiny_patch4_window7_224": [
        (r"patch_embed\.proj", "features.0.0"),
        (r"layers\.0\.blocks\.(\d+)", r"features.1.\1"),
        (r"layers\.1\.blocks\.(\d+)", r"features.3.\1"),
        (r"layers\.2\.blocks\.(\d+)", r"features.5.\1"),
        (r"layers\.3\.blocks\.(\d+)", r"features.7.\1"),
        (r"layers\.1\.downsample", "features.2"),
        (r"layers\.2\.downsample", "features.4"),
        (r"layers\.3\.downsample", "features.6"),
    ],
}
OURS = {"vit_tiny_patch16_224": "vit_ti_16", "swin_tiny_patch4_window7_224": "swin_t"}


@pytest.mark.parametrize("model", OURS)
def test_the_rate_of_a_transformers_layer_falls_from_the_head_to_the_image_as_in_timm(model: str) -> None:
    decay, scales = TIMM["layer_decay"]["decay"], TIMM["layer_decay"]["scales"][model]
    with torch.device("meta"):
        backbone = create_backbone(OURS[model])
    optimizer = build_optimizer(
        {
            "name": "adamw",
            "lr": 1.0,
            "layer_decay": decay,
            "groups": [{"match": "*ln*", "lr_factor": 2}][: model[0] == "v"],
        },
        backbone.named_parameters(),
        RunLength(1.0),
    )
    optimizer.use_depths(parameter_depths(backbone))
    rates = {
        name: factor for names, factor in zip(optimizer.names, optimizer.lr_factors, strict=True) for name in names
    }
    found = {}
    for name, scale in scales.items():
        if name.startswith("head"):
            continue
        ours = name
        for pattern, replacement in RULES[model]:
            ours = re.sub(pattern, replacement, ours)
        found[ours] = scale * (2.0 if "ln" in ours and model[0] == "v" else 1.0)
    assert {name: rates[name] for name in found} == pytest.approx(found)
