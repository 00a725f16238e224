"""What each of ResNet's switches does beyond what the recorded numbers tell, and which of them exclude each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from goldens import parameters
from torch import nn

from classyseg.config import ConfigError
from classyseg.layers import DropBlock2d, RectifiedConv2d, tell_progress
from classyseg.models import ClassyModel, create_backbone, load_weights

SHALLOW: dict[str, Any] = {"depths": (1, 1, 1, 2)}


def shallow(name: str, **config: Any) -> ClassyModel:
    torch.manual_seed(0)
    return create_backbone(name, **{**SHALLOW, **config})


def randomised(model: ClassyModel) -> ClassyModel:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model.eval()


def difference_at_the_coarse_positions(name: str, size: int, output_stride: int) -> float:
    plain = randomised(shallow(name))
    dilated = shallow(name, output_stride=output_stride).eval()
    dilated.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, size, size)
    step = 32 // output_stride
    with torch.no_grad():
        coarse, fine = plain(image)["stage4"], dilated(image)["stage4"][..., ::step, ::step]
    return ((fine - coarse).abs().max() / coarse.abs().max()).item()


@pytest.mark.parametrize("size", [160, 129])
@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2", "resnet50s"])
def test_dilated_networks_hold_the_undilated_ones_at_the_coarse_positions(
    name: str, output_stride: int, size: int
) -> None:
    assert difference_at_the_coarse_positions(name, size, output_stride) < 1e-5


@pytest.mark.parametrize("name", ["resnet50d", "resnest50"])
def test_dilated_networks_with_pools_do_not_by_their_reference(name: str) -> None:
    """PyTorch-Encoding's shortcut pools at a stride alone, and its other pools are as wide at stride 1 as at 2."""
    assert difference_at_the_coarse_positions(name, 256, 8) > 1e-2


def test_the_pool_for_the_stride_stays_in_dilated_stages_and_is_never_in_the_first() -> None:
    for output_stride, strides in ((32, [2, 2, 2]), (16, [2, 2, 1]), (8, [2, 1, 1])):
        model = shallow("resnest50", output_stride=output_stride)
        pools = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.AvgPool2d) and "pool" in name
        }
        assert list(pools) == [f"layer{i}.0.pool_last" for i in (2, 3, 4)]
        assert [pool.stride for pool in pools.values()] == strides
    assert isinstance(shallow("resnest50_fast").get_submodule("layer2.0.pool_first"), nn.AvgPool2d)


@pytest.mark.parametrize(
    ("name", "config"), [("resnet18", {}), ("resnet50", {}), ("resnest50", {}), ("resnet18", {"se_reduction": 4})]
)
def test_last_gamma_makes_every_residual_branch_begin_at_zero(name: str, config: dict[str, Any]) -> None:
    model = shallow(name, last_gamma=True, **config)
    zero = [key for key, value in model.named_parameters() if key.endswith("weight") and not value.any()]
    last = "bn2" if name == "resnet18" else "bn3"
    assert zero == [f"layer{i}.{j}.{last}.weight" for i in range(1, 5) for j in range(2 if i == 4 else 1)]
    block = model.eval().get_submodule("layer4.1")
    x = torch.randn(1, model.blocks["stage4"].channels, 3, 3).relu()
    assert torch.equal(block(x), x)


def test_dropblock_works_in_the_last_two_stages_in_training_alone() -> None:
    model = shallow("resnest50", dropblock=0.2)
    plain = shallow("resnest50")
    assert list(model.state_dict()) == list(plain.state_dict())
    stages = {name.split(".")[0] for name, module in model.named_modules() if isinstance(module, DropBlock2d)}
    assert stages == {"layer3", "layer4"}
    image = torch.randn(2, 3, 64, 64)
    first, second = model.train()(image), model(image)
    assert torch.equal(first["stage2"], second["stage2"])
    assert not torch.equal(first["stage3"], second["stage3"])
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.eval()(image)["stage4"], plain.eval()(image)["stage4"])


