"""What every registered task holds, plugins' included."""

from __future__ import annotations

import pytest

from classyseg.registry import TASKS
from config_contract import assert_keeps_the_config_contract
from runs import tiny_config


@pytest.mark.parametrize("name", TASKS.names())
def test_every_task_keeps_the_config_contract(name: str) -> None:
    assert_keeps_the_config_contract("tasks", **tiny_config({"name": name}))
