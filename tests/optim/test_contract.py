"""What every registered optimizer and schedule holds, plugins' included."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from classyseg.registry import OPTIMIZERS, SCHEDULERS
from classyseg.structures import RunLength
from config_contract import REQUIRED, assert_keeps_the_config_contract
from schedule_cases import NEEDED


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_optimizer_keeps_the_config_contract(name: str) -> None:
    assert_keeps_the_config_contract("optimizers", name)


@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_every_schedule_keeps_the_config_contract(name: str) -> None:
    assert_keeps_the_config_contract("schedulers", name, **NEEDED.get(name, {}))


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_an_optimizer_lowers_a_loss_and_goes_on_from_its_state_as_if_it_had_not_stopped(name: str) -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    image, wanted = torch.randn(8, 4), torch.randn(8, 3)
    fields = OPTIMIZERS.config_model(name).model_fields
    required = {key: REQUIRED[key] for key, field in fields.items() if field.is_required() and key != "name"}
    config = {"name": name, **required}

    def steps(network: nn.Module, optimizer: object, count: int) -> float:
        for _ in range(count):
            loss = (network(image) - wanted).square().mean()
            network.zero_grad()
            loss.backward()
            optimizer.step()  # type: ignore[attr-defined]
        return float((network(image) - wanted).square().mean())

    optimizer = OPTIMIZERS.build(config, module.named_parameters(), RunLength(10.0))
    before = steps(module, optimizer, 0)
    steps(module, optimizer, 3)
    twin = copy.deepcopy(module)
    other = OPTIMIZERS.build(config, twin.named_parameters(), RunLength(10.0))
    other.load_state(optimizer.state())
    assert steps(module, optimizer, 3) == steps(twin, other, 3) < before
