"""What every registered hook holds, plugins' included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from classyseg.registry import HOOKS
from config_contract import assert_keeps_the_config_contract, smallest_config
from runs import FakeTask


@pytest.mark.parametrize("name", HOOKS.names())
def test_every_hook_keeps_the_config_contract(name: str) -> None:
    assert_keeps_the_config_contract("hooks", name)


@pytest.mark.parametrize("name", HOOKS.names())
def test_a_hook_lives_through_a_run_and_another_takes_its_state(name: str, tmp_path: Path) -> None:
    config = smallest_config("hooks", name)
    hook, task = HOOKS.build(config), FakeTask(tmp_path)
    hook.on_start(task)
    hook.on_phase_start(task)
    task.steps(hook)
    task.end_phase(hook, loss=0.5)
    state = json.loads(json.dumps(hook.state()))
    other = HOOKS.build(config)
    other.load_state(state)
    assert other.state() == hook.state()
    hook.on_end(task)
    hook.close()


class Waits(TorchDispatchMode):
    """Counts how often a value of a tensor is asked for, for which a GPU would have to finish its work."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", HOOKS.names())
def test_a_hook_does_not_wait_for_the_device_in_a_usual_step(name: str, tmp_path: Path) -> None:
    hook, task = HOOKS.build(smallest_config("hooks", name)), FakeTask(tmp_path)
    hook.on_start(task)
    hook.on_phase_start(task)
    with Waits() as waits:
        task.steps(hook, 3)  # not of a record, a line of progress or a checkpoint
        found = waits.count
        float(task.last_loss)
    assert (found, waits.count) == (0, 1)
    hook.close()
