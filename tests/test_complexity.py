"""Costs are counted as papers count them."""

from __future__ import annotations

import torch
from torch import nn

from classyseg.complexity import complexity
from classyseg.models import create_backbone
from classyseg.models.meta import features_on_meta


def test_a_dilated_strided_and_grouped_convolution_is_counted_by_hand() -> None:
    conv = nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2, groups=4, bias=False)
    cost = complexity(conv, lambda: conv(torch.zeros(2, 8, 16, 16)))
    assert cost.parameters == 12 * 2 * 9
    assert cost.multiply_adds == 2 * (8 * 8) * 12 * 2 * 9


def test_resnet50_costs_what_its_paper_says_without_its_classifier() -> None:
    with torch.device("meta"):
        model = create_backbone("resnet50").eval()
    cost = complexity(model, lambda: features_on_meta(model, 224))
    assert (cost.parameters, cost.multiply_adds) == (23_508_032, 4_089_184_256 - 2_048_000)


def test_the_shares_of_the_parts_add_up() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU()))
    cost = complexity(model, lambda: model(torch.zeros(1, 3, 10, 10)))
    assert cost.by_module["0"] == 100 * 12
    assert cost.by_module["1"] == cost.by_module["1.0"] == 100 * 20
    assert cost.multiply_adds == 100 * 32


def test_attention_is_counted() -> None:
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    x = torch.zeros(1, 10, 16, device="meta")
    layer.to("meta")
    cost = complexity(layer, lambda: layer(x, x, x, need_weights=False))
    assert cost.multiply_adds >= 4 * 10 * 16 * 16 + 2 * 10 * 10 * 16
