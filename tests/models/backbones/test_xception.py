"""Xception is PyTorch-Encoding's: its keys, counts and recorded float64 outputs."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from goldens import (
    assert_fingerprint,
    assert_probes,
    drawn_input,
    golden,
    goldens,
    hashed,
    hashed_weight,
    load_reference,
    on_meta,
    parameters,
)
from torch import Tensor

from classyseg.models import ClassyModel, create_backbone

RECORDED = [b for b in goldens("float64")["backbones"] if "xception" in b["id"]]
FROM_JSON = [b for b in goldens("float32")["pytorch_encoding"] if "xception" in b]
COUNTS = {("xception65", 8): 37_867_312, ("xception71", 32): 39_681_424, ("xception71", 8): 39_149_984}


BLOCKS = {"bn2": "stem", "block1": "stage1", "block2": "stage2", "midflow": "stage3", "bn5": "stage4"}
"""The reference's modules and the blocks that they end in; a ReLU follows some of them."""


def outputs_of(model: ClassyModel, image: Tensor) -> dict[str, Tensor]:
    """What the reference's modules put out."""
    found: dict[str, Tensor] = {}
    for name in BLOCKS:
        hook = lambda _module, _inputs, output, name=name: found.update({name: output.clone()})  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        model(image)
    return found


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["id"])
def test_keys_and_float64_outputs_are_the_recorded_ones(recorded: dict[str, Any]) -> None:
    name = recorded["id"].partition("_")[0]
    model = create_backbone(name, **recorded["args"]).double()
    shapes = [
        *((key, tuple(v.shape)) for key, v in model.state_dict().items()),
        ("fc.weight", (1000, 2048)),
        ("fc.bias", (1000,)),
    ]
    listed = "\n".join(sorted(f"{key} {shape}" for key, shape in shapes))
    assert hashlib.sha1(listed.encode()).hexdigest() == recorded["sorted_keys_sha1"]
    assert parameters(model) == recorded["params_no_fc"]
    load_reference(model, weight=hashed_weight)
    outputs = outputs_of(model, torch.from_numpy(hashed("input:(1, 3, 64, 64)", (1, 3, 64, 64))))
    assert_probes(outputs["midflow"], recorded["numeric"]["midflow"])
    assert_probes(outputs["bn5"], recorded["numeric"]["bn5"])
    for name, block in BLOCKS.items():
        _, channels, stride = model.blocks[block]
        assert [1, channels, *(-(-side // stride) for side in (97, 129))] == recorded["stages_97x129"][name]


@pytest.mark.parametrize(("name", "stride"), COUNTS)
def test_parameters_are_the_references(name: str, stride: int) -> None:
    with torch.device("meta"):
        assert parameters(create_backbone(name, output_stride=stride)) == COUNTS[name, stride]


@pytest.mark.parametrize("name", FROM_JSON)
def test_float32_outputs_are_the_recorded_ones(name: str) -> None:
    recorded = golden("pytorch_encoding", name)
    _, variant, stride = name.split("/")
    model = load_reference(on_meta(variant, output_stride=int(stride.removeprefix("os"))))
    assert_fingerprint(outputs_of(model, drawn_input(224, 224))["bn5"], recorded["last_fingerprint"])
