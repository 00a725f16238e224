"""Xception-65 and -71 are PyTorch-Encoding's, at each of its output strides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from goldens import (
    assert_encodings_keys_and_shapes,
    assert_fingerprint,
    assert_probes,
    drawn_input,
    encoding_entries,
    golden,
    golden_names,
    load_reference,
    parameters,
    run_encoding,
    with_ids,
)
from torch import nn

from classyseg.models import create_backbone
from classyseg.registry import HEADS

ENCODINGS = encoding_entries("xception")
BLOCKS = {"bn2": "stem", "block1": "stage1", "block2": "stage2", "midflow": "stage3", "bn5": "stage4"}
PARAMETERS = {65: 37_867_312, 71: 39_681_424}
WITHOUT_SHORTCUT = 39_149_984


@pytest.mark.parametrize("entry", with_ids(ENCODINGS))
def test_keys_and_shapes_are_pytorch_encodings(entry: dict[str, Any]) -> None:
    assert_encodings_keys_and_shapes(entry, BLOCKS)


@pytest.mark.parametrize("entry", with_ids(ENCODINGS))
def test_values_are_pytorch_encodings(entry: dict[str, Any]) -> None:
    found = run_encoding(entry)
    for theirs, ours in {"midflow": "stage3", "bn5": "stage4", "logits": "logits"}.items():
        assert_probes(found[ours], entry["numeric"][theirs])


@pytest.mark.parametrize("name", [name for name in golden_names("pytorch_encoding") if "xception" in name])
def test_values_at_224_pixels_are_pytorch_encodings(name: str) -> None:
    expected = golden("pytorch_encoding", name)
    variant, _, output_stride = name.removeprefix("pe/").partition("/os")
    model = load_reference(create_backbone(variant, output_stride=int(output_stride)))
    assert parameters(model) == expected["params_without_fc"]
    with torch.no_grad():
        found = list(model(drawn_input(224, 224)).values())
    shapes = expected["shapes_224"]  # of block1 to block3, midflow, block20 and bn5
    assert [list(feature.shape) for feature in found[1:]] == [shapes[i] for i in (0, 1, 3, 5)]
    assert_fingerprint(found[-1], expected["last_fingerprint"])


@pytest.mark.parametrize("depth", [65, 71])
def test_strides_hold_and_weights_move_between_output_strides_but_for_one_shortcut(depth: int) -> None:
    for output_stride in (32, 16, 8):
        with torch.device("meta"):
            model = create_backbone(f"xception{depth}", output_stride=output_stride).eval()
            features = model(torch.empty(1, 3, 129, 97, device="meta"))
        changes = depth == 71 and output_stride == 8
        assert parameters(model) == (WITHOUT_SHORTCUT if changes else PARAMETERS[depth])
        assert [b.stride for b in model.blocks.values()] == [2, 4, 8, min(16, output_stride), output_stride]
        for block, feature in zip(model.blocks.values(), features.values(), strict=True):
            assert feature.shape[1:] == (block.channels, -(-129 // block.stride), -(-97 // block.stride))


def test_dilations_are_the_references() -> None:
    with torch.device("meta"):
        found = {
            output_stride: [
                model.get_submodule(name).dilation[0]
                for name in ("midflow.block4.rep.1.conv1", "block20.rep.1.conv1", "conv3.conv1", "conv5.conv1")
            ]
            for output_stride in (32, 16, 8)
            for model in [create_backbone("xception65", output_stride=output_stride)]
        }
    assert found == {32: [1, 1, 1, 1], 16: [1, 1, 2, 2], 8: [2, 2, 4, 4]}


def test_shortcuts_read_the_rectified_input() -> None:
    torch.manual_seed(0)
    model = create_backbone("xception", middle_blocks=1).eval()
    block = model.get_submodule("midflow.block4")
    x = torch.randn(1, 728, 5, 5)
    assert isinstance(block.rep, nn.Sequential)
    with torch.no_grad():
        torch.testing.assert_close(block(x), x.relu() + block.rep(x.relu()))
        torch.testing.assert_close(block(-x.abs()), block(torch.zeros_like(x)))


def test_the_classifier_reads_the_rectified_last_block() -> None:
    model = create_backbone("xception", middle_blocks=1).eval()
    image = torch.randn(1, 3, 64, 64)
    assert "pre_logits" not in model(image)
    model.attach_head("main", HEADS.build("linear", [model.classifier_block], 3))
    with torch.no_grad():
        features = model.forward_features(image)
    assert torch.equal(features["pre_logits"], features["stage4"].relu())
    assert features["stage4"].min() < 0


def test_images_may_have_any_number_of_channels() -> None:
    model = create_backbone("xception", middle_blocks=1, in_channels=1)
    assert model(torch.randn(2, 1, 64, 64))["stage4"].shape == (2, 2048, 2, 2)
