"""An update without what torch puts around it has torch's numbers, and leaves nobody out who listens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from classyseg.optim.without_compiler import making_optimizers, update

KINDS: dict[str, Callable[..., Optimizer]] = {
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adam": functools.partial(torch.optim.Adam, amsgrad=True),
    "adamw": torch.optim.AdamW,
    "rmsprop": functools.partial(torch.optim.RMSprop, momentum=0.5, centered=True),
    "adagrad": torch.optim.Adagrad,
    "adafactor": torch.optim.Adafactor,
}


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,))]
    for parameter in found:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_the_numbers_are_torchs(name: str) -> None:
    ours, theirs = parameters(), parameters()
    with making_optimizers():
        mine = KINDS[name](ours, lr=0.1, weight_decay=0.01)
    reference = KINDS[name](theirs, lr=0.1, weight_decay=0.01)
    for _ in range(3):
        update(mine)
        reference.step()
    assert torch.is_grad_enabled()
    for parameter, expected in zip(ours, theirs, strict=True):
        assert torch.equal(parameter, expected)
        assert mine.state[parameter].keys() == reference.state[expected].keys()


def test_torch_is_left_as_it_was() -> None:
    before = Optimizer.add_param_group
    with pytest.raises(ValueError, match="Invalid learning rate"), making_optimizers():
        torch.optim.SGD(parameters(), lr=-1.0)
    assert Optimizer.add_param_group is before


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD(parameters(), lr=0.1)


def test_hooks_of_the_optimizer_and_of_all_optimizers_are_called() -> None:
    called: list[str] = []
    optimizer = sgd()
    handles = [
        optimizer.register_step_pre_hook(lambda *_: called.append("pre")),
        register_optimizer_step_pre_hook(lambda *_: called.append("global pre")),
        optimizer.register_step_post_hook(lambda *_: called.append("post")),
        register_optimizer_step_post_hook(lambda *_: called.append("global post")),
    ]
    for handle in handles:  # each listens alone once, and nobody does at the end
        update(optimizer)
        handle.remove()
    update(optimizer)
    expected = ["global pre", "pre", "post", "global post", "global pre", "post", "global post", "post", "global post"]
    assert called == [*expected, "global post"]


def test_who_patched_the_update_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, called = sgd(), []
    original = torch.optim.SGD.step

    @functools.wraps(original)
    def patched(self: Optimizer, closure: Any = None) -> Any:
        called.append("class")
        return original(self, closure)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.SGD, "step", patched)
    update(optimizer)
    monkeypatch.undo()
    optimizer.step = lambda: called.append("object")  # type: ignore[assignment, misc, return-value]
    update(optimizer)
    assert called == ["class", "object"]


def test_a_scheduler_of_torch_counts_the_updates() -> None:
    optimizer = sgd()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    update(optimizer)
    scheduler.step()  # torch warns where it counted no update before
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_profile_has_the_update() -> None:
    optimizer = sgd()
    with torch.profiler.profile() as profile:
        update(optimizer)
    assert "Optimizer.step#SGD.step" in {event.name for event in profile.events()}


def test_an_update_that_is_differentiated_is_recorded() -> None:
    start = torch.ones(3, requires_grad=True)
    weights = start.clone()
    weights.grad = torch.ones(3)
    update(torch.optim.SGD([weights.detach().requires_grad_()], lr=0.1))
    optimizer = torch.optim.SGD([torch.zeros(3, requires_grad=True)], lr=0.1, differentiable=True)
    optimizer.param_groups[0]["params"] = [weights]
    update(optimizer)
    assert weights.requires_grad
    weights.sum().backward()
    assert torch.equal(start.grad, torch.ones(3))  # type: ignore[arg-type]
