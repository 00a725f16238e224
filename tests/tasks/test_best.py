"""By which numbers a checkpoint can be best: what a config may ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from classyseg.config import ConfigError
from classyseg.meters import MeanIoUMeter
from classyseg.registry import TASKS
from classyseg.tasks import SegmentationTask
from runs import tiny_config, tiny_task


def check(changes: dict[str, Any]) -> None:
    """What `classyseg config check` does with a config."""
    config = TASKS.validate(tiny_config(changes))
    config.component.check(config)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("best", "message"),
    [
        ("iou", r"'iou': .*iou/CLASS, such as iou/background.*Known: loss, mean_iou"),
        ("iou/dics", r"'iou/dics': .* 'iou/disc'"),
        ("aux/iou/disc", r"'aux/iou/disc': unknown"),
    ],
)
@pytest.mark.parametrize("find", [check, tiny_task])
def test_a_best_that_is_never_measured_is_found_before_the_run(
    find: Callable[[Any], object], best: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^hooks\[0\]\.best: {message}"):
        find({"hooks": [{"name": "checkpoint", "best": best}]})


class UndeclaredMeter(MeanIoUMeter):
    """A plugin's meter, which does not say what it computes."""

    numbers = None


def test_a_best_that_an_undeclared_meter_may_compute_is_accepted() -> None:
    meter = UndeclaredMeter(("a", "b", "c", "d"), 255)
    hook = {"name": "checkpoint", "best": "anything"}
    changes = {"meters": [meter], "hooks": [{**hook, "best_is": "smallest"}]}

    assert SegmentationTask.from_config(tiny_config(changes)).meters == [meter]
    with pytest.raises(ConfigError, match=r"^hooks\[0\]\.best_is: missing; .*'anything'"):
        SegmentationTask.from_config(tiny_config({"meters": [meter], "hooks": [hook]}))


@pytest.mark.parametrize("find", [check, tiny_task])
@pytest.mark.parametrize("best", ["loss", "mean_iou", "iou/disc", "aux/dice/square", "aux/mean_dice", "accuracy_top_2"])
def test_a_number_of_each_class_and_head_may_be_best(find: Callable[[Any], object], best: str) -> None:
    head = {"name": "fcn", "blocks": ["stage2"], "channels": 8}
    meters = ["mean_iou", {"name": "dice", "head": "aux"}, {"name": "accuracy", "topk": [2]}]
    loss = {"name": "cross_entropy", "head_weights": {"main": 1.0, "aux": 0.4}}
    find({"model.heads.aux": head, "meters": meters, "loss": loss, "hooks": [{"name": "checkpoint", "best": best}]})
