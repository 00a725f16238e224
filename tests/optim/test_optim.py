"""Optimizers by groups of names, and the rates that their schedules give."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from classyseg.config import ConfigError
from classyseg.optim import ClassyOptimizer, build_optimizer, build_scheduler


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    heads = nn.ModuleDict({"main": nn.Conv2d(4, 2, 1)})
    return nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "heads": heads})


def build(model: nn.Module, **options: Any) -> ClassyOptimizer:
    return build_optimizer({"name": "sgd", "lr": 0.1, **options}, model.named_parameters(), 10.0)


def group_of(optimizer: ClassyOptimizer, name: str) -> dict[str, Any]:
    (number,) = [i for i, names in enumerate(optimizer.names) if name in names]
    return optimizer.optimizer.param_groups[number]


def test_groups_multiply_rate_and_decay_and_the_first_match_wins() -> None:
    groups = [
        {"match": "heads.*.bias", "lr_factor": 2.0, "weight_decay_factor": 0.0},
        {"match": "heads.*", "lr_factor": 10.0},
    ]
    optimizer = build(network(), weight_decay=0.01, groups=groups)
    found = {
        name: (group_of(optimizer, name)["lr"], group_of(optimizer, name)["weight_decay"])
        for name in ("conv.weight", "heads.main.weight", "heads.main.bias")
    }
    assert found["conv.weight"] == (0.1, 0.01)
    assert found["heads.main.weight"] == (1.0, 0.01)
    assert found["heads.main.bias"] == (0.2, 0.0)
    assert sorted(name for names in optimizer.names for name in names) == sorted(
        n for n, _ in network().named_parameters()
    )


def test_vectors_may_go_without_decay() -> None:
    optimizer = build(network(), weight_decay=0.01, decay_vectors=False)
    decays = {name: group_of(optimizer, name)["weight_decay"] for name, _ in network().named_parameters()}
    assert {name for name, decay in decays.items() if decay} == {"conv.weight", "heads.main.weight"}


def test_a_pattern_that_matches_nothing_gets_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.groups\[0\].match: found 'head.\*'.*did you mean 'heads.\*'"):
        build(network(), groups=[{"match": "head.*"}])


def test_frozen_parameters_are_left_out_and_something_must_be_left() -> None:
    model = network()
    model["conv"].requires_grad_(False)
    assert not [n for names in build(model).names for n in names if n.startswith("conv")]
    with pytest.raises(ConfigError, match="found no parameter that needs a gradient"):
        build(model.requires_grad_(False))


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.nesterov: found true with momentum 0"):
        build(network(), momentum=0.0, nesterov=True)


def test_the_norm_of_the_gradient_is_clipped() -> None:
    model = network()
    optimizer = build(model, clip_norm=0.5, momentum=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    moved = torch.cat([(before[name] - p).flatten() for name, p in model.named_parameters()]).norm()
    torch.testing.assert_close(moved.item(), 0.1 * 0.5, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name: str) -> None:
    def steps(optimizer: ClassyOptimizer, model: nn.Module, numbers: range) -> None:
        for number in numbers:
            optimizer.set_progress(number / 6)
            for parameter in model.parameters():
                parameter.grad = torch.sin(parameter.detach() * (number + 1))
            optimizer.step()

    config = {"name": name, "lr": 0.1, "weight_decay": 0.01, "schedule": "cosine", "groups": [{"match": "heads.*"}]}
    whole, first, second = network(), network(), network()
    steps(build_optimizer(config, whole.named_parameters(), 6.0), whole, range(6))
    stopped = build_optimizer(config, first.named_parameters(), 6.0)
    steps(stopped, first, range(3))
    second.load_state_dict(first.state_dict())
    continued = build_optimizer(config, second.named_parameters(), 6.0)
    continued.load_state(stopped.state())
    steps(continued, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_the_state_of_other_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the saved state is of other parameters: elsewhere\.weight"):
        build(network()).load_state({"elsewhere.weight/momentum_buffer": torch.zeros(1)})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("constant", {0.0: 1.0, 0.5: 1.0, 0.99: 1.0}),
        ({"name": "polynomial", "power": 0.9}, {0.0: 1.0, 0.5: 0.5**0.9, 0.9: 0.1**0.9}),
        ("cosine", {0.0: 1.0, 0.25: (1 + math.cos(math.pi / 4)) / 2, 0.5: 0.5}),
        ({"name": "cosine", "end_factor": 0.2}, {0.0: 1.0, 0.5: 0.6}),
        ({"name": "multi_step", "milestones": [3, 6]}, {0.0: 1.0, 0.29: 1.0, 0.3: 0.1, 0.6: 0.01, 0.9: 0.01}),
        # 2 of 10 epochs warm up; the curve takes the other 8
        (
            {"name": "polynomial", "power": 1.0, "warmup_epochs": 2, "warmup_factor": 0.1},
            {0.0: 0.1, 0.1: 0.55, 0.2: 1.0, 0.6: 0.5},
        ),
    ],
)
def test_schedules_by_hand(config: Any, expected: dict[float, float]) -> None:
    schedule = build_scheduler(config, 10.0)
    for where, factor in expected.items():
        assert schedule(where) == pytest.approx(factor, abs=1e-9), where


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "cosine", "warmup_epochs": 10}, "warmup_epochs: found 10.*the run has 10.0 epochs"),
        ({"name": "multi_step", "milestones": [6, 3]}, "expected rising epochs"),
        ({"name": "multi_step", "milestones": [12]}, "expected rising epochs below 10.0"),
        ({"name": "polynomial", "power": 0}, "power: found 0"),
        ({"name": "polinomial"}, "did you mean 'polynomial'"),
    ],
)
def test_a_schedule_that_cannot_be_is_explained(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_scheduler(config, 10.0)
