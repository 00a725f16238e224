"""Rectified convolution makes up for the taps outside of the image, on maps of any size."""

from __future__ import annotations

from typing import Any

import goldens
import pytest
import torch
from torch import nn
from torch.export import Dim

from classyseg.layers import RectifiedConv2d

SECTION = "modules_losses_metrics_lr_transforms_eval"


def test_a_mean_stays_a_mean_up_to_the_border() -> None:
    layer = RectifiedConv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(layer.weight, 1 / 9)
    torch.testing.assert_close(layer(torch.ones(1, 1, 5, 5)), torch.ones(1, 1, 5, 5))


def test_factors_are_taps_over_taps_inside_the_image() -> None:
    layer, plain = RectifiedConv2d(1, 1, 3, padding=1, bias=False), nn.Conv2d(1, 1, 3, padding=1, bias=False)
    plain.load_state_dict(layer.state_dict())
    x = torch.rand(1, 1, 5, 5) + 1
    factors = (layer(x) / plain(x))[0, 0].detach()
    torch.testing.assert_close(factors[0, 0].item(), 2.25)
    torch.testing.assert_close(factors[0, 2].item(), 1.5)
    torch.testing.assert_close(factors[2, 2].item(), 1.0)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("average", [False, True])
def test_values_are_pytorch_encodings(dilation: int, average: bool) -> None:
    expected = goldens.goldens("float64")[SECTION][f"RFConv2d_4_6_k3_d{dilation}_s2_avg{average:d}"]
    layer = RectifiedConv2d(4, 6, 3, stride=2, padding=dilation, dilation=dilation, average=average).double()
    assert {key: list(value.shape) for key, value in layer.state_dict().items()} == expected["state_keys"]
    goldens.fill_hashed(layer)
    found = layer(torch.from_numpy(goldens.hashed("rf.x", (2, 4, 7, 8))))
    assert list(found.shape) == expected["out_shape"]
    goldens.assert_probes(found, expected["out"])


@pytest.mark.parametrize(("size", "padding"), [((1, 1), 4), ((2, 3), 4), ((1, 9), 4), ((5, 6), 9)])
def test_maps_smaller_than_the_kernels_reach_count_their_taps_one_by_one(size: tuple[int, int], padding: int) -> None:
    """Where a position has no tap inside the image, it keeps its value, and nothing is NaN."""
    layer = RectifiedConv2d(2, 3, 3, padding=padding, dilation=4).double()
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    plain = nn.functional.conv2d(x, layer.weight, None, 1, padding, 4)
    ones = torch.ones(1, 1, *size, dtype=torch.float64)
    inside = nn.functional.conv2d(ones, torch.ones(1, 1, 3, 3, dtype=torch.float64), None, 1, padding, 4)
    assert layer.bias is not None
    expected = (plain + layer.bias[:, None, None]) * 9 / inside.clamp(min=1)
    torch.testing.assert_close(layer(x), expected)


def test_an_export_leaves_height_and_width_free() -> None:
    layer = RectifiedConv2d(2, 3, 3, stride=2, padding=1).eval()
    sizes = {"x": {2: Dim("height", min=3, max=512), 3: Dim("width", min=3, max=512)}}
    exported = torch.export.export(layer, (torch.randn(1, 2, 16, 12),), dynamic_shapes=sizes).module()
    x = torch.randn(1, 2, 9, 33)
    torch.testing.assert_close(exported(x), layer(x))


@pytest.mark.parametrize(
    "options", [{"padding": 2, "dilation": 2}, {"stride": 2, "padding": 1}, {"padding": 3, "average": True}], ids=str
)
def test_gradients_are_right_on_inputs_and_parameters(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = RectifiedConv2d(2, 3, 3, **options).double()
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *parameters: layer(x), (x, *layer.parameters()))
