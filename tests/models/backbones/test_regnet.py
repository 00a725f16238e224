"""AnyNet and RegNet equal ClassyVision's and torchvision's recorded numbers, and read their files."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torchvision
from goldens import (
    assert_fingerprint,
    drawn_input,
    golden,
    golden_names,
    load_reference,
    on_meta,
    parameters,
    reference_state,
)
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from classyseg.config import ConfigError
from classyseg.models import ClassyModel, create_backbone, list_models
from classyseg.models.load_weights import match
from classyseg.models.public_weights import public_weights

PARAMETERS = {
    "regnet_x_400mf": 5_157_512,
    "regnet_x_800mf": 7_259_656,
    "regnet_x_1_6gf": 9_190_136,
    "regnet_x_3_2gf": 15_296_552,
    "regnet_x_8gf": 39_572_648,
    "regnet_x_16gf": 54_278_536,
    "regnet_x_32gf": 107_811_560,
    "regnet_y_400mf": 4_344_144,
    "regnet_y_800mf": 6_263_168,
    "regnet_y_1_6gf": 11_202_430,
    "regnet_y_3_2gf": 19_436_338,
    "regnet_y_8gf": 39_180_068,
    "regnet_y_16gf": 83_590_140,
    "regnet_y_32gf": 145_046_770,
    "regnet_y_64gf": 281_378_786,
    "regnet_y_128gf": 644_812_894,
    "regnet_y_256gf": 826_140_008,
    "regnet_z_500mf": 6_090_550,
    "regnet_z_4gf": 27_116_800,
    "regnet_x_400mf_torchvision": 5_495_976,
    "regnet_y_800mf_torchvision": 6_432_512,
    "regnet_y_8gf_torchvision": 39_381_472,
}
"""ClassyVision's and torchvision's own, with a classifier of 1000 classes."""
OTHER_WIDTHS = [name.removesuffix("_torchvision") for name in PARAMETERS if name.endswith("_torchvision")]
ANYNET: dict[str, Any] = {
    "depths": (1, 2, 1),
    "widths": (16, 24, 32),
    "group_widths": (8, 8, 16),
    "bottleneck_multipliers": (1.0, 2.0, 0.5),
    "strides": (2, 2, 2),
}


def recorded_names(section: str) -> list[Any]:
    """Those of the family; networks that take more than a moment are marked slow."""
    names = [name for name in golden_names(section) if re.search("regnet|anynet", name)]
    return [pytest.param(n, marks=pytest.mark.slow if re.search("(8|16|32)gf|vanilla|basic", n) else ()) for n in names]


def randomised(model: nn.Module) -> nn.Module:
    """With running statistics that an untrained network does not have."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_references(name: str) -> None:
    with torch.device("meta"):
        model = create_backbone(name)
    classifier = (model.blocks["stage4"].channels + 1) * 1000
    assert parameters(model) + classifier == PARAMETERS[name]


def test_every_variant_is_counted() -> None:
    assert set(list_models("regnet_*")) == set(PARAMETERS)


@pytest.mark.parametrize("name", recorded_names("classyvision"))
def test_blocks_are_classyvisions(name: str) -> None:
    recorded = golden("classyvision", name)
    config = {key: value for key, value in recorded["config"].items() if key != "name"}
    model = on_meta(recorded["config"]["name"].replace(".", "_"), **config)
    assert parameters(model) == recorded["trainable_params"]
    load_reference(model, "classyvision")
    with torch.no_grad():
        features = model(drawn_input(*recorded["input"][2:]))
    assert [list(feature.shape) for feature in features.values()] == [stage["shape"] for stage in recorded["stages"]]
    assert_fingerprint(features["stage4"], recorded["fingerprint"]["trunk_output.block4"])


@pytest.mark.parametrize("name", recorded_names("torchvision"))
def test_blocks_are_torchvisions(name: str) -> None:
    recorded = golden("torchvision", name)
    model = on_meta(name if name not in OTHER_WIDTHS else f"{name}_torchvision")
    assert parameters(model) == recorded["params_without_head"]
    load_reference(model)
    with torch.no_grad():
        features = model(drawn_input(224, 224))
    assert [list(feature.shape) for feature in features.values()] == [stage["shape"] for stage in recorded["stages"]]
    for feature, fingerprint in zip(features.values(), recorded["fingerprint"].values(), strict=True):
        assert_fingerprint(feature, fingerprint)


@pytest.mark.parametrize("name", ["regnet_x_400mf_torchvision", "regnet_y_400mf", "regnet_y_800mf_torchvision"])
def test_torchvisions_weights_load_strictly_and_give_its_features(name: str) -> None:
    reference = randomised(torchvision.models.get_model(name.removesuffix("_torchvision")))
    model = create_backbone(name).eval()
    state, report = match(model, reference.state_dict())
    assert (report.problems(), set(report.ignored)) == ("", {"fc.weight", "fc.bias"})
    model.load_state_dict(state)
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        expected = reference.trunk_output(reference.stem(image))  # type: ignore[operator]
        assert torch.equal(model(image)["stage4"], expected)


