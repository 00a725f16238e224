"""Pyramid pooling, ASPP and the mean of the image: PyTorch-Encoding's values, one image, any size."""

from __future__ import annotations

from typing import Any

import goldens
import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from classyseg.heads import ClassyHead, DeepLabV3Head, FCNHead, PSPHead
from classyseg.layers import ASPP, ConvNormAct, ImageMean, NormConfig, PyramidPooling
from classyseg.models import Naming
from classyseg.structures import BlockInfo

SECTION = "modules_losses_metrics_lr_transforms_eval"
BLOCK = BlockInfo("stage4", 32, 8)


@pytest.mark.parametrize(
    ("name", "key", "head", "part"),
    [
        ("ASPP_Module_32_12_24_36", "aspp.x", DeepLabV3Head([BLOCK], 5, channels=4, norm_image=True), "aspp"),
        ("PSPHead_32_5", "psph.x", PSPHead([BLOCK], 5, norm_image=True, align_corners=True), ""),
        ("FCNHead_32_5", "fcnh.x", FCNHead([BLOCK], 5), ""),
    ],
)
def test_keys_and_values_are_pytorch_encodings(name: str, key: str, head: ClassyHead, part: str) -> None:
    expected = goldens.goldens("float64")[SECTION][name]
    keys = head.pytorch_encoding_keys()
    assert keys is not None
    naming = Naming("pytorch_encoding", keys.rules)

    def theirs(ours: str) -> str:
        return naming.key(ours).removeprefix(f"{part}.")

    head.double().eval()
    goldens.fill_hashed(head, theirs)
    shapes = {theirs(key): list(value.shape) for key, value in head.state_dict().items() if key.startswith(part)}
    assert shapes == expected["state_keys"]
    x = torch.from_numpy(goldens.hashed(key, (2, 32, 9, 11)))
    with torch.no_grad():
        found = head.get_submodule(part)(x if part else [x])
    assert list(found.shape) == expected["out_shape"]
    goldens.assert_probes(found, expected["out"])


def test_each_level_of_the_pyramid_is_the_mean_of_its_cells() -> None:
    pyramid = PyramidPooling(2, 2, bins=(2,), norm=NormConfig(), align_corners=True).eval()
    (branch,) = pyramid.branches
    assert isinstance(branch, ConvNormAct)
    nn.init.dirac_(branch[0].weight)  # type: ignore[arg-type]
    x = torch.rand(1, 2, 5, 7)
    out = pyramid(x)
    assert torch.equal(out[:, :2], x)
    expected = adaptive_avg_pool2d(x, 2) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(out[:, 2:, ::4, ::6], expected)  # the corners


@pytest.mark.parametrize("layer", [PyramidPooling(8, 4, norm=NormConfig()), ASPP(8, 4, (6, 12), 0.1, NormConfig())])
def test_one_image_trains(layer: nn.Module) -> None:
    assert layer(torch.randn(1, 8, 2, 2)).isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (3, 8), (13, 5)])
@pytest.mark.parametrize("layer", [PyramidPooling(8, 4, norm=NormConfig()), ASPP(8, 4, (6, 12), 0.1, NormConfig())])
def test_maps_of_any_size_keep_it(layer: nn.Module, size: tuple[int, int]) -> None:
    assert layer.eval()(torch.randn(1, 8, *size)).shape[2:] == size


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("rates", [(3,), (6, 12, 18, 24)])
def test_aspp_has_a_branch_for_each_rate_and_separable_ones_are_smaller(rates: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"dropout": 0.0, "norm": NormConfig()}
    dense, separable = (ASPP(64, 16, rates, separable=separable, **options) for separable in (False, True))
    assert [branch[0].dilation[0] for branch in list(dense.branches)[1:]] == list(rates)  # type: ignore[index, union-attr]
    assert count(dense) - count(separable) == len(rates) * (64 * 16 * 9 - 64 * 9 - 64 * 16 - 2 * 64)
    x = torch.randn(2, 64, 9, 7)
    assert separable(x).shape == dense(x).shape == (2, 16, 9, 7)


def test_a_dropped_channel_of_aspp_is_dropped_whole() -> None:
    torch.manual_seed(0)
    layer = ASPP(8, 64, (6,), 0.5, NormConfig(), drop_channels=True).train()
    zero = (layer(torch.randn(2, 8, 16, 16)) == 0).flatten(2)
    assert 0.3 < zero.all(2).float().mean() < 0.7


def test_the_image_mean_is_the_same_everywhere_and_normed_on_demand() -> None:
    layer = ImageMean(4, 6, NormConfig()).eval()
    out = layer(torch.randn(2, 4, 3, 5))
    assert out.shape == (2, 6, 3, 5)
    assert torch.equal(out, out[:, :, :1, :1].expand_as(out))
    assert [type(module) for module in ImageMean(4, 6, None)] == [nn.Conv2d, nn.ReLU]
    assert [type(module) for module in layer] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
