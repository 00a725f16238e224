"""When a training that does not get better ends: as in other libraries, in a resumed run, and in all processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from classyseg.config import ConfigError
from classyseg.hooks import EarlyStoppingHook
from classyseg.trainer import Stopped, Trainer
from runs import FakeTask, SignalAt, read_records, tiny_task

NAN = float("nan")


class Asked(FakeTask):
    """Keeps the reasons for which it was asked to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def request_stop(self, reason: str) -> None:
        self.reasons.append(reason)


def phases_until_stopped(hook: EarlyStoppingHook, values: Sequence[float | None], number: str) -> int | None:
    """After how many val phases with these values the hook asks to stop; None if it never does."""
    task = Asked()
    for count, value in enumerate(values, start=1):
        task.end_phase(hook, loss=0.0)
        task.end_phase(hook, **{number: value})
        if task.reasons:
            return count
    return None


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        # Counted with lightning 2.6.6, EarlyStopping(monitor, patience, min_delta, mode).
        ({"best": "mean_iou", "patience": 2}, [0.5, 0.4, 0.6, 0.6, 0.6, 0.7], 5),
        ({"best": "mean_iou", "patience": 3}, [0.5, 0.4, 0.6, 0.6, 0.6, 0.7], None),
        ({"best": "mean_iou", "patience": 2, "min_delta": 0.05}, [0.5, 0.54, 0.55, 0.9], 3),
        ({"best": "mean_iou", "patience": 2, "min_delta": 0.05}, [0.5, 0.54, 0.56, 0.6, 0.61, 0.612], 5),
        ({"patience": 1}, [1.0, 0.9, 0.9, 0.8], 3),
        ({"patience": 2, "min_delta": 0.25}, [2.0, 1.75, 1.5, 1.25, 1.25], 5),
        ({"patience": 1, "best": "mean_iou", "best_is": "smallest"}, [0.5, 0.4, 0.41], 3),
        # Its `stopping_threshold` must be passed; a `target` is reached.
        ({"patience": 9, "target": 0.7, "best": "mean_iou"}, [0.5, 0.69, 0.7, 0.1], 3),
        ({"patience": 9, "target": 0.7}, [0.9, 0.71, 0.69], 3),
        # Lightning stops at once at a NaN. Here a phase that measured nothing is one without a better value.
        ({"patience": 2}, [None, 1.0, NAN, None, 0.5], 4),
        ({"patience": 2, "best": "mean_iou"}, [None, float("inf"), 0.5], 2),
    ],
)
def test_a_training_ends_after_so_many_phases_without_a_better_value(
    options: dict[str, Any], values: list[float | None], expected: int | None
) -> None:
    hook = EarlyStoppingHook(**options)

    assert phases_until_stopped(hook, values, hook.best) == expected


def test_a_state_counts_on_unless_the_config_names_another_number() -> None:
    hook = EarlyStoppingHook(patience=3)
    assert phases_until_stopped(hook, [1.0, 1.0, 1.0], "loss") is None
    same, other = EarlyStoppingHook(patience=3), EarlyStoppingHook(patience=3, best="mean_iou")
    for again in (same, other):
        again.load_state(hook.state())

    assert phases_until_stopped(same, [0.999, 1.0, 1.0, 1.0], "loss") == 4
    assert phases_until_stopped(other, [0.1, 0.1, 0.1, 0.1], "mean_iou") == 4


@pytest.mark.parametrize("change", [{"value": "1"}, {"value": NAN}, {"waited": -1}, {"waited": True}, {"step": 1.5}])
def test_a_state_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    hook = EarlyStoppingHook()
    with pytest.raises(ValueError, match="expected a number or null"):
        hook.load_state({**hook.state(), **change})


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ({"patience": 0}, r"hooks\[0\]\.patience: "),
        ({"min_delta": -1}, r"hooks\[0\]\.min_delta: "),
        ({"best": "iou"}, r"^hooks\[0\]\.best: 'iou': .*iou/CLASS"),
        ({"best": "mean_uoi"}, r"^hooks\[0\]\.best: 'mean_uoi': .*'mean_iou'"),
        ({"monitor": "mean_iou"}, r"hooks\[0\]\.monitor: .*'best'"),
    ],
)
def test_what_cannot_be_is_found_before_the_run(hook: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_task({"hooks": [{"name": "early_stopping", **hook}]})


def test_a_run_without_val_data_has_nothing_to_stop_by() -> None:
    with pytest.raises(ConfigError, match=r"^hooks\[0\]\.best: .*dataset\.val"):
        tiny_task({"hooks": ["early_stopping"], "dataset.val": None})


def test_a_killed_and_resumed_run_ends_as_one_that_went_through(tmp_path: Path) -> None:
    changes = {
        "num_epochs": 6,
        "dataset.train.num_samples": 16,
        "dataset.val.num_samples": 1,
        # A value below this is better: none is after the first phase.
        "hooks": ["checkpoint", {"name": "early_stopping", "min_delta": 100.0, "patience": 2}],
    }
    Trainer(tmp_path / "whole").train(tiny_task(changes))
    with pytest.raises(Stopped):
        Trainer(tmp_path / "broken").train(tiny_task(changes, SignalAt("train", 2, 1)))
    Trainer(tmp_path / "broken", resume=True).train(tiny_task(changes))

    records = read_records(tmp_path / "whole/metrics.jsonl")
    assert [record["epoch"] for record in records] == [1, 1, 2, 2, 3, 3]
    assert read_records(tmp_path / "broken/metrics.jsonl") == records
