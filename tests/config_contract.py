"""What holds for the config of every registered component; `test_contract.py` of each folder runs it on its names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from classyseg.config import ConfigError
from classyseg.registry import REGISTRIES

REQUIRED: dict[str, Any] = {
    "annotations": "annotations.json",
    "blocks": [],
    "classes": ["a", "b"],
    "clips": {"frames": 2},
    "clips_per_video": 2,
    "dataset": {"name": "synthetic_shapes", "split": "train"},
    "datasets": [{"name": "synthetic_shapes", "split": "train"}],
    "images": "images",
    "loss": "dice",
    "losses": ["dice"],
    "lr": 0.1,
    "mask_values": "full",
    "masks": "masks",
    "milestones": [1],
    "min_pixels": 20,
    "minutes": 60.0,
    "root": "data",
    "sampling": "random",
    "size": [32, 32],
    "split": "train",
    "threshold": 0.5,
    "transform": "RandomAffine",
}
"""A value for each key without a default, whichever component it is of; `options` of a test say what else is needed."""


def assert_keeps_the_config_contract(kind: str, name: str, **options: Any) -> None:
    """Derives from the base, says what it is; refuses unknown and missing keys by name; resolves to itself."""
    registry = REGISTRIES[kind]
    component = registry.entry(name).component
    assert issubclass(component, registry.base())
    assert vars(component).get("__doc__"), "no docstring"

    fields = registry.config_model(name).model_fields
    required = required_keys(fields)
    if required:
        with pytest.raises(ConfigError) as missing:
            registry.validate({"name": name})
        assert all(f"{key}: missing" in str(missing.value) for key in required)
    given = {**smallest_config(kind, name), **options}
    with pytest.raises(ConfigError, match="no_such_key: unknown key"):
        registry.validate({**given, "no_such_key": 1})

    config = registry.validate(given)
    resolved = config.resolved()
    assert resolved.keys() == fields.keys()
    assert json.loads(json.dumps(resolved)) == resolved
    assert registry.validate(resolved) == config
    assert registry.validate(resolved).resolved() == resolved


def required_keys(fields: Mapping[str, Any]) -> list[str]:
    return [key for key, field in fields.items() if field.is_required() and key != "name"]


def smallest_config(kind: str, name: str) -> dict[str, Any]:
    """The name, and a value for each key that has no default."""
    fields = REGISTRIES[kind].config_model(name).model_fields
    return {"name": name, **{key: REQUIRED.get(key) for key in required_keys(fields)}}