@pytest.mark.parametrize("name", OTHER_WIDTHS)
def test_torchvisions_weights_belong_to_the_name_whose_widths_they_have(name: str) -> None:
    model = create_backbone("regnet_x_400mf")
    assert public_weights(type(model), name) == {}
    assert set(public_weights(type(model), f"{name}_torchvision")) == {"imagenet1k_v1", "imagenet1k_v2"}
    assert public_weights(type(model), "regnet_y_400mf")["imagenet1k_v2"].crop == 224


def test_timms_spelling_counts_blocks_from_one() -> None:
    with torch.device("meta"):
        model = create_backbone("regnet_y_400mf")
    timm = next(naming for naming in model.namings if naming.library == "timm")
    assert timm.key("stem.1.weight") == "stem.bn.weight"
    assert timm.key("trunk_output.block3.block3-5.f.b.0.weight") == "s3.b6.conv2.conv.weight"
    assert timm.key("trunk_output.block1.block1-0.proj.1.bias") == "s1.b1.downsample.bn.bias"
    assert timm.key("trunk_output.block1.block1-0.f.se.fc1.bias") == "s1.b1.se.fc1.bias"


def test_timms_convolution_before_the_classifier_is_none_of_the_backbones() -> None:
    model = create_backbone("regnet_z_500mf")
    state = reference_state(model, "timm") | {"final_conv.conv.weight": torch.ones(1024, 384, 1, 1)}
    _, report = match(model, state)
    assert (report.library, report.problems(), report.ignored) == ("timm", "", ("final_conv.conv.weight",))


@pytest.mark.parametrize("size", [256, 225])
@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("name", ["regnet_x_400mf", "regnet_y_400mf"])
def test_a_dilated_network_holds_the_undilated_one_at_the_coarse_positions(
    name: str, output_stride: int, size: int
) -> None:
    """But for squeeze and excitation, which takes the mean of more positions."""
    plain: ClassyModel = randomised(create_backbone(name))  # type: ignore[assignment]
    dilated = create_backbone(name, output_stride=output_stride).eval()
    dilated.load_state_dict(plain.state_dict())
    for model in (plain, dilated):
        for module in list(model.modules()):
            for child, part in list(module.named_children()):
                if isinstance(part, SqueezeExcitation):
                    setattr(module, child, nn.Identity())
    image, step = torch.randn(1, 3, size, size), 32 // output_stride
    with torch.no_grad():
        coarse, fine = plain(image)["stage4"], dilated(image)["stage4"]
    assert dilated.blocks["stage4"].stride == output_stride
    torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=0, atol=1e-5 * coarse.abs().max().item())


@pytest.mark.parametrize("block", ["vanilla_block", "res_basic_block", "res_bottleneck_linear_block"])
@pytest.mark.parametrize(("stem", "strides"), [("simple_stem_in", 2), ("res_stem_in", 4), ("res_stem_cifar", 1)])
def test_blocks_have_the_strides_of_their_stem_and_stages(stem: str, strides: int, block: str) -> None:
    model = create_backbone("anynet", **ANYNET, stem_type=stem, block_type=block, in_channels=2).eval()
    assert [info.stride for info in model.blocks.values()] == [strides * factor for factor in (1, 2, 4, 8)]
    with torch.no_grad():
        features = model(torch.randn(1, 2, 65, 64))
    for name, feature in features.items():
        _, channels, stride = model.blocks[name]
        assert feature.shape == (1, channels, -(-65 // stride), 64 // stride)


def test_an_output_stride_bounds_the_strides_of_any_stem() -> None:
    model = create_backbone("anynet", **ANYNET, stem_type="res_stem_in", output_stride=8).eval()
    assert [info.stride for info in model.blocks.values()] == [4, 8, 8, 8]
    features: dict[str, Tensor] = model(torch.randn(1, 3, 64, 64))
    assert features["stage3"].shape == (1, 32, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (2, 2)}, r"depths: found 3 stages, .* strides 2; give one value a stage"),
        ({"group_widths": (8, 7, 16)}, r"group_widths: found 7, which does not divide 48 channels"),
        ({"strides": (2, 3, 2)}, r"strides: found 3; input should be 1 or 2"),
    ],
)
def test_stages_that_do_not_fit_together_are_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_backbone("anynet", **{**ANYNET, **change})


def test_a_name_as_classyvision_writes_it_gets_the_right_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"'regnet_x_1\.6gf'.*'regnet_x_1_6gf'"):
        create_backbone("regnet_x_1.6gf")
