"""What every registered data set holds, plugins' included; what each tells of itself: `test_facts.py`."""

from __future__ import annotations

import pytest

from classyseg.registry import DATASETS
from config_contract import assert_keeps_the_config_contract

OPTIONS = {"pascal_aug": {"split": "trainaug"}}


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_data_set_keeps_the_config_contract(name: str) -> None:
    assert_keeps_the_config_contract("datasets", name, **OPTIONS.get(name, {}))
