"""What a task makes of parts that are not its own: a plugin's head and layer, and parts that Python code built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.heads import FCNHead
from classyseg.registry import HEADS, TASKS
from classyseg.tasks import SegmentationTask
from runs import tiny_config, tiny_task


def check(changes: Mapping[str, Any]) -> None:
    """What `--check` does."""
    SegmentationTask.check(TASKS.validate(tiny_config(changes)))


@HEADS.register("test_without_logits")
class HeadWithoutLogits(FCNHead):
    """A head that calls its logits otherwise."""

    def forward(self, features: Sequence[Tensor]) -> Any:
        return {"scores": super().forward(features)}


@pytest.mark.parametrize("find", [check, tiny_task])
def test_a_head_without_logits_is_found_before_the_run(find: Callable[[Any], object]) -> None:
    head = {"name": "test_without_logits", "blocks": ["stage4"]}
    with pytest.raises(ConfigError, match=r"model\.heads\.main: .* HeadWithoutLogits gives a mapping of 'scores'"):
        find({"model.heads.main": head})
