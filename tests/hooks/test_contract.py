"""What every registered hook holds, plugins' included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
