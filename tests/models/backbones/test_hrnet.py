"""HRNet is PaddleSeg's, and with other padding and upsampling timm's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from goldens import (
    assert_fingerprint,
    drawn,
    drawn_input,
    golden,
    golden_names,
    load_reference,
    on_meta,
    parameters,
    reference_state,
)
from paddleseg_goldens import assert_golden, assert_golden_shapes
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.config import ConfigError
from classyseg.layers import NormConfig, build_norm
from classyseg.models import ClassyModel, HRNet, create_backbone, list_models
from classyseg.models.backbones.residual import ResidualBlock

PARAMETERS = {
    "hrnet_w18_small_v1": 1_477_920,
    "hrnet_w18_small_v2": 3_860_720,
    "hrnet_w18": 9_562_260,
    "hrnet_w30": 25_812_276,
    "hrnet_w32": 29_305_536,
    "hrnet_w40": 45_521_216,
    "hrnet_w44": 54_974_640,
    "hrnet_w48": 65_325_120,
    "hrnet_w60": 101_758_896,
    "hrnet_w64": 115_697_600,
}
CHANNELS = dict(zip(PARAMETERS, [240, 270, 270, 450, 480, 600, 660, 720, 900, 960], strict=True))
WIDE = 50_000_000
"""Parameters beyond which a network is not run. PaddleSeg's of no option is recorded from `hrnet_w40` on, with 46."""
TIMM = {"padding": "symmetric", "fuse_upsample": "nearest"}
TINY: dict[str, Any] = {
    "num_modules": (1, 1, 1),
    "num_blocks": ((1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)),
    "num_channels": ((8,), (4, 8), (4, 8, 16), (4, 8, 16, 32)),
}


@pytest.mark.parametrize("entry", [name for name in golden_names("paddleseg") if name.startswith("HRNet")])
def test_features_are_paddlesegs(entry: str) -> None:
    """Wide networks differ from narrow ones in widths alone: their shapes and names are held."""
    recorded = golden("paddleseg", entry)
    config = dict(recorded["args"])
    if not config.pop("padding_same", True):
        config["padding"] = "symmetric"
    if recorded["trainable_params"] <= WIDE:
        assert_golden(entry, **config)
    else:
        assert same_names(assert_golden_shapes(entry, **config), on_meta("hrnet_w18", **config))


def same_names(wide: ClassyModel, narrow: ClassyModel) -> bool:
    return list(wide.state_dict()) == list(narrow.state_dict())


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_width_has_its_parameters_and_channels(name: str) -> None:
    with torch.device("meta"):
        model = create_backbone(name)
    assert parameters(model) == PARAMETERS[name]
    assert [tuple(block) for block in model.blocks.values()] == [("stage4", CHANNELS[name], 4)]


def test_squeeze_and_excitation_has_paddlesegs_parameters() -> None:
    with torch.device("meta"):
        assert parameters(create_backbone("hrnet_w18", has_se=True)) == 9_654_896
        assert parameters(create_backbone("hrnet_w48", has_se=True)) == 65_770_768


TIMMS = [name for name in golden_names("timm") if name.startswith("hrnet")]


