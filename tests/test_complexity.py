"""Costs are counted as papers count them."""

from __future__ import annotations

import contextlib

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import Tensor, nn

from classyseg.complexity import Cost, complexity
from classyseg.models import ClassyModel, create_backbone
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
    assert cost.activations == 11_113_984  # "Designing Network Design Spaces" gives 11.1 million


def test_the_shares_of_the_parts_add_up() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU()))
    cost = complexity(model, lambda: model(torch.zeros(1, 3, 10, 10)))
    assert cost.by_module["0"] == Cost(16, 100 * 12, 100 * 4)
    assert cost.by_module["1"] == cost.by_module["1.0"] == Cost(25, 100 * 20, 100 * 5)
    assert cost.by_module["1.1"] == Cost(0, 0, 0)
    assert (cost.parameters, cost.multiply_adds, cost.activations) == (41, 100 * 32, 100 * 9)


def test_attention_is_counted() -> None:
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    x = torch.zeros(1, 10, 16, device="meta")
    layer.to("meta")
    cost = complexity(layer, lambda: layer(x, x, x, need_weights=False))
    assert cost.multiply_adds >= 4 * 10 * 16 * 16 + 2 * 10 * 10 * 16


def test_modules_cost_what_fvcore_counts() -> None:
    model = Features(create_backbone("resnet18").eval())
    image = torch.zeros(1, 3, 64, 96)
    cost = complexity(model, lambda: model(image))
    operations = FlopCountAnalysis(model, image).unsupported_ops_warnings(False).by_module_and_operator()
    activations = ActivationCountAnalysis(model, image).unsupported_ops_warnings(False).by_module()
    assert len(cost.by_module) > 50
    del cost.by_module["backbone"]  # it is not called, only its parts are
    for name, part in cost.by_module.items():
        assert part.multiply_adds == operations[name]["conv"], name
        assert part.activations == activations[name], name


def test_a_module_that_runs_twice_costs_twice_and_an_error_leaves_no_trace() -> None:
    layer = nn.Linear(4, 3)
    model = nn.Sequential(layer, nn.Linear(3, 4), layer)
    assert complexity(model, lambda: model(torch.zeros(2, 4))).by_module["0"] == Cost(15, 48, 12)
    for size in (5, 4):
        with contextlib.suppress(RuntimeError):
            found = complexity(model, lambda size=size: model(torch.zeros(2, size)))
    assert found.multiply_adds == 72


class Features(nn.Module):
    """Gives fvcore, which traces a module, features as a tuple."""

    def __init__(self, backbone: ClassyModel) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone.extract_features(image).values())
