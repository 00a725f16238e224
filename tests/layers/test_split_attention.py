"""Split attention has PyTorch-Encoding's keys and values."""

from __future__ import annotations

from typing import Any

import goldens
import pytest
import torch

from classyseg.layers import RectifiedConv2d, SplitAttentionConv2d

SECTION = "modules_losses_metrics_lr_transforms_eval"


@pytest.mark.parametrize(
    ("name", "options"), [("SplAtConv2d_8_8_r2_g2", {"radix": 2, "groups": 2}), ("SplAtConv2d_8_8_r1", {"radix": 1})]
)
def test_keys_and_values_are_pytorch_encodings(name: str, options: dict[str, int]) -> None:
    expected = goldens.goldens("float64")[SECTION][name]
    layer = SplitAttentionConv2d(8, 8, **options).double().eval()  # type: ignore[arg-type]
    assert {key: list(value.shape) for key, value in layer.state_dict().items()} == expected["state_keys"]
    goldens.fill_hashed(layer)
    x = torch.from_numpy(goldens.hashed("spl.x", (2, 8, 6, 7)))
    with torch.no_grad():
        found = layer(x)
    assert list(found.shape) == expected["out_shape"]
    goldens.assert_probes(found, expected["out"])


def test_the_weights_of_the_splits_sum_to_one_in_each_channel() -> None:
    layer = SplitAttentionConv2d(12, 6, radix=3, groups=2).eval()
    x = torch.randn(2, 4, 5, 5).repeat(1, 3, 1, 1)
    with torch.no_grad():
        layer.conv.weight.copy_(layer.conv.weight[:6].repeat(3, 1, 1, 1))
        splits = layer.bn0(layer.conv(x)).relu()
        found = layer(x)
    torch.testing.assert_close(splits[:, :6], splits[:, 12:])  # three equal splits: any mixture of them is one of them
    torch.testing.assert_close(found, splits[:, :6])


def test_a_single_split_is_gated_by_a_sigmoid() -> None:
    layer, x = SplitAttentionConv2d(4, 4, radix=1).eval(), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        layer.fc2.weight.zero_()
        layer.fc2.bias.copy_(torch.tensor([0.0, 1.0, -2.0, 9.0]))
        expected = layer.bn0(layer.conv(x)).relu() * layer.fc2.bias.sigmoid().view(1, 4, 1, 1)
        torch.testing.assert_close(layer(x), expected)


def test_strides_round_up_and_dilation_keeps_the_size() -> None:
    x = torch.randn(2, 4, 9, 7)
    assert SplitAttentionConv2d(4, 8, stride=2)(x).shape == (2, 8, 5, 4)
    assert SplitAttentionConv2d(4, 8, dilation=4)(x).shape == (2, 8, 9, 7)


@pytest.mark.parametrize(
    "options",
    [{"radix": 2, "groups": 2}, {"radix": 1}, {"radix": 2, "conv": RectifiedConv2d}],
    ids=["splits", "one split", "rectified"],
)
def test_gradients_are_right_on_inputs_and_parameters(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = SplitAttentionConv2d(4, 4, **options).double().eval()
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    used = [layer.conv.weight, layer.bn0.weight, layer.fc1.bias, layer.fc2.bias]
    assert torch.autograd.gradcheck(lambda x, *parameters: layer(x), (x, *used))
