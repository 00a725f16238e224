"""Optimizers group parameters by name, compute what other libraries compute, and go on from their state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.optim import ClassyOptimizer, build_optimizer
from classyseg.registry import OPTIMIZERS
from classyseg.structures import Depths, RunLength


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = {"stem": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "head": nn.Conv2d(4, 2, 1)}
    return nn.ModuleDict(layers)


def optimizer_for(module: nn.Module, config: Mapping[str, Any], num_epochs: float = 10) -> ClassyOptimizer:
    return build_optimizer({"lr": 0.1, **config}, module.named_parameters(), RunLength(num_epochs))


def option_by_name(optimizer: ClassyOptimizer, option: str) -> dict[str, float]:
    groups = zip(optimizer.names, optimizer.optimizer.param_groups, strict=True)
    return {name: group[option] for names, group in groups for name in names}


def step_with(optimizer: ClassyOptimizer, module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_parameter_is_in_exactly_one_group(name: str) -> None:
    module = network()
    groups = [{"match": "head.*", "lr_factor": 10.0}, {"match": "*.weight", "lr_factor": 2.0}]
    optimizer = optimizer_for(module, {"name": name, "groups": groups})
    assert sorted(name for names in optimizer.names for name in names) == sorted(dict(module.named_parameters()))
    for names, group in zip(optimizer.names, optimizer.optimizer.param_groups, strict=True):
        found = [id(parameter) for parameter in group["params"]]
        assert found == [id(module.get_parameter(name)) for name in names]


def test_a_parameter_takes_the_factors_of_the_first_pattern_that_matches() -> None:
    groups = [
        {"match": "head.*", "lr_factor": 10.0},
        {"match": "*.weight", "lr_factor": 2.0, "weight_decay_factor": 0.5},
    ]
    optimizer = optimizer_for(network(), {"name": "sgd", "weight_decay": 0.02, "groups": groups})
    rates, decays = option_by_name(optimizer, "lr"), option_by_name(optimizer, "weight_decay")
    assert rates == pytest.approx(
        {
            "head.weight": 1.0,
            "head.bias": 1.0,
            "stem.weight": 0.2,
            "norm.weight": 0.2,
            "stem.bias": 0.1,
            "norm.bias": 0.1,
        }
    )
    halved = {name for name, decay in decays.items() if decay == pytest.approx(0.01)}
    assert halved == {"stem.weight", "norm.weight"}
    assert {decays[name] for name in decays if name not in halved} == {0.02}


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_without_decay_of_vectors_only_matrices_and_kernels_decay(name: str) -> None:
    optimizer = optimizer_for(network(), {"name": name, "weight_decay": 0.1, "decay_vectors": False})
    decayed = {name for name, decay in option_by_name(optimizer, "weight_decay").items() if decay > 0}
    assert decayed == {"stem.weight", "head.weight"}


def test_the_schedule_moves_every_group_by_its_factor() -> None:
    config = {"name": "sgd", "groups": [{"match": "head.*", "lr_factor": 10.0}], "schedule": "polynomial"}
    optimizer = optimizer_for(network(), config)
    optimizer.set_progress(0.5)
    rates = option_by_name(optimizer, "lr")
    assert optimizer.current_lr == pytest.approx(0.1 * 0.5**0.9)
    assert rates["head.bias"] == pytest.approx(0.5**0.9)
    assert rates["stem.bias"] == pytest.approx(0.1 * 0.5**0.9)


def test_frozen_parameters_are_left_out() -> None:
    module = network()
    module.get_submodule("stem").requires_grad_(False)
    assert not [name for name in option_by_name(optimizer_for(module, {"name": "sgd"}), "lr") if "stem" in name]


def test_the_whole_gradient_is_clipped_to_its_norm() -> None:
    module = network()
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    config = {"name": "sgd", "lr": 1.0, "momentum": 0.0, "clip_norm": 0.5}
    step_with(optimizer_for(module, config), module, seed=1)
    moved = torch.cat([(value - before[name]).flatten() for name, value in module.named_parameters()])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"name": "sgd", "momentum": 0.0},
        {"name": "adamw", "betas": (0.8, 0.95), "weight_decay": 0.1},
    ],
)
def test_a_restored_optimizer_goes_on_exactly_as_the_first_would(config: dict[str, Any]) -> None:
    first, second = network(), network()
    running = optimizer_for(first, config)
    for seed in range(3):
        step_with(running, first, seed)
    second.load_state_dict(first.state_dict())
    restored = optimizer_for(second, {**config, "groups": [{"match": "head.*"}]})
    restored.load_state({key: value.clone() for key, value in running.state().items()})
    for seed in range(3, 6):
        step_with(running, first, seed)
        step_with(restored, second, seed)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_a_step_is_torchs(name: str, kind: type[torch.optim.Optimizer]) -> None:
    ours, reference = network(), network()
    options = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = optimizer_for(ours, {"name": name, "weight_decay": 0.05})
    torchs = kind(reference.parameters(), lr=0.1, weight_decay=0.05, **options)  # type: ignore[call-arg]
    for seed in range(3):
        step_with(optimizer, ours, seed)
        for parameter, twin in zip(reference.parameters(), ours.parameters(), strict=True):
            parameter.grad = twin.grad
        torchs.step()
    for parameter, twin in zip(reference.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(twin, parameter, rtol=1e-6, atol=1e-7)


def test_the_state_of_other_parameters_is_refused() -> None:
    module = network()
    optimizer = optimizer_for(module, {"name": "sgd"})
    state: dict[str, Tensor] = {"tail.weight/momentum_buffer": torch.zeros(2)}
    with pytest.raises(ConfigError, match=r"other parameters.*tail.weight"):
        optimizer.load_state(state)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"groups": [{"match": "haed.*"}]}, r"groups\[0\].match: found 'haed.\*'.* did you mean 'head.\*'"),
        ({"groups": [{"match": "*"}, {"match": "head.*"}]}, r"groups\[1\].match: .* matches no parameter that is left"),
        ({"groups": [{"match": "*", "lr_facter": 2.0}]}, r"groups\[0\].lr_facter: .*did you mean 'lr_factor'"),
        ({"groups": [{"match": "*", "lr_factor": -1.0}]}, r"groups\[0\].lr_factor: found -1.0"),
        ({"lr": 0.0}, r"lr: found 0.0; input should be greater than 0"),
        ({"momentum": 1.0}, r"momentum: found 1.0; input should be less than 1"),
        ({"momentum": 0.0, "nesterov": True}, r"nesterov: found true with momentum 0"),
        ({"schedule": "polynomal"}, r"schedule: .*did you mean 'polynomial'"),
    ],
)
def test_a_wrong_option_is_named_with_what_was_found(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        optimizer_for(network(), {"name": "sgd", **config})


def test_parameters_without_names_are_an_error() -> None:
    with pytest.raises(TypeError, match=r"found a Parameter; .* model\.named_parameters\(\)"):
        build_optimizer({"name": "sgd", "lr": 0.1}, nn.Linear(2, 2).parameters(), RunLength(1.0))


def test_nothing_to_optimise_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no parameter that needs a gradient"):
        optimizer_for(network().requires_grad_(False), {"name": "sgd"})


def test_every_number_of_the_gradient_is_clipped_to_its_value_before_the_norm_is() -> None:
    ours, reference = network(), network()
    optimizer = optimizer_for(ours, {"name": "sgd", "momentum": 0.0, "clip_value": 0.3, "clip_norm": 0.5})
    step_with(optimizer, ours, seed=1)
    generator = torch.Generator().manual_seed(1)
    clipped = [torch.randn(p.shape, generator=generator).clamp(-0.3, 0.3) for p in reference.parameters()]
    norm = torch.cat([gradient.flatten() for gradient in clipped]).norm()
    for parameter, start, gradient in zip(ours.parameters(), reference.parameters(), clipped, strict=True):
        torch.testing.assert_close(parameter, start - 0.1 * gradient * (0.5 / norm), rtol=1e-5, atol=1e-6)


def transformer() -> nn.Module:
    torch.manual_seed(0)
    layers = {
        "attention": nn.Linear(6, 9),
        "conv": nn.Conv2d(3, 4, 3),
        "table": nn.Embedding(7, 4),
        "norm": nn.LayerNorm(6),
    }
    return nn.ModuleDict({"backbone": nn.ModuleDict(layers), "heads": nn.ModuleDict({"main": nn.Linear(9, 2)})})


@pytest.mark.parametrize("adjust_lr", ["match_rms_adamw", "original"])
def test_muon_trains_matrices_as_torchs_and_the_rest_as_torchs_adamw(adjust_lr: str) -> None:
    ours, reference = transformer(), transformer()
    adamw_match = ["heads.*", "*table*"]
    config = {"name": "muon", "weight_decay": 0.05, "adjust_lr": adjust_lr, "adamw_match": adamw_match}
    optimizer = optimizer_for(ours, config)
    matrix = reference.get_parameter("backbone.attention.weight")
    others = [parameter for parameter in reference.parameters() if parameter is not matrix]
    torchs = [
        torch.optim.Muon([matrix], lr=0.1, weight_decay=0.05, adjust_lr_fn=adjust_lr),
        torch.optim.AdamW(others, lr=0.1, weight_decay=0.05),
    ]
    for seed in range(3):
        step_with(optimizer, ours, seed)
        for parameter, twin in zip(reference.parameters(), ours.parameters(), strict=True):
            parameter.grad = twin.grad
        for torch_optimizer in torchs:
            torch_optimizer.step()
    for parameter, twin in zip(reference.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(twin, parameter, rtol=1e-6, atol=1e-7)
    kinds = {key.rpartition("/")[0]: key.rpartition("/")[2] for key in sorted(optimizer.state())}
    assert {name for name, kind in kinds.items() if kind == "momentum_buffer"} == {"backbone.attention.weight"}


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_resumed_optimizer_of_a_transformer_goes_on_bit_for_bit_with_every_option_scheduled(name: str) -> None:
    first, second = transformer(), transformer()
    scheduled = {option: {"name": "cosine", "start_factor": 0.9, "end_factor": 0.5} for option in ("weight_decay",)}
    config = {"name": name, "weight_decay": 0.05, "schedules": scheduled, "schedule": "polynomial"}
    running = optimizer_for(first, config)
    for seed in range(3):
        running.set_progress(seed / 10)
        step_with(running, first, seed)
    second.load_state_dict(first.state_dict())
    restored = optimizer_for(second, config)
    restored.load_state({key: value.clone() for key, value in running.state().items()}, 3)
    for seed in range(3, 5):
        for optimizer, module in ((running, first), (restored, second)):
            optimizer.set_progress(seed / 10)
            step_with(optimizer, module, seed)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_depths_and_parameters_are_taken_before_the_first_use_only() -> None:
    module = network()
    optimizer = optimizer_for(module, {"name": "sgd", "layer_decay": 0.5})
    with pytest.raises(ValueError, match="use_depths"):
        optimizer.set_progress(0.0)
    depths = {name: 1 if name.startswith("head") else 0 for name, _ in module.named_parameters()}
    optimizer.use_depths(Depths(depths, 1))
    twin = network()
    optimizer.adopt(twin.named_parameters())
    step_with(optimizer, twin, seed=0)
    moved = {name for name, value in twin.named_parameters() if not torch.equal(value, module.get_parameter(name))}
    assert moved == set(depths)
    assert option_by_name(optimizer, "lr") == {name: 0.1 * 0.5 ** (1 - depth) for name, depth in depths.items()}
    with pytest.raises(ValueError, match="in use"):
        optimizer.adopt(module.named_parameters())