def test_progress_raises_dropblocks_probability_from_zero() -> None:
    model = shallow("resnet50", dropblock=0.3, dropblock_ramp=0.5)
    image = torch.randn(2, 3, 64, 64)
    torch.manual_seed(0)
    first = model.train()(image)["stage4"]
    torch.manual_seed(1)
    assert torch.equal(model(image)["stage4"], first)  # nothing is dropped yet
    tell_progress(model, 0.5)
    assert not torch.equal(model(image)["stage4"], first)
    drops = [module for module in model.modules() if isinstance(module, DropBlock2d)]
    assert {drop.reached.item() for drop in drops} == {1.0}


def test_rectified_convolutions_are_all_that_are_larger_than_1x1() -> None:
    for name in ("resnet50", "resnest50"):
        model = shallow(name, rectified_conv=True, rectify_avg=True)
        convs = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)]
        assert all(isinstance(conv, RectifiedConv2d) and conv.average for conv in convs)
        assert list(model.state_dict()) == list(shallow(name).state_dict())
        assert model.eval()(torch.randn(1, 3, 1, 33))["stage4"].isfinite().all()


def test_small_inputs_keep_their_size_up_to_the_second_stage() -> None:
    model = create_backbone("resnet18", small_input=True, output_stride=8)
    assert parameters(model) == 11_168_832  # of the network that CIFAR papers call ResNet-18, without its classifier
    assert [block.stride for block in model.blocks.values()] == [1, 1, 2, 4, 8]
    assert [feature.shape[2] for feature in model(torch.randn(2, 3, 32, 32)).values()] == [32, 32, 16, 8, 4]


@pytest.mark.parametrize(
    ("name", "config", "count"),
    [
        ("resnet50", {}, 26_039_024),  # timm's seresnet50, and ClassyVision's
        ("resnet18", {}, 11_265_592),  # ClassyVision's; timm's has wider ones
        ("resnext50_32x4d", {}, 25_510_896),
    ],
)
def test_squeeze_and_excitation_has_the_parameters_of_its_references(
    name: str, config: dict[str, Any], count: int
) -> None:
    with torch.device("meta"):
        assert parameters(create_backbone(name, se_reduction=16, **config)) == count


@pytest.mark.parametrize(("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_files_with_classyvisions_names_load(name: str, last: str, tmp_path: Any) -> None:
    model = shallow(name, se_reduction=16)
    (naming,) = model.namings
    theirs = {naming.key(key): value for key, value in shallow(name, se_reduction=16).state_dict().items()}
    assert f"blocks.3.block3-1.{'convolutional_block.4' if last == 'bn3' else 'bn'}.weight" in theirs
    assert {"initial_block._module.0.weight", "blocks.0.block0-0.se.excitation.2.bias"} <= set(theirs)
    assert naming.key(f"layer2.0.{last}.weight") == "blocks.1.block1-0.bn.weight"
    torch.save({"state_dict": theirs}, tmp_path / "trunk.pth")
    report = load_weights(model, str(tmp_path / "trunk.pth"))
    assert (report.library, report.problems()) == ("classyvision", "")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"block": "basic", "radix": 2}, "radix: found 2, which needs 'block: bottleneck'"),
        ({"block": "basic", "groups": 32}, "groups: found 32, which needs 'block: bottleneck'"),
        ({"avd_first": True}, "avd_first: found True, which means nothing without avd"),
        ({"rectify_avg": True}, "rectify_avg: found True, which means nothing without rectified_conv"),
        ({"dropblock_ramp": 0.5}, "dropblock_ramp: found 0.5, which means nothing without dropblock"),
        ({"stem_width": 32}, "stem_width: found 32, which means nothing without deep_stem"),
        ({"deep_stem": True, "small_input": True}, "small_input: found true together with deep_stem"),
        ({"radix": 3}, "radix: found 3, which does not divide width_per_group 64"),
        ({"dropblock": 1.0}, "dropblock: found 1.0"),
    ],
)
def test_switches_that_contradict_each_other_are_errors(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_backbone("resnet", **config)
