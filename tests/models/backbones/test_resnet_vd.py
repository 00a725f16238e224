"""ResNet-vd is PaddleSeg's, with timm's keys."""

from __future__ import annotations

import pytest
import torch
from goldens import golden, parameters
from paddleseg_goldens import assert_golden, entries, initial_deviations
from torch import nn

from classyseg.config import ConfigError
from classyseg.models import ResNetVd, create_backbone, list_models
from classyseg.registry import OPTIMIZERS
from classyseg.structures import RunLength

PARAMETERS = {
    "resnet18_vd": 11_199_968,
    "resnet34_vd": 21_308_128,
    "resnet50_vd": 23_527_264,
    "resnet101_vd": 42_519_392,
    "resnet152_vd": 58_163_040,
    "resnet200_vd": 72_689_504,
}


@pytest.mark.parametrize("entry", entries("ResNet"))
def test_features_are_paddlesegs(entry: str) -> None:
    assert_golden(entry, **golden("paddleseg", entry)["args"])


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_depth_has_its_parameters_and_paddlesegs_output_stride(name: str) -> None:
    with torch.device("meta"):
        model = create_backbone(name)
    assert parameters(model) == PARAMETERS[name]
    assert [block.stride for block in model.blocks.values()] == [4, 8, 8, 8]


def test_the_stem_is_there_for_heads_that_read_it() -> None:
    assert create_backbone("resnet18_vd").block("stem")[1:] == (64, 2)


def test_keys_are_timms_except_for_the_projection_of_the_first_stage() -> None:
    keys = list(create_backbone("resnet18_vd").state_dict())
    assert {"conv1.0.weight", "conv1.3.weight", "conv1.6.weight", "bn1.weight", "layer2.0.downsample.1.weight"} <= {
        *keys
    }
    assert "layer1.0.downsample.1.weight" in keys


def test_all_blocks_of_a_dilated_stage_are_dilated_the_first_too() -> None:
    model = create_backbone("resnet18_vd", output_stride=8, multi_grid=(1, 2))
    found = {name: m.dilation[0] for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert [found[f"layer3.{i}.conv{n}"] for i in (0, 1) for n in (1, 2)] == [2, 2, 2, 2]
    assert [found[f"layer4.{i}.conv{n}"] for i in (0, 1) for n in (1, 2)] == [4, 4, 8, 8]


def test_a_first_grid_factor_above_one_keeps_the_last_stage_at_stride_16() -> None:
    model = create_backbone("resnet50_vd", output_stride=32, multi_grid=(2, 4, 8)).eval()
    assert model.blocks["stage4"].stride == 16  # type: ignore[union-attr]
    with torch.no_grad():
        assert model(torch.randn(1, 3, 65, 33))["stage4"].shape == (1, 2048, 5, 3)


def test_multi_grid_needs_a_factor_for_each_block() -> None:
    with pytest.raises(ConfigError, match=r"multi_grid.*3 factors.*2 blocks"):
        create_backbone("resnet18_vd", multi_grid=(1, 2, 4))


def test_convolutions_begin_as_paddles() -> None:
    torch.manual_seed(0)
    assert initial_deviations(create_backbone("resnet18_vd")) == pytest.approx([1.0] * 19, rel=0.03)


def test_factors_of_the_stages_become_groups_of_the_optimizer() -> None:
    model = create_backbone("resnet18_vd")
    groups = ResNetVd.lr_groups([0, 0.1, 0.2, 0.5, 1])
    optimizer = OPTIMIZERS.build(
        {"name": "sgd", "lr": 2.0, "groups": groups}, model.named_parameters(), RunLength(1, 10)
    )
    rates = {
        name: group["lr"]
        for names, group in zip(optimizer.names, optimizer.optimizer.param_groups, strict=True)
        for name in names
    }
    assert set(rates) == dict(model.named_parameters()).keys()
    factors = {"conv1": 0, "bn1": 0, "layer1": 0.1, "layer2": 0.2, "layer3": 0.5, "layer4": 1}
    assert rates == {name: 2 * factors[name.split(".")[0]] for name in rates}


def test_factors_are_five() -> None:
    with pytest.raises(ConfigError, match=r"lr_groups.*4 factors.*one each"):
        ResNetVd.lr_groups([1, 1, 1, 1])


def test_the_depths_of_the_table_are_registered() -> None:
    assert list_models("resnet*_vd") == sorted([*PARAMETERS, "resnet_vd"])
