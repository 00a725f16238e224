"""What every registered protocol holds, plugins' included; what each computes: `test_protocols.py`."""

from __future__ import annotations

import pytest

from classyseg.registry import PROTOCOLS
from config_contract import assert_keeps_the_config_contract


@pytest.mark.parametrize("name", PROTOCOLS.names())
def test_every_protocol_keeps_the_config_contract(name: str) -> None:
    assert_keeps_the_config_contract("protocols", name)
