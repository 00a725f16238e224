"""Running statistics over many batches are those of fvcore. For several processes: the test of the hook."""

from __future__ import annotations

import copy

import pytest
import torch
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn

from classyseg.layers import batch_norms_in_training, population_statistics

SIZES = (4, 3, 5, 2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, momentum=None)
    ).train()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 12, 9, generator=generator) * (i + 1) + i for i, size in enumerate(SIZES)]


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


def test_the_statistics_are_those_of_fvcore_and_nothing_else_changes() -> None:
    model = network()
    expected = copy.deepcopy(model)
    before = statistics(model)
    update_bn_stats(expected, batches(), num_iters=len(SIZES))

    with torch.no_grad(), population_statistics(model):
        for batch in batches():
            model(batch)

    for name, value in statistics(model).items():
        if name.endswith("num_batches_tracked"):
            assert torch.equal(value, before[name])
        else:
            torch.testing.assert_close(value, dict(expected.named_buffers())[name], rtol=1e-5, atol=1e-6)
    assert [module.momentum for module in batch_norms_in_training(model)] == [0.1, None]


def test_large_means_lose_no_bits() -> None:
    norm = nn.BatchNorm1d(1)
    values = torch.tensor([[4096.0], [4096.5], [4097.0], [4097.5]])
    with population_statistics(norm):
        norm(values[:2])
        norm(values[2:])

    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean.tolist() == [4096.75]
    assert norm.running_var.tolist() == [0.3125]


def test_frozen_norms_unused_ones_and_an_error_leave_what_was_there() -> None:
    model = nn.ModuleList([network(), nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval(), nn.InstanceNorm2d(3)])
    with population_statistics(model):
        for part in model[0], model[2]:
            part(batches()[0])
    assert model[1].running_mean.eq(0).all()  # no value came
    assert model[2].running_mean.eq(0).all()  # frozen
    before = statistics(model)
    with pytest.raises(ValueError, match="4D"), population_statistics(model):
        model[0](batches()[1]) + model[1](torch.zeros(3))
    assert all(torch.equal(value, before[name]) for name, value in statistics(model).items())
