"""By which numbers a checkpoint can be best: what a config may ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from classyseg.config import ConfigError
from classyseg.hooks import CheckpointHook
from classyseg.meters import MeanIoUMeter, build_meter
from classyseg.registry import TASKS
from classyseg.tasks import SegmentationTask
from classyseg.tasks.best import check_best, record_numbers
from runs import tiny_config, tiny_task

CLASSES = ("background", "disc", "square", "triangle")


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


@pytest.mark.parametrize("find", [check, tiny_task])
def test_the_loss_is_no_best_where_the_protocol_measures_none(find: Callable[[Any], object]) -> None:
    changes = {"protocol": "sliding_window", "hooks": [{"name": "checkpoint", "best": "loss"}]}
    with pytest.raises(ConfigError, match=r"^hooks\[0\]\.best.*'loss'.* protocol: whole"):
        find(changes)
    find({**changes, "hooks": [{"name": "checkpoint", "best": "mean_iou"}]})


@pytest.mark.parametrize("find", [check, tiny_task])
def test_a_wrong_protocol_is_named_by_its_place(find: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigError, match=r"^protocol\.stride: found \[99, 99\]"):
        find({"protocol": {"name": "sliding_window", "size": [16, 16], "stride": [99, 99]}})


@pytest.mark.parametrize("find", [check, tiny_task])
def test_two_hooks_cannot_both_name_the_best_checkpoint(find: Callable[[Any], object]) -> None:
    both = [{"name": "checkpoint", "best": best} for best in ("mean_iou", "loss")]
    with pytest.raises(ConfigError, match=r"^hooks\[1\]\.best.*hooks\[0\]"):
        find({"hooks": both})
    find({"hooks": [both[0], {"name": "checkpoint", "every_steps": 5}]})


class UndeclaredMeter(MeanIoUMeter):
    """A plugin's meter, which does not say what it computes."""

    number_names = None


def test_a_best_that_an_undeclared_meter_may_compute_is_accepted() -> None:
    meter = UndeclaredMeter(("a", "b", "c", "d"), 255)
    hook = {"name": "checkpoint", "best": "anything"}
    changes = {"meters": [meter], "hooks": [{**hook, "best_is": "smallest"}]}

    assert SegmentationTask.from_config(tiny_config(changes)).meters == [meter]
    with pytest.raises(ConfigError, match=r"^hooks\[0\]\.best_is: missing; .*'anything'"):
        SegmentationTask.from_config(tiny_config({"meters": [meter], "hooks": [hook]}))


class TwoWaysMeter(MeanIoUMeter):
    """A plugin's meter whose numbers differ in what is best, and one of which does not say it."""

    number_names = ("mean_iou", "distance", "share")
    class_number_names = ("iou", "distances")
    best_is = {"mean_iou": "largest", "iou": "largest", "distance": "smallest", "distances": "smallest"}  # type: ignore[assignment]

    def compute(self) -> dict[str, Any]:
        values = super().compute()
        distances = {name: 1 - (value or 0) for name, value in values["iou"].items()}
        return {"mean_iou": 0.5, "distance": 2.0, "share": 0.5, "iou": values["iou"], "distances": distances}


@pytest.mark.parametrize(
    ("best", "best_is"),
    [("mean_iou", "largest"), ("distance", "smallest"), ("iou/disc", "largest"), ("distances/disc", "smallest")],
)
def test_a_plugins_meter_says_of_each_number_which_value_is_best(best: str, best_is: str) -> None:
    meter = TwoWaysMeter(CLASSES, 255)
    task = SegmentationTask.from_config(
        tiny_config({"meters": [meter], "hooks": [{"name": "checkpoint", "best": best}]})
    )
    assert task.best_is(best) == best_is
    with pytest.raises(ConfigError, match=r"^hooks\[0\]\.best_is: missing; .*'share'"):
        SegmentationTask.from_config(
            tiny_config({"meters": [meter], "hooks": [{"name": "checkpoint", "best": "share"}]})
        )


def test_a_class_may_be_written_in_the_other_form_of_unicode() -> None:
    data = {"name": "folder", "images": "nowhere", "masks": "nowhere", "classes": ["M\u00fcll", "a/b, c.d"]}
    for best in ("iou/Mu\u0308ll", "iou/a/b, c.d"):
        check({"dataset.train": data, "dataset.val": data, "hooks": [{"name": "checkpoint", "best": best}]})
    with pytest.raises(ConfigError, match=r"did you mean 'iou/a/b, c\.d'"):
        check({"dataset.train": data, "dataset.val": data, "hooks": [{"name": "checkpoint", "best": "iou/a/b c.d"}]})


def test_a_number_that_a_meter_declares_when_it_is_built_is_left_to_the_build_where_classes_are_unknown() -> None:
    hook = CheckpointHook(best="accuracy_top_1")
    check_best([hook], record_numbers({"loss": "smallest"}, [None], "main", None), is_measured=True)
    meter = build_meter({"name": "accuracy"}, CLASSES, 255)
    numbers = record_numbers({"loss": "smallest"}, [meter], "main", CLASSES)
    check_best([hook], numbers, is_measured=True)
    assert numbers.best_is("accuracy_top_1") == "largest"


@pytest.mark.parametrize("find", [check, tiny_task])
@pytest.mark.parametrize("best", ["loss", "mean_iou", "iou/disc", "aux/dice/square", "aux/mean_dice", "accuracy_top_2"])
def test_a_number_of_each_class_and_head_may_be_best(find: Callable[[Any], object], best: str) -> None:
    head = {"name": "fcn", "blocks": ["stage2"], "channels": 8}
    meters = ["mean_iou", {"name": "dice", "head": "aux"}, {"name": "accuracy", "topk": [2]}]
    loss = {"name": "cross_entropy", "head_weights": {"main": 1.0, "aux": 0.4}}
    find({"model.heads.aux": head, "meters": meters, "loss": loss, "hooks": [{"name": "checkpoint", "best": best}]})
