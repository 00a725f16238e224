"""EfficientNet and EfficientNetV2 are torchvision's and, with another norm, ClassyVision's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torchvision
from goldens import assert_fingerprint, drawn_input, golden, golden_names, load_reference, on_meta, parameters
from torch import nn
from torchvision.ops import SqueezeExcitation

from classyseg.models import create_backbone
from classyseg.models.load_weights import match
from classyseg.models.public_weights import public_weights

PARAMETERS = {
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "efficientnet_v2_s": 21_458_488,
    "efficientnet_v2_m": 54_139_356,
    "efficientnet_v2_l": 118_515_272,
}
"""With a classifier of 1000 classes."""
CLASSYVISION_NORM = {"eps": 1e-3, "momentum": 0.01}
STRIDES = {"stem": 2, "stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32}


def recorded_names(section: str) -> list[Any]:
    names = [name for name in golden_names(section) if "efficientnet" in name]
    return [pytest.param(n, marks=pytest.mark.slow if re.search("b[567]|_v2", n) else ()) for n in names]


@pytest.mark.parametrize("name", [*PARAMETERS, "efficientnet_b8"])
def test_parameters_and_blocks_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        model = create_backbone(name)
        head = model.classifier_block
        if name in PARAMETERS:
            reference = torchvision.models.get_model(name)
            assert parameters(model) + (head.channels + 1) * 1000 == PARAMETERS[name]
        else:  # the paper's scaling, beyond what torchvision has
            setting, last = torchvision.models.efficientnet._efficientnet_conf(
                "efficientnet_b7", width_mult=2.2, depth_mult=3.6
            )
            reference = torchvision.models.EfficientNet(setting, 0.5, last_channel=last)
    expected = {key: value.shape for key, value in reference.state_dict().items() if not key.startswith("classifier")}
    assert {key: value.shape for key, value in model.state_dict().items()} == expected
    assert {name: info.stride for name, info in model.blocks.items()} == STRIDES


@pytest.mark.parametrize("name", recorded_names("torchvision"))
def test_blocks_are_torchvisions(name: str) -> None:
    recorded = golden("torchvision", name)
    model = create_backbone(name)
    load_reference(model)
    assert parameters(model) == recorded["params_without_head"]
    with torch.no_grad():
        features = model(drawn_input(224, 224))
    assert [list(feature.shape) for feature in features.values()] == [stage["shape"] for stage in recorded["stages"]]
    for feature, fingerprint in zip(features.values(), recorded["fingerprint"].values(), strict=True):
        assert_fingerprint(feature, fingerprint)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("name", recorded_names("timm"))
def test_blocks_are_timms_at_every_output_stride(name: str, output_stride: int) -> None:
    recorded = golden("timm", name)["features_only"][f"os{output_stride}"]
    model = load_reference(on_meta(name, output_stride=output_stride), "timm")
    with torch.no_grad():
        features = model(drawn_input(224, 224))
    assert [list(feature.shape) for feature in features.values()] == recorded["shapes"]
    for feature, fingerprint in zip(features.values(), recorded["fingerprint"], strict=True):
        assert_fingerprint(feature, fingerprint)


@pytest.mark.parametrize("name", recorded_names("classyvision"))
def test_blocks_are_classyvisions(name: str) -> None:
    recorded = golden("classyvision", name)
    model = create_backbone(name.removeprefix("cv/"), norm=CLASSYVISION_NORM)
    load_reference(model, "classyvision")
    head = model.classifier_block
    assert parameters(model) + (head.channels + 1) * 1000 == recorded["trainable_params"]
    with torch.no_grad():
        features = model(drawn_input(*recorded["input"][2:]))
    shapes = [stage["shape"] for stage in recorded["stages"]]
    assert [list(feature.shape) for feature in features.values()] == [shapes[i] for i in (0, 1, 2, 4, 6)]
    (fingerprint,) = recorded["fingerprint"].values()
    assert_fingerprint(features["stage4"], fingerprint)


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_v2_s"])
def test_torchvisions_weights_and_classifier_give_its_logits(name: str) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name).eval()
    model = create_backbone(name, features_only=False).eval()
    state, report = match(model, reference.state_dict(), classifier="main")
    assert report.problems() == ""
    model.load_state_dict(state)
    image = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        torch.testing.assert_close(model(image)["main"], reference(image))
    assert "imagenet1k_v1" in public_weights(type(model), name)


def test_timms_spelling_of_v2() -> None:
    with torch.device("meta"):
        model = create_backbone("efficientnet_v2_s")
    timm = next(naming for naming in model.namings if naming.library == "timm")
    assert timm.key("features.0.1.weight") == "bn1.weight"
    assert timm.key("features.1.1.block.0.0.weight") == "blocks.0.1.conv.weight"
    assert timm.key("features.2.3.block.1.0.weight") == "blocks.1.3.conv_pwl.weight"
    assert timm.key("features.5.0.block.2.fc2.bias") == "blocks.4.0.se.conv_expand.bias"
    assert timm.key("features.7.0.weight") == "conv_head.weight"


@pytest.mark.parametrize(("output_stride", "size"), [(16, 256), (8, 225)])
@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_v2_s"])
def test_a_dilated_network_holds_the_undilated_one_at_the_coarse_positions(
    name: str, output_stride: int, size: int
) -> None:
    """But for squeeze and excitation, which takes the mean of more positions."""
    torch.manual_seed(0)
    plain, dilated = create_backbone(name).eval(), create_backbone(name, output_stride=output_stride).eval()
    dilated.load_state_dict(plain.state_dict())
    for model in (plain, dilated):
        for module in list(model.modules()):
            for child, part in list(module.named_children()):
                if isinstance(part, SqueezeExcitation):
                    setattr(module, child, nn.Identity())
    image, step = torch.randn(1, 3, size, size), 32 // output_stride
    with torch.no_grad():
        coarse, fine = plain(image)["stage4"], dilated(image)["stage4"]
    assert dilated.blocks["stage4"].stride == dilated.classifier_block.stride == output_stride
    torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=0, atol=1e-5 * coarse.abs().max().item())


def test_images_may_have_any_number_of_channels() -> None:
    model = create_backbone("efficientnet_b0", in_channels=5)
    assert model(torch.randn(2, 5, 64, 64))["stage4"].shape == (2, 320, 2, 2)
