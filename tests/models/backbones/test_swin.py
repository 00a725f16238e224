"""Swin Transformers are torchvision's and timm's, on images of any size."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from goldens import (
    assert_fingerprint,
    drawn,
    drawn_input,
    golden,
    golden_names,
    load_reference,
    parameters,
    reference_state,
)
from torch import Tensor, nn
from torchvision.models import swin_transformer

from classyseg.config import ConfigError
from classyseg.models import ClassyModel, create_backbone
from classyseg.models.load_weights import match

PARAMETERS = {
    "swin_t": 28_288_354 - 769_000,
    "swin_s": 49_606_258 - 769_000,
    "swin_b": 87_768_224 - 1_025_000,
    "swin_v2_t": 28_351_570 - 769_000,
    "swin_v2_s": 49_737_442 - 769_000,
    "swin_v2_b": 87_930_848 - 1_025_000,
}
RECORDED = [pytest.param(n, marks=pytest.mark.slow) for n in golden_names("torchvision") if n.startswith("swin")]
TIMM = {"swin_t": "swin_tiny_patch4_window7_224", "swin_s": "swin_small_patch4_window7_224"}
TINY: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 4}


def tiny(version: int) -> ClassyModel:
    torch.manual_seed(0)
    return create_backbone("swin", version=version, **TINY).eval()


def reference(version: int) -> nn.Module:
    torch.manual_seed(1)
    kinds: dict[str, Any] = {}
    if version == 2:
        kinds = {
            "block": swin_transformer.SwinTransformerBlockV2,
            "downsample_layer": swin_transformer.PatchMergingV2,
        }
    model = torchvision.models.SwinTransformer(
        [4, 4], TINY["embed_dim"], list(TINY["depths"]), list(TINY["num_heads"]), [4, 4], **kinds
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def reference_maps(model: nn.Module, image: Tensor) -> list[Tensor]:
    maps = []
    x = image
    for i, layer in enumerate(model.features):  # type: ignore[arg-type]
        x = layer(x)
        if i % 2:
            maps.append(x)
    return [x.permute(0, 3, 1, 2) for x in [*maps, model.norm(x)]]  # type: ignore[operator]


@pytest.mark.parametrize("name", PARAMETERS)
def test_keys_and_parameters_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        model, theirs = create_backbone(name), torchvision.models.get_model(name)
    assert parameters(model) == PARAMETERS[name]
    shapes = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("head.")}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    depth_drops = [m.p for m in theirs.modules() if isinstance(m, torchvision.ops.StochasticDepth)]
    assert [m.p for m in model.modules() if isinstance(m, torchvision.ops.StochasticDepth)] == depth_drops


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (224, 100), (36, 52)], ids=str)
@pytest.mark.parametrize("version", [1, 2])
def test_features_are_torchvisions_at_multiples_of_a_patch(version: int, size: tuple[int, int]) -> None:
    theirs, model = reference(version), tiny(version)
    state, report = match(model, theirs.state_dict())
    assert (report.problems(), report.ignored) == ("", ("head.weight", "head.bias"))
    model.load_state_dict(state, strict=False)
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for (name, found), expected in zip(model(image).items(), reference_maps(theirs, image), strict=True):
            assert found.shape[1:] == expected.shape[1:]
            assert (found - expected).abs().max() <= 2e-5 * expected.abs().max(), name


@pytest.mark.parametrize("version", [1, 2])
def test_gradients_are_torchvisions(version: int) -> None:
    theirs, model = reference(version), tiny(version)
    model.load_state_dict(match(model, theirs.state_dict())[0], strict=False)
    image = drawn_input(40, 72)
    model(image)["norm"].square().sum().backward()
    reference_maps(theirs, image)[-1].square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        wanted = expected[name].grad
        assert (parameter.grad - wanted).abs().max() <= 1e-3 * wanted.abs().max() + 1e-6, name  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("name", RECORDED)
def test_features_are_those_recorded_of_torchvision(name: str) -> None:
    expected = golden("torchvision", name)
    model = load_reference(create_backbone(name))
    assert parameters(model) == expected["params_without_head"]
    assert [block.channels for block in model.blocks.values()] == expected["feat_channels"]
    assert [block.stride for block in model.blocks.values()] == expected["strides"]
    side = expected["stages"][0]["shape"][1] * 4
    with torch.no_grad():
        features = model(drawn_input(side, side))
    for feature, stage in zip(features.values(), expected["stages"], strict=True):
        assert list(feature.permute(0, 2, 3, 1).shape) == stage["shape"]
        assert_fingerprint(feature.permute(0, 2, 3, 1), expected["fingerprint"][stage["node"]])


def as_recorded(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """timm's model of features alone spells the names of its stages with an underscore."""
    return drawn(re.sub(r"^layers\.", "layers_", key), shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_features_are_those_recorded_of_timm(name: str) -> None:
    expected = golden("timm", TIMM[name])["features_only"]["os32"]
    model = load_reference(create_backbone(name), "timm", weight=as_recorded)
    with torch.no_grad():
        features = list(model(drawn_input(224, 224)).values())[:4]
    for feature, shape, fingerprint in zip(features, expected["shapes"], expected["fingerprint"], strict=True):
        assert list(feature.permute(0, 2, 3, 1).shape) == shape
        assert_fingerprint(feature.permute(0, 2, 3, 1), fingerprint)


def test_microsofts_keys_have_the_merging_in_the_stage_before() -> None:
    state = reference_state(tiny(1), "microsoft")
    assert "layers.0.downsample.reduction.weight" in state
    assert "layers.3.downsample.reduction.weight" not in state
    _, report = match(tiny(1), state)
    assert (report.library, report.problems()) == ("microsoft", "")


@pytest.mark.parametrize("library", ["timm", "microsoft"])
def test_biases_that_others_keep_apart_in_version_2_are_joined(library: str) -> None:
    state = reference_state(tiny(2), library)
    joined = {key: state.pop(key) for key in list(state) if key.endswith(".attn.qkv.bias")}
    for key, bias in joined.items():
        query, _, value = bias.chunk(3)
        start = key.removesuffix("qkv.bias")
        state |= {f"model.{start}q_bias": query, f"model.{start}v_bias": value}
    found, report = match(tiny(2), {key if key.startswith("model.") else f"model.{key}": state[key] for key in state})
    assert (report.library, report.prefix, report.problems()) == (library, "model.", "")
    bias, expected = found["features.3.1.attn.qkv.bias"], joined["layers.1.blocks.1.attn.qkv.bias"].clone()
    expected[32:64] = 0
    assert torch.equal(bias, expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"embed_dim": 20}, "num_heads: found 3, which does not divide the 20 channels"),
        ({"output_stride": 16}, "output_stride: found \\d+; .* has no output_stride"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_backbone("swin_t", **config)


def test_images_may_have_any_number_of_channels() -> None:
    model = create_backbone("swin", in_channels=5, **TINY)
    assert model(torch.randn(1, 5, 33, 65))["stage1"].shape == (1, 16, 9, 17)
