"""What was recorded of PaddleSeg's backbones, against ours: parameters, channels, shapes and fingerprints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from goldens import assert_fingerprint, drawn, drawn_input, golden, golden_names, load_reference, on_meta, parameters
from torch import nn

from classyseg.models import ClassyModel

SLOW_PARAMETERS = 40_000_000


def entries(start: str) -> list[Any]:
    """The recorded entries whose names begin with `start`; large networks are slow."""
    large = [n for n in golden_names("paddleseg") if golden("paddleseg", n)["trainable_params"] > SLOW_PARAMETERS]
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in large else name
        for name in golden_names("paddleseg")
        if name.startswith(start)
    ]


def assert_golden_size(entry: str, **config: Any) -> ClassyModel:
    """The recorded network `entry` has the parameters and blocks of what its name and `config` build: on `meta`.

    Its name here is that of the entry in lower snake case.
    """
    recorded = golden("paddleseg", entry)
    model = on_meta(entry.split("/")[0].lower().replace("mobilenetv3", "mobilenet_v3"), **config)
    assert parameters(model) == recorded["trainable_params"]
    assert [block.channels for block in model.blocks.values()] == recorded["feat_channels"]
    assert [block.stride for block in model.blocks.values()] == recorded["out_strides"]
    return model


def assert_golden_shapes(entry: str, **config: Any) -> ClassyModel:
    """As `assert_golden_size`; and its features have the recorded shapes, at one size."""
    model = assert_golden_size(entry, **config).eval()
    size, shapes = list(golden("paddleseg", entry)["feature_shapes"].items())[-1]
    image = torch.empty([int(side) for side in size.split("x")], device="meta")
    assert [list(feature.shape) for feature in model.forward_features(image).values()] == shapes
    return model


def assert_golden(entry: str, library: str = "paddleseg", **config: Any) -> None:
    """The recorded network `entry` is the one that its name, in lower snake case, and `config` build, values and all.

    Large networks are run at one of the recorded sizes.
    """
    recorded = golden("paddleseg", entry)
    model = load_paddle(assert_golden_size(entry, **config), library)
    sizes = list(recorded["fingerprint"].items())
    for size, fingerprints in sizes[:1] if parameters(model) > SLOW_PARAMETERS else sizes:
        height, width = (int(side) for side in size.split("x")[2:])
        with torch.no_grad():
            features = list(model.forward_features(drawn_input(height, width)).values())
        assert [list(feature.shape) for feature in features] == recorded["feature_shapes"][size]
        for feature, fingerprint in zip(features, fingerprints, strict=True):
            assert_fingerprint(feature, fingerprint)


def load_paddle(model: ClassyModel, library: str = "paddleseg") -> ClassyModel:
    """Fills `model` as Paddle's network was filled: its linear layers are (in, out)."""

    def shape(key: str, ours: tuple[int, ...]) -> tuple[int, ...]:
        return ours[::-1] if len(ours) == 2 else ours

    return load_reference(model, library, shape=shape, weight=lambda key, shape: drawn(key, shape, fan_in_axis=0))


def initial_deviations(model: ClassyModel) -> list[float]:
    """Of each convolution: the deviation of its initial weights, over the one that Paddle draws them with."""
    return [
        (conv.weight.std(correction=0) * (conv.weight[0, 0].numel() * conv.in_channels / 2) ** 0.5).item()
        for conv in model.modules()
        if isinstance(conv, nn.Conv2d) and conv.weight.numel() > 10_000
    ]