def timm_classification_maps(model: ClassyModel, branches: list[Tensor]) -> list[Tensor]:
    """What timm lists as an HRNet's features: the bottlenecks, filled as they were, that its classifier begins with."""
    maps = []
    for i, (branch, width) in enumerate(zip(branches, (32, 64, 128, 256), strict=True)):
        channels = (branch.shape[1], width, 4 * width)
        conv = nn.Conv2d(channels[0], channels[2], kernel_size=1, bias=False)
        downsample = nn.Sequential(conv, build_norm(NormConfig(), channels[2]))
        block = ResidualBlock(channels, (1, 3, 1), downsample=downsample, norm=NormConfig()).eval()
        state = {
            key: torch.from_numpy(drawn(f"incre_modules.{i}.0.{key}", tuple(value.shape)))
            for key, value in block.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        block.load_state_dict(state, strict=False)
        maps.append(block(branch))
    return maps


@pytest.mark.parametrize("name", [name for name in TIMMS if PARAMETERS[name] > WIDE])
def test_wide_branches_have_timms_shapes_and_the_names_of_narrow_ones(name: str) -> None:
    shapes = golden("timm", name)["features_only"]["os32"]["shapes"]
    model = on_meta(name, **TIMM).eval()
    assert same_names(model, on_meta("hrnet_w18", **TIMM))
    features = model.extract_features(torch.empty(1, 3, 256, 256, device="meta"))
    assert [list(features[f"branch{i}"].shape[2:]) for i in range(1, 5)] == [shape[2:] for shape in shapes[1:]]


@pytest.mark.parametrize("name", [name for name in TIMMS if PARAMETERS[name] <= WIDE])
def test_branches_are_timms_with_its_padding_and_upsampling(name: str) -> None:
    recorded = golden("timm", name)["features_only"]["os32"]
    model = load_reference(on_meta(name, **TIMM))
    image = drawn_input(256, 256)
    with torch.no_grad():
        features = model.extract_features(image)
        stem = F.relu(model.bn1(model.conv1(image)))  # type: ignore[operator]
        maps = timm_classification_maps(model, [features[f"branch{i}"] for i in range(1, 5)])
    for found, shape, fingerprint in zip([stem, *maps], recorded["shapes"], recorded["fingerprint"], strict=True):
        assert list(found.shape) == shape
        assert_fingerprint(found, fingerprint)


def test_heads_may_read_the_branches() -> None:
    model = create_backbone("hrnet_w18_small_v1")
    assert [model.block(f"branch{i}")[1:] for i in range(1, 5)] == [(16, 4), (32, 8), (64, 16), (128, 32)]
    assert list(model(torch.randn(2, 3, 64, 64))) == ["stage4"]


@pytest.mark.parametrize("options", [{}, TIMM, {"has_se": True, "align_corners": True}])
def test_sizes_that_are_no_multiples_round_up(options: dict[str, Any]) -> None:
    model = HRNet(**TINY, in_channels=2, **options).eval()
    with torch.no_grad():
        features = model.extract_features(torch.randn(1, 2, 97, 50))
    shapes = {name: feature.shape[1:] for name, feature in features.items()}
    assert shapes == {
        "stage4": (60, 25, 13),
        "branch1": (4, 25, 13),
        "branch2": (8, 13, 7),
        "branch3": (16, 7, 4),
        "branch4": (32, 4, 2),
    }


@pytest.mark.parametrize("option", [{"padding": "symmetric"}, {"fuse_upsample": "nearest"}, {"align_corners": True}])
def test_every_option_changes_the_output(option: dict[str, Any]) -> None:
    plain, changed = (load_reference(HRNet(**TINY, **options)) for options in ({}, option))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, before = changed(image)["stage4"], plain(image)["stage4"]
    assert (found - before).abs().max() > 0.01 * before.abs().max()


def test_a_branch_whose_width_changes_is_fitted_on_the_way() -> None:
    model = HRNet(**TINY | {"num_channels": ((8,), (4, 8), (6, 12, 24), (8, 16, 32, 64))})
    assert model(torch.randn(2, 3, 32, 32))["stage4"].shape == (2, 120, 8, 8)
    assert {"transition2.0.0.weight", "transition2.2.0.0.weight"} <= model.state_dict().keys()
    names = reference_state(model, "paddleseg")
    assert {"tr2.transition_tr2_layer_1._conv.weight", "tr2.transition_tr2_layer_3._conv.weight"} <= names.keys()


def test_a_stage_with_the_wrong_number_of_branches_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"num_channels\[1\]"):
        create_backbone("hrnet", num_channels=((8,), (4,), (4, 8, 16), (4, 8, 16, 32)))


def test_convolutions_begin_small() -> None:
    torch.manual_seed(0)
    model = HRNet(**TINY | {"has_se": True})
    weights = torch.cat([conv.weight.flatten() for conv in model.modules() if isinstance(conv, nn.Conv2d)])
    assert weights.std().item() == pytest.approx(1e-3, rel=0.02)
    linear = model.get_submodule("layer1.0.se.squeeze")
    assert 0.9 * 32**-0.5 < linear.weight.abs().max().item() <= 32**-0.5  # type: ignore[union-attr, operator]
    assert not linear.bias.any()  # type: ignore[union-attr, operator]


def test_the_widths_of_the_table_are_registered() -> None:
    assert list_models("hrnet*") == sorted([*PARAMETERS, "hrnet"])
