"""A step whose loss or gradients are not finite leaves model, optimizer and scaler as they were, on any device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classyseg.engine import non_finite
from runs import assert_equal


class Counting(nn.Module):
    """Its buffer is a sum over the images of training, as a plugin's may be; the other one never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("other", torch.zeros(()))  # the layer puts a new tensor in its place
        self.register_buffer("table", torch.arange(1000.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.total += x.detach().mean()
            self.other = self.other + x.detach().mean()
        return x


@pytest.mark.parametrize("knows_at_once", [True, False])
def test_any_buffer_is_as_before_the_step(knows_at_once: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Counting(), nn.Conv2d(4, 1, 1))
    guard = non_finite.StepGuard("skip_step", torch.device("cpu"), knows_at_once=knows_at_once)
    guard.watch(model)
    after = []
    for factor in (1.0, float("nan"), 2.0):
        guard.begin()
        model.zero_grad()
        loss = model(torch.full((2, 3, 4, 4), factor)).mean()
        loss.backward()
        guard.finish(loss, None, lambda: None, list)
        after.append({name: value.clone() for name, value in model.state_dict().items()})

    assert_equal(after[1], after[0])
    assert after[2]["1.num_batches_tracked"] == 2
    assert after[2]["2.total"] != after[0]["2.total"]
    assert after[2]["2.other"] == after[2]["2.total"]


def test_state_that_a_bad_step_begins_is_as_if_it_had_not_begun() -> None:
    """An optimizer whose momentum grows from 0 makes its state in a later step than the first."""

    def train(losses: list[float]) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.0)
        guard = non_finite.StepGuard("skip_step", torch.device("cpu"), knows_at_once=False)
        guard.watch(model)
        for factor in losses:
            guard.begin()
            optimizer.zero_grad()
            loss = model(torch.full((2, 3), factor)).square().mean()
            loss.backward()
            guard.finish(loss, None, optimizer.step, lambda: [x["momentum_buffer"] for x in optimizer.state.values()])
            optimizer.param_groups[0]["momentum"] = 0.9
        return model

    skipped, never = train([1.0, float("nan"), 0.5, 0.25]), train([1.0, 0.5, 0.25])
    assert_equal(skipped.state_dict(), never.state_dict())


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["stop", "skip_step", "rollback"])
@pytest.mark.parametrize("scaled", [False, True])
def test_on_a_gpu_no_step_waits_and_a_skipped_one_changes_nothing(policy: Any, scaled: bool) -> None:
    device = torch.device("cuda")
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), capturable=True)
    guard = non_finite.StepGuard(policy, device)
    guard.watch(model)
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0) if scaled else None
    x = torch.rand(2, 3, 4, 4, device=device)

    def step(number: int, factor: Tensor) -> None:
        optimizer.zero_grad()
        guard.begin()
        loss = model(x * factor).square().mean()
        (loss if scaler is None else scaler.scale(loss)).backward()
        guard.step = number
        state = [value for values in optimizer.state.values() for value in values.values()]
        guard.finish(loss, scaler, optimizer.step, lambda: state)

    def everything() -> dict[str, Tensor]:
        state = [value for values in optimizer.state.values() for value in values.values()]
        return {
            name: x.clone() for name, x in [*model.state_dict().items(), *((str(i), x) for i, x in enumerate(state))]
        }

    one, bad = torch.ones((), device=device), torch.full((), float("nan"), device=device)
    step(1, one)  # the first one makes the optimizer's state, and may wait
    before = everything()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(2, bad)
        after = everything()
        step(3, one)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert guard.look()[0].step == 2
    if policy == "skip_step":
        assert_equal(after, before)


# -- float16 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knows_at_once", [True, False])
def test_the_scale_of_float16_is_that_of_torchs_scaler_and_a_bad_loss_leaves_it(knows_at_once: bool) -> None:
    factors = [1.0, float("inf"), 1.0, 1.0, 3e38, 1.0, 1.0, 1.0, 1.0]
    ours, theirs = (torch.nn.Linear(3, 2, dtype=torch.float32) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    guard = non_finite.StepGuard("skip_step", torch.device("cpu"), knows_at_once=knows_at_once)
    guard.watch(ours)
    scalers = [torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=2) for _ in range(2)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (ours, theirs)]
    x = torch.ones(4, 3)

    for step, factor in enumerate(factors):
        for model, scaler, optimizer in zip((ours, theirs), scalers, optimizers, strict=True):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            scaler.scale(loss).backward()
            model.bias.grad *= factor
            if model is theirs:
                scaler.step(optimizer)
                scaler.update()
                continue
            guard.step = step
            guard.begin()
            state = [value for values in optimizer.state.values() for value in values.values()]
            guard.finish(loss, scaler, optimizer.step, lambda state=state: state)
        assert scalers[0].state_dict() == scalers[1].state_dict()
        assert_equal(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert guard.look() == []  # torch's scaler knows what to do

    before = scalers[0].state_dict(), {key: value.clone() for key, value in ours.state_dict().items()}
    optimizers[0].zero_grad()
    loss = ours(x * float("nan")).square().mean()
    scalers[0].scale(loss).backward()
    guard.step = 9
    guard.begin()
    state = [value for values in optimizers[0].state.values() for value in values.values()]
    guard.finish(loss, scalers[0], optimizers[0].step, lambda: state)

    assert [bad.step for bad in guard.look()] == [9]
    assert scalers[0].state_dict() == before[0]
    assert_equal(dict(ours.state_dict()), before[1])


def test_an_overflow_leaves_no_state_where_the_run_went_back_to_its_first_step() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    guard = non_finite.StepGuard("rollback", torch.device("cpu"), knows_at_once=False)
    guard.watch(model)

    def step(factor: float) -> None:
        optimizer.zero_grad()
        guard.begin()
        loss = model(torch.ones(4, 3)).square().mean()
        scaler.scale(loss).backward()
        model.weight.grad.mul_(factor)  # type: ignore[union-attr]
        state = [value for values in optimizer.state.values() for value in values.values()]
        guard.finish(loss, scaler, optimizer.step, lambda: state)

    step(1.0)
    optimizer.state.clear()
    guard.forget()
    step(float("inf"))
    assert not optimizer.state
    step(1.0)
    assert all(value["momentum_buffer"].isfinite().all() for value in optimizer.state.values())
