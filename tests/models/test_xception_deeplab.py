"""XceptionDeeplab is PaddleSeg's network, and unlike the published one keeps to its output stride."""

from __future__ import annotations

import re

import pytest
import torch
from goldens import assert_fingerprint, drawn_input, golden, golden_names, load_reference, parameters
from torch import nn

from classyseg.models import ClassyModel, create_backbone

COUNTS = {"xception41_deeplab": 24_920_560, "xception65_deeplab": 37_867_312, "xception71_deeplab": 40_289_736}
RECORDED = [name for name in golden_names("paddleseg") if name.startswith("Xception")]


def randomised(model: ClassyModel) -> ClassyModel:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", RECORDED)
def test_the_published_network_gives_the_recorded_outputs(name: str) -> None:
    recorded = golden("paddleseg", name)
    layers = re.match(r"Xception(\d+)", name)
    assert layers
    config = {"reference_strides": True, "output_stride": recorded["args"]["output_stride"]}
    model = load_reference(create_backbone(f"xception{layers[1]}_deeplab", **config), "paddleseg")
    assert parameters(model) == recorded["trainable_params"]
    assert [block.channels for block in model.blocks.values()] == recorded["feat_channels"]
    for size, shapes in recorded["feature_shapes"].items():
        height, width = map(int, size.split("x")[2:])
        with torch.no_grad():
            features = list(model(drawn_input(height, width)).values())
        assert [list(feature.shape) for feature in features] == shapes
        for feature, expected in zip(features, recorded["fingerprint"].get(size, ()), strict=False):
            assert_fingerprint(feature, expected)


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("name", [n for n in golden_names("timm") if n.startswith("xception")])
def test_each_output_stride_gives_timms_recorded_outputs(name: str, stride: int) -> None:
    recorded = golden("timm", name)["features_only"].get(f"os{stride}")
    if not recorded or "fingerprint" not in recorded:
        pytest.skip("not recorded")
    model = load_reference(create_backbone(f"{name}_deeplab", output_stride=stride), "timm, features_only")
    height, width = map(int, golden("timm", name)["input"].split("x")[2:])
    with torch.no_grad():
        deepest = model(drawn_input(height, width))["stage4"]
    assert list(deepest.shape) == recorded["shapes"][-1]
    assert_fingerprint(deepest, recorded["fingerprint"][-1])


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_the_references_at_every_stride(name: str) -> None:
    for config in ({"output_stride": 8}, {"output_stride": 32}, {"reference_strides": True}):
        with torch.device("meta"):
            assert parameters(create_backbone(name, **config)) == COUNTS[name]


@pytest.mark.parametrize(("name", "stride"), [("xception41_deeplab", 16), ("xception71_deeplab", 64)])
def test_the_published_network_has_its_own_stride_whatever_is_asked_for(name: str, stride: int) -> None:
    with torch.device("meta"):
        model = create_backbone(name, reference_strides=True, output_stride=8)
    assert model.blocks["stage4"].stride == stride
    assert model.run_on_meta(256)["stage4"].shape[2] == 256 // stride


@pytest.mark.parametrize(("stride", "size"), [(16, 129), (8, 160)])
def test_a_dilated_network_holds_the_undilated_one_at_the_coarse_positions(stride: int, size: int) -> None:
    plain = randomised(create_backbone("xception41_deeplab", output_stride=32))
    dilated = create_backbone("xception41_deeplab", output_stride=stride).eval()
    dilated.load_state_dict(plain.state_dict())
    image = drawn_input(size, size)
    step = 32 // stride
    with torch.no_grad():
        expected, found = plain(image)["stage4"], dilated(image)["stage4"][:, :, ::step, ::step]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_stages_between_are_there_for_heads_that_name_them() -> None:
    model = create_backbone("xception71_deeplab", output_stride=16)
    assert list(model.blocks) == ["stage1", "stage4"]
    assert [model.block(name)[1:] for name in ("stage2", "stage3")] == [(728, 8), (728, 16)]
