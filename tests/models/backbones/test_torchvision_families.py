"""ConvNeXt and MobileNets are torchvision's, with output strides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from goldens import (
    assert_fingerprint,
    drawn,
    drawn_input,
    golden,
    load_reference,
    parameters,
    reference_state,
)
from torch import nn

from classyseg.config import ConfigError
from classyseg.models import ClassyModel, create_backbone
from classyseg.models.load_weights import match

PARAMETERS = {
    "convnext_tiny": 28_589_128 - 770_536,
    "convnext_small": 50_223_688 - 770_536,
    "convnext_base": 88_591_464 - 1_027_048,
    "convnext_large": 197_767_336 - 1_540_072,
    "mobilenet_v2": 2_223_872,
    "mobilenet_v3_small_torchvision": 2_542_856 - 1_615_848,
    "mobilenet_v3_large_torchvision": 2_971_952,
}
BLOCKS = {
    "convnext_tiny": ((1, 3, 5, 7), (96, 192, 384, 768)),
    "mobilenet_v2": ((1, 3, 6, 13, 17), (16, 24, 32, 96, 320)),
    "mobilenet_v3_small_torchvision": ((0, 1, 3, 8, 11), (16, 16, 24, 48, 96)),
    "mobilenet_v3_large_torchvision": ((1, 3, 6, 12, 15), (16, 24, 40, 112, 160)),
}


def reference(name: str) -> nn.Module:
    return torchvision.models.get_model(name.removesuffix("_torchvision"))


def randomised(model: Any) -> Any:
    """With values that an untrained network does not have."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.normal_(parameter, 0, 0.5, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_keys_and_parameters_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        model, theirs = create_backbone(name), reference(name)
    assert parameters(model) == PARAMETERS[name]
    shapes = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("classifier.")}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    drops = [m.p for m in theirs.modules() if isinstance(m, torchvision.ops.StochasticDepth)]
    assert [m.p for m in model.modules() if isinstance(m, torchvision.ops.StochasticDepth)] == drops
    norms = [(m.eps, m.momentum) for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == norms


@pytest.mark.parametrize("name", BLOCKS)
def test_features_are_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    theirs, model = randomised(reference(name)), create_backbone(name).eval()
    state, report = match(model, theirs.state_dict())
    assert report.problems() == ""
    model.load_state_dict(state, strict=False)
    ends, channels = BLOCKS[name]
    assert tuple(block.channels for block in model.blocks.values()) == channels
    x = image = drawn_input(97, 65)
    with torch.no_grad():
        found = list(model(image).values())
        for i, layer in enumerate(theirs.features):
            x = layer(x)
            if i in ends:
                assert torch.equal(found[ends.index(i)], x)


@pytest.mark.parametrize(
    ("name", "theirs"), [("mobilenet_v2", "mobilenet_v2"), ("mobilenet_v3_large_torchvision", "mobilenet_v3_large")]
)
def test_features_are_those_recorded_of_torchvision(name: str, theirs: str) -> None:
    expected = golden("torchvision", theirs)
    model = load_reference(create_backbone(name))
    assert parameters(model) == expected["params_without_head"]
    assert [block.channels for block in model.blocks.values()] == expected["feat_channels"]
    assert [block.stride for block in model.blocks.values()] == expected["strides"]
    (last,) = model.watch("pre_logits")
    assert (last.channels, last.stride) == (expected["head_conv"]["channels"], expected["head_conv"]["stride"])
    with torch.no_grad():
        features = model(drawn_input(224, 224))
    assert list(features["pre_logits"].shape) == expected["head_conv"]["shape"]
    for name, stage in zip(model.blocks, expected["stages"], strict=True):
        assert list(features[name].shape) == stage["shape"]
        assert_fingerprint(features[name], expected["fingerprint"][stage["node"]])


def test_logits_are_those_recorded_of_torchvision() -> None:
    model = create_backbone("mobilenet_v2", features_only=False)
    file = reference_state(model)
    for key, shape in {"classifier.1.weight": (1000, 1280), "classifier.1.bias": (1000,)}.items():
        file[key] = torch.from_numpy(drawn(key, shape))
    state, report = match(model, file, classifier="main")
    assert report.problems() == ""
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        logits = model.eval()(drawn_input(224, 224))["main"]
    assert_fingerprint(logits, golden("torchvision", "mobilenet_v2")["logits_fingerprint"])


def without_means(model: ClassyModel) -> ClassyModel:
    for module in list(model.modules()):
        for child, layer in module.named_children():
            if isinstance(layer, torchvision.ops.SqueezeExcitation):
                setattr(module, child, nn.Identity())
    return model


@pytest.mark.parametrize("size", [160, 129])
@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenet_v2", "mobilenet_v3_small_torchvision"])
def test_a_dilated_network_holds_the_undilated_one_at_the_coarse_positions(
    name: str, output_stride: int, size: int
) -> None:
    config = {"depths": (1, 1, 2, 2)} if name == "convnext_tiny" else {}
    plain = randomised(without_means(create_backbone(name, **config)))
    dilated = without_means(create_backbone(name, output_stride=output_stride, **config)).eval()
    assert list(dilated.state_dict()) == list(plain.state_dict())
    dilated.load_state_dict(plain.state_dict())
    image, step = drawn_input(size, size), 32 // output_stride
    with torch.no_grad():
        coarse, fine = plain(image)["stage4"], dilated(image)["stage4"]
    assert dilated.blocks["stage4"].stride == output_stride
    fine = fine[..., ::step, ::step]
    height, width = (min(a, b) for a, b in zip(fine.shape[2:], coarse.shape[2:], strict=True))
    difference = fine[..., :height, :width] - coarse[..., :height, :width]
    assert min(height, width) >= size // 32
    assert difference.abs().max() <= 1e-5 * coarse.abs().max()


THEIR_KEYS: dict[str, list[str]] = {
    "convnext_tiny": [
        "stem.1.bias",
        "stages.1.downsample.0.weight",
        "stages.2.blocks.8.gamma",
        "stages.3.blocks.2.conv_dw.bias",
        "stages.0.blocks.0.mlp.fc2.weight",
    ],
    "mobilenet_v2": [
        "conv_stem.weight",
        "bn1.running_mean",
        "blocks.0.0.conv_pw.weight",
        "blocks.0.0.bn2.bias",
        "blocks.3.3.conv_pwl.weight",
        "blocks.6.0.bn3.running_var",
        "conv_head.weight",
        "bn2.weight",
    ],
}


@pytest.mark.parametrize("name", THEIR_KEYS)
def test_timms_files_load(name: str) -> None:
    model = create_backbone(name)
    state = reference_state(model, "timm", shape=lambda key, ours: ours[:1] if key.endswith("layer_scale") else ours)
    assert set(THEIR_KEYS[name]) <= set(state)
    assert not [key for key in state if key.startswith("features.")]
    found, report = match(model, state)
    assert (report.library, report.problems()) == ("timm", "")
    assert all(value.shape == model.state_dict()[key].shape for key, value in found.items())


@pytest.mark.parametrize("width", [0.5, 1.4])
def test_a_width_multiplies_the_channels_as_torchvision_does(width: float) -> None:
    theirs = torchvision.models.mobilenet_v2(width_mult=width)
    model = create_backbone("mobilenet_v2", width=width)
    shapes = {key: v.shape for key, v in theirs.state_dict().items() if not key.startswith("classifier.")}
    assert {key: v.shape for key, v in model.state_dict().items()} == shapes


@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenet_v2", "mobilenet_v3_small_torchvision"])
def test_images_may_have_any_number_of_channels(name: str) -> None:
    model = create_backbone(name, in_channels=5).eval()
    assert list(model(torch.randn(1, 5, 64, 64)).values())[-1].shape[2:] == (2, 2)


def test_a_width_of_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="width"):
        create_backbone("mobilenet_v2", width=0.0)


@pytest.mark.parametrize("name", ["mobilenet_v3", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_the_name_of_before_is_answered_with_the_one_of_now(name: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{name}_torchvision'"):
        create_backbone(f"{name}_tv")
