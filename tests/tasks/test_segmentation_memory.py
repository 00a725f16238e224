"""A task trains with less memory, and refuses what does not go together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.registry import TASKS
from classyseg.tasks import SegmentationTask
from classyseg.trainer import Trainer
from runs import tiny_config, tiny_task


def trained(changes: dict[str, Any]) -> dict[str, Tensor]:
    task = tiny_task({"num_epochs": 1, **changes})
    Trainer().train(task)
    return task.model.state_dict()


def test_checkpointed_activations_train_to_the_same_weights_bit_for_bit() -> None:
    expected = trained({})
    found = trained({"model.activation_checkpointing": True})
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_frozen_backbone_keeps_its_weights_while_the_head_trains() -> None:
    before = tiny_task({"model.frozen": True}).model.state_dict()
    after = trained({"model.frozen": True})
    changed = {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {"heads"}


@pytest.mark.parametrize("key", ["activation_checkpointing", "activation_compression"])
def test_what_a_compiler_cannot_take_is_refused_when_the_config_is_checked_and_when_it_is_built(key: str) -> None:
    value = True if key == "activation_checkpointing" else "int8"
    changes = {f"model.{key}": value, "runtime.compile": True}
    with pytest.raises(ConfigError, match=r"runtime\.compile: found true beside model\.activation_"):
        SegmentationTask.check(TASKS.validate(tiny_config(changes)))
    with pytest.raises(ConfigError, match=r"runtime\.compile: found true"):
        tiny_task(changes)
