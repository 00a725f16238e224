"""Hybrid Vision Transformers are timm's, with the ResNet's maps beside the transformer's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from goldens import assert_fingerprint, drawn, drawn_input, golden, load_reference, parameters
from torch import nn
from torch.nn import functional as F

from classyseg.config import ConfigError
from classyseg.models import create_backbone
from classyseg.models.backbones.hybrid_vit import StandardizedConv2d, same_padded

PARAMETERS = {"vit_small_r26_s32": 36_431_912 - 385_000, "vit_base_r50_s16": 97_890_112}
TINY: dict[str, Any] = {"depths": (1, 1, 1), "image_size": 64, "num_layers": 2, "num_heads": 2, "hidden_dim": 32}
THEIR_NAME = "vit_base_r50_s16_224"


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_timms(name: str) -> None:
    with torch.device("meta"):
        assert parameters(create_backbone(name)) == PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.parametrize("in_a_model", [True, False])
def test_features_are_those_recorded_of_timm(in_a_model: bool) -> None:
    expected = golden("timm", THEIR_NAME)

    def as_recorded(key: str, shape: tuple[int, ...]) -> np.ndarray:
        """timm's model of features alone holds its network under this name."""
        return drawn(f"model.{key}" if in_a_model else key, shape)

    model = load_reference(create_backbone("vit_base_r50_s16"), "timm", weight=as_recorded)
    wanted = expected["features_only"]["os32"]
    blocks = [f"block{int(module.removeprefix('blocks.')) + 1}" for module in wanted["modules"]]
    infos = model.watch(*blocks, "pre_logits")
    assert [info.channels for info in infos[:-1]] == wanted["channels"]
    assert [info.stride for info in infos[:-1]] == wanted["reduction"]
    with torch.no_grad():
        features = model(drawn_input(224, 224))
    if not in_a_model:  # this one has no classifier of its own
        assert_fingerprint(features["pre_logits"], expected["logits_fingerprint"])
        return
    for block, shape, fingerprint in zip(blocks, wanted["shapes"], wanted["fingerprint"], strict=True):
        assert list(features[block].shape) == shape
        assert_fingerprint(features[block], fingerprint)


def test_blocks_are_the_resnets_stages_and_the_transformers_map() -> None:
    model = create_backbone("hybrid_vit", **TINY).eval()
    assert [tuple(block) for block in model.blocks.values()] == [
        ("stage1", 256, 4),
        ("stage2", 512, 8),
        ("stage3", 1024, 16),
        ("stage4", 32, 16),
    ]
    model.watch("pre_logits", "block1")
    features = model(drawn_input(50, 97))
    assert [tuple(x.shape[2:]) for x in features.values()] == [(13, 25), (7, 13), (4, 7), (4, 7), (4, 7), (1, 1)]


@pytest.mark.parametrize("size", [(8, 8), (9, 14)])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 2), (3, 1)])
def test_borders_are_tensorflows(size: tuple[int, int], kernel: int, stride: int) -> None:
    padded = same_padded(torch.ones(1, 1, *size), kernel, stride)
    expected = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in size]
    rows, columns = padded[0, 0].amax(1).nonzero().flatten(), padded[0, 0].amax(0).nonzero().flatten()
    assert list(padded.shape[2:]) == [side + more for side, more in zip(size, expected, strict=True)]
    assert [int(rows[0]), int(columns[0])] == [more // 2 for more in expected]


def test_a_standardized_convolution_forgets_scale_and_offset_of_its_kernels() -> None:
    conv, image = StandardizedConv2d(4, 8, 3), torch.randn(1, 4, 8, 8)
    expected = conv(image)
    weight = conv.weight.detach()
    norm = F.batch_norm(weight.reshape(1, 8, -1), None, None, training=True, eps=1e-8).reshape(weight.shape)
    torch.testing.assert_close(expected, F.conv2d(image, norm, padding=1))
    with torch.no_grad():
        conv.weight.mul_(3).add_(1)
    torch.testing.assert_close(conv(image), expected, rtol=1e-4, atol=1e-4)


def test_gap_has_no_class_token() -> None:
    model = create_backbone("hybrid_vit", classifier="gap", in_channels=1, **TINY)
    assert "class_token" not in model.state_dict()
    model.watch("pre_logits")
    features = model(drawn_input(64, 64, channels=1))
    torch.testing.assert_close(features["pre_logits"], nn.functional.adaptive_avg_pool2d(features["stage4"], 1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_size": 200}, "image_size: found 200, no multiple of the ResNet's stride 16"),
        ({"num_heads": 5}, "num_heads: found 5, which does not divide hidden_dim 768"),
        ({"depths": ()}, "depths"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_backbone("hybrid_vit", **config)
