"""What all trackers hold: what they are told and when, runs that go on, names, errors; the tables of `csv`."""

from __future__ import annotations

import csv
import itertools
import logging
import resource
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from registered import forgotten
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tracked import rows_of, tell_hostile_classes

from classyseg.claims import RunFolder
from classyseg.datasets import TrainOrder
from classyseg.errors import ConfigError
from classyseg.hooks import ClassyHook, CsvHook, TensorBoardHook, TrackerHook, WatchedTask, build_hook
from classyseg.hooks.trackers.entries import Entry, Summary
from classyseg.registry import TASKS, TRANSFORMS
from classyseg.structures import Sample
from classyseg.tasks import build_task
from classyseg.trainer import Stopped, Trainer
from classyseg.transforms import ClassyTransform
from runs import (
    TIMING,
    FakeTask,
    SignalAt,
    assert_equal,
    in_two_processes,
    kind_of_task,
    read_records,
    tiny_config,
    tiny_config_of,
    tiny_task,
)

CHECKPOINTS = {"name": "checkpoint", "every_steps": 4, "every_epochs": None}
SMALL: dict[str, Any] = {
    "num_epochs": 2,
    "batch_size": 4,
    "dataset.train.num_samples": 16,
    "dataset.train.size": [16, 16],
    "dataset.val.num_samples": 4,
    "dataset.val.size": [16, 16],
    "hooks": [CHECKPOINTS, {"name": "log", "every": 1}],
}


class Told(TrackerHook):
    """A tracker that keeps what it is told; `final` ones cannot take it back."""

    folder = "csv"

    def __init__(self, *, final: bool = False, images: int = 0, finish_seconds: float = 20.0) -> None:
        super().__init__(every=1, images=images, finish_seconds=finish_seconds)
        self.is_final = final
        self.entries: list[Entry] = []
        self.summary: Summary | None = None

    def open_tracker(self, history: Sequence[Entry]) -> None:
        known = {(entry.kind, entry.step) for entry in self.entries} if self.is_final else set()
        self.entries = [*self.entries, *(e for e in history if (e.kind, e.step) not in known)] if known else [*history]

    def write(self, entries: Sequence[Entry]) -> None:
        self.entries += entries

    def close_tracker(self, summary: Summary) -> None:
        self.summary = summary

    @property
    def places(self) -> list[tuple[str, int]]:
        return [(entry.kind, entry.step) for entry in self.entries]

    def losses(self, kind: str) -> list[float]:
        return [entry.numbers[kind, "loss"] for entry in self.entries if entry.kind == kind]


def places_of(run: Path) -> list[tuple[str, int]]:
    """The kind and step of what a run has recorded, in order."""
    steps = [("step", record["step"]) for record in read_records(run / "steps.jsonl")]
    phases = [(record["phase"], record["step"]) for record in read_records(run / "metrics.jsonl")]
    return sorted([*steps, *phases], key=lambda place: (place[1], ["step", "train", "val", "test"].index(place[0])))


def events_of(run: Path, *, purges: bool = True) -> EventAccumulator:
    guidance = {"scalars": 0, "images": 0, "tensors": 0}
    found = EventAccumulator(str(run / "tensorboard"), guidance, purge_orphaned_data=purges)
    return found.Reload()


def untimed(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in TIMING} for record in records]


# -- what is told --------------------------------------------------------------------------------------------------


def test_steps_and_phases_are_told_in_order_with_the_numbers_of_the_records(tmp_path: Path) -> None:
    hook = Told(images=2)
    task = tiny_task(SMALL, hook)
    task.config = {**task.config, "hooks": [{"name": "of a plugin", "upload_token": "hf_abc"}]}
    Trainer(tmp_path).train(task)

    assert hook.run_config["hooks"] == [{"name": "of a plugin", "upload_token": "(set; not shown)"}]
    assert hook.run_config["seed"] == task.config["seed"]
    assert hook.places == places_of(tmp_path)
    steps, records = read_records(tmp_path / "steps.jsonl"), read_records(tmp_path / "metrics.jsonl")
    assert hook.losses("step") == [record["loss"] for record in steps]
    assert hook.losses("val") == [record["loss"] for record in records if record["phase"] == "val"]
    last = hook.entries[-1]
    assert {name[2]: value for name, value in last.numbers.items() if name[1] == "iou"} == {
        name: value for name, value in records[-1]["iou"].items() if value is not None
    }
    assert [len(entry.pictures) for entry in hook.entries if entry.kind == "val"] == [2, 2]
    assert hook.summary is not None
    assert (hook.summary.outcome, hook.summary.reason) == ("finished", "all 8 steps are done")
    losses = {record["loss"]: record["step"] for record in records if record["phase"] == "val"}
    assert hook.summary.best["val", "loss"] == (min(losses), losses[min(losses)])
    assert hook.summary.last["val", "loss"] == records[-1]["loss"]


@pytest.mark.parametrize("name", [name for name in TASKS.names() if kind_of_task(name) != "masks"])
def test_whole_images_and_clips_are_told_with_pictures(name: str, tmp_path: Path) -> None:
    hook, task = Told(images=1), build_task(tiny_config_of(name, {"num_epochs": 1}))
    task.hooks = [*task.hooks, hook]
    Trainer(tmp_path).train(task)

    (val,) = (entry for entry in hook.entries if entry.kind == "val")
    assert ("val", "accuracy_top_1") in val.numbers
    assert [path.read_bytes()[:4] for path in val.pictures.values()] == [b"\x89PNG"]


def test_a_run_with_trackers_gives_the_numbers_of_one_without(tmp_path: Path) -> None:
    trackers = [{"name": "tensorboard", "every": 1}, {"name": "csv", "every": 1}]
    plain, tracked = tiny_task(SMALL), tiny_task({**SMALL, "hooks": [*SMALL["hooks"], *trackers]})
    Trainer(tmp_path / "plain").train(plain)
    Trainer(tmp_path / "tracked").train(tracked)

    assert_equal(dict(tracked.model.state_dict()), dict(plain.model.state_dict()))
    found, expected = (untimed(read_records(tmp_path / name / "metrics.jsonl")) for name in ("tracked", "plain"))
    assert found == expected


def test_without_a_run_folder_nothing_is_told() -> None:
    hook, task = Told(), FakeTask(None)
    task.steps(hook)
    task.end_phase(hook, loss=0.5)
    hook.on_end(task)
    hook.close()
    assert hook.entries == []


def _track(folder: Path) -> None:
    changes = {**SMALL, "hooks": [{"name": name, "every": 2} for name in ("log", "csv", "tensorboard")]}
    Trainer(folder / "run").train(tiny_task(changes))


def test_of_two_processes_the_first_tells_the_loss_of_both(tmp_path: Path) -> None:
    in_two_processes(_track, tmp_path)

    rows = rows_of(tmp_path / "run/csv/steps.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6", "8"]
    assert [float(row["loss"]) for row in rows] == [r["loss"] for r in read_records(tmp_path / "run/steps.jsonl")]
    assert [event.step for event in events_of(tmp_path / "run").Scalars("step/loss")] == [2, 4, 6, 8]


# -- runs that go on -----------------------------------------------------------------------------------------------


class FailsAt(ClassyHook):
    """The run ends in an error at a step, as a kill would end it: nothing is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, task: WatchedTask) -> None:
        if task.progress.step == self.step and task.progress.phase == "train":
            raise RuntimeError("the end")


@pytest.mark.parametrize("step", [3, 6, 8])
def test_a_run_that_failed_and_goes_on_tells_each_step_once(step: int, tmp_path: Path) -> None:
    first, second = Told(), Told()
    with pytest.raises(RuntimeError):
        Trainer(tmp_path).train(tiny_task(SMALL, first, FailsAt(step)))
    assert first.summary is not None
    assert (first.summary.outcome, first.summary.reason) == ("failed", "RuntimeError: the end")
    Trainer(tmp_path, resume=True).train(tiny_task(SMALL, second))

    assert second.places == places_of(tmp_path)
    assert second.losses("step") == [record["loss"] for record in read_records(tmp_path / "steps.jsonl")]


def test_a_run_that_was_stopped_within_a_val_phase_tells_it_once(tmp_path: Path) -> None:
    first, second = Told(images=1), Told(images=1)
    with pytest.raises(Stopped):
        Trainer(tmp_path).train(tiny_task(SMALL, first, SignalAt("val", 1, 1)))
    assert first.summary is not None
    assert first.summary.outcome == "stopped"
    Trainer(tmp_path, resume=True).train(tiny_task(SMALL, second))

    assert second.places == places_of(tmp_path)
    assert [len(entry.pictures) for entry in second.entries if entry.kind == "val"] == [1, 1]


def test_files_of_tensorboard_and_csv_have_one_curve_after_a_resume(tmp_path: Path) -> None:
    trackers = [{"name": "tensorboard", "every": 1, "images": 1}, {"name": "csv", "every": 1}]
    changes = {**SMALL, "hooks": [*SMALL["hooks"], *trackers]}
    with pytest.raises(RuntimeError):
        Trainer(tmp_path).train(tiny_task(changes, FailsAt(7)))
    watching = events_of(tmp_path)
    for path in (tmp_path / "tensorboard").glob("events*"):
        path.write_bytes(path.read_bytes()[:-5])  # as a kill may leave it
    with (tmp_path / "csv/steps.csv").open("ab") as file:
        file.write(b'99,9,"0.')
    Trainer(tmp_path, resume=True).train(tiny_task(changes))

    steps, records = read_records(tmp_path / "steps.jsonl"), read_records(tmp_path / "metrics.jsonl")
    assert watching.Scalars("step/loss")[-1].step == 7
    for events in (events_of(tmp_path), events_of(tmp_path, purges=False), watching.Reload()):
        scalars = events.Scalars("step/loss")
        assert [event.step for event in scalars] == list(range(1, 9))
        assert [event.value for event in scalars] == pytest.approx([record["loss"] for record in steps])
        assert [event.step for event in events.Scalars("val/mean_iou")] == [4, 8]
        assert [event.step for event in events.Images("val/samples/01_test 2")] == [4, 8]
        assert all(later.wall_time >= before.wall_time for before, later in itertools.pairwise(scalars))
    assert [int(row["step"]) for row in rows_of(tmp_path / "csv/steps.csv")] == list(range(1, 9))
    phases = rows_of(tmp_path / "csv/phases.csv")
    assert [(row["phase"], int(row["step"])) for row in phases] == [(r["phase"], r["step"]) for r in records]
    assert [float(row["loss"]) for row in phases] == [record["loss"] for record in records]


class Poison(ClassyTransform):
    """One sample has an infinite pixel."""

    def __init__(self, ignore_index: int = 255, *, sample: int) -> None:
        self.sample = sample

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        image = sample.image.float()
        if sample.name == f"train {self.sample}":
            image[0, 3, 4] = float("inf")
        return sample.replace(image=image)


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("every_steps", [5, 8])
def test_a_run_that_goes_back_tells_what_it_did_in_the_end(final: bool, every_steps: int, tmp_path: Path) -> None:
    poisoned = TrainOrder(16, 4, seed=0).batch(1, 2)[1]  # a sample of step 7; val phases come after 4 and 8
    changes = {
        **SMALL,
        "hooks": [{**CHECKPOINTS, "every_steps": every_steps}, {"name": "log", "every": 1}],
        "dataset.train.transforms": [{"name": "poison", "sample": poisoned}],
        "runtime.non_finite": "rollback",
    }
    hook = Told(final=final)
    with forgotten():
        TRANSFORMS.register("poison")(Poison)
        Trainer(tmp_path).train(tiny_task(changes, hook))

    assert read_records(tmp_path / "non_finite.jsonl")[0]["action"] == "rollback"
    assert hook.places == places_of(tmp_path)
    assert hook.losses("step") == [record["loss"] for record in read_records(tmp_path / "steps.jsonl")]


def test_overwrite_removes_what_trackers_wrote_and_leaves_other_folders(tmp_path: Path) -> None:
    changes = {**SMALL, "num_epochs": 1, "hooks": [{"name": "csv", "every": 1}, {"name": "tensorboard", "every": 1}]}
    Trainer(tmp_path).train(tiny_task(changes))
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/mine.txt").write_text("no run wrote it")
    Trainer(tmp_path, overwrite=True).train(tiny_task({**changes, "hooks": []}))

    assert not (tmp_path / "csv").exists()
    assert not (tmp_path / "tensorboard").exists()
    assert (tmp_path / "wandb/mine.txt").exists()


@pytest.mark.parametrize("link", ["csv", "csv/.points.jsonl"])
def test_a_link_in_place_of_a_tracker_s_folder_or_file_is_refused(link: str, tmp_path: Path) -> None:
    Trainer(tmp_path / "run").train(tiny_task({**SMALL, "num_epochs": 1, "hooks": [{"name": "csv"}]}))
    path, elsewhere = tmp_path / "run" / link, tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)

    with pytest.raises(ConfigError, match="link"):
        RunFolder(tmp_path / "run", resume=True)


# -- errors --------------------------------------------------------------------------------------------------------


def fails(*_: object) -> None:
    raise OSError(28, "No space left on device")


def hangs(*_: object) -> None:
    threading.Event().wait()


def exits(*_: object) -> None:
    raise SystemExit("the library wants to leave")


@pytest.mark.parametrize("what", [fails, hangs, exits])
@pytest.mark.parametrize("method", ["open_tracker", "write", "close_tracker"])
def test_a_tracker_that_fails_or_hangs_is_told_of_once_and_changes_nothing(
    what: Callable[..., None], method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook = Told(finish_seconds=0.5)
    setattr(hook, method, what)
    with caplog.at_level(logging.WARNING, "classyseg.hooks.trackers"):
        Trainer(tmp_path).train(tiny_task({**SMALL, "num_epochs": 1}, hook))

    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("classyseg.hooks.trackers")]
    assert message.startswith("csv: ")
    assert ("finish_seconds" if what is hangs else type(_error_of(what)).__name__) in message
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [4, 4]


def test_a_tracker_that_hangs_and_cannot_be_given_up_ends_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = Told(finish_seconds=0.5)
    monkeypatch.setattr(hook, "write", hangs)
    monkeypatch.setattr(hook, "give_up", fails)
    Trainer(tmp_path).train(tiny_task({**SMALL, "num_epochs": 1}, hook))

    messages = [r.getMessage() for r in caplog.records if r.name.startswith("classyseg.hooks.trackers")]
    assert "finish_seconds" in messages[0]
    assert "No space left on device" in messages[1]
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [4, 4]


def _error_of(what: Callable[..., None]) -> BaseException:
    try:
        what()
    except BaseException as error:
        return error
    raise AssertionError("no error")


@pytest.mark.parametrize("part", ["small", "picture"])
def test_a_sample_that_cannot_be_drawn_ends_no_training(
    part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise IndexError("no such label")

    monkeypatch.setattr(f"classyseg.hooks.fixed_samples.{part}", broken)
    Trainer(tmp_path).train(tiny_task({**SMALL, "num_epochs": 1, "hooks": ["tensorboard"]}))
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("classyseg.hooks.trackers")]
    assert message.startswith("tensorboard: IndexError: no such label; it gets nothing from now on")
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [4, 4]


def test_a_row_of_csv_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def entry(step: int) -> Entry:
        return Entry("step", step, 1, 0.0, {("step", "loss"): 0.5}, names=(("step", "loss"),))

    hook, path = CsvHook(every=1), tmp_path / "csv/steps.csv"
    hook.run_folder = tmp_path
    path.parent.mkdir()
    hook.open_tracker([entry(1)])
    before, most = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, most[1]))  # the disk takes five bytes more
    try:
        with pytest.raises(OSError):
            hook.write([entry(2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert path.read_bytes() == before
    hook.write([entry(3)])
    assert [row["step"] for row in rows_of(path)] == ["1", "3"]


def test_what_a_tracker_missed_it_is_told_when_the_run_goes_on(tmp_path: Path) -> None:
    changes = {**SMALL, "hooks": [*SMALL["hooks"], {"name": "csv", "every": 1}]}
    task = tiny_task(changes, FailsAt(6))
    task.hooks[2].write = fails  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        Trainer(tmp_path).train(task)
    Trainer(tmp_path, resume=True).train(tiny_task(changes))

    rows = rows_of(tmp_path / "csv/phases.csv")
    assert [row["loss"] for row in rows] == [repr(r["loss"]) for r in read_records(tmp_path / "metrics.jsonl")]
    assert [int(row["step"]) for row in rows_of(tmp_path / "csv/steps.csv")] == list(range(1, 9))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_library_is_named_before_any_data_is_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    config = tiny_config({**SMALL, "hooks": [{"name": name}]})

    with pytest.raises(ConfigError, match=rf"hooks\[0\].*pip install 'classyseg\[{name}\]'"):
        TASKS.validate(config).component.check(TASKS.validate(config))  # type: ignore[attr-defined]


def test_two_trackers_of_a_kind_are_refused() -> None:
    config = tiny_config({**SMALL, "hooks": [{"name": "csv"}, {"name": "csv", "every": 3}]})
    with pytest.raises(ConfigError, match=r"hooks\[1\]"):
        TASKS.validate(config).component.check(TASKS.validate(config))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "config",
    [
        {"name": "wandb", "settings": {"api_key": "secret"}},
        {"name": "wandb", "settings": {"disable_gti": True}},
        {"name": "mlflow", "tracking_uri": "https://me:secret@example.org"},
        {"name": "mlflow", "tracking_uri": "./mlruns"},
    ],
)
def test_secrets_stores_that_are_gone_and_unknown_settings_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_hook(config).check(torch.nn.Identity())
    assert "secret" not in str(caught.value)


# -- names ---------------------------------------------------------------------------------------------------------


def test_hostile_names_of_classes_have_a_tag_each_in_tensorboard(tmp_path: Path) -> None:
    numbers = tell_hostile_classes(TensorBoardHook(every=1, images=0), tmp_path)

    events = events_of(tmp_path)
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("val/iou/")]
    assert sorted(events.Scalars(tag)[0].value for tag in tags) == sorted(numbers.values())
    assert all(tag.isprintable() and len(tag) <= 200 for tag in tags)


def test_hostile_names_of_classes_have_a_column_each_in_csv_and_no_formula(tmp_path: Path) -> None:
    numbers = tell_hostile_classes(CsvHook(every=1), tmp_path)

    raw = (tmp_path / "csv/phases.csv").read_bytes()
    assert raw.count(b"\r\n") == raw.count(b"\n") == 2
    ((header, row),) = [tuple(csv.reader(raw.decode("utf-8").splitlines(), strict=True))]
    assert len(set(header)) == len(header)
    assert [float(v) for name, v in zip(header, row, strict=True) if name.startswith("iou/")] == [*numbers.values()]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t")) for cell in header)


def test_what_is_not_measured_is_an_empty_cell_and_its_column_stays_in_its_place(tmp_path: Path) -> None:
    hook, task = CsvHook(every=1), FakeTask(tmp_path)
    for road in (None, 0.5, float("nan")):
        task.end_phase(hook)  # of training
        task.end_phase(hook, mean_iou=0.25, iou={"road": road, "sky": 0.75})
    hook.on_end(task)
    hook.close()

    rows = [row for row in rows_of(tmp_path / "csv/phases.csv") if row["phase"] == "val"]
    assert list(rows[0]) == ["phase", "step", "epoch", "mean_iou", "iou/road", "iou/sky"]
    assert [row["iou/road"] for row in rows] == ["", "0.5", ""]


def test_a_number_whose_name_is_a_formula_is_none_in_csv(tmp_path: Path) -> None:
    hook, task = CsvHook(every=1), FakeTask(tmp_path)
    task.end_phase(hook, **{"=HYPERLINK(0)": 0.5})
    hook.on_end(task)
    hook.close()

    assert list(rows_of(tmp_path / "csv/phases.csv")[0])[3:] == ["'=HYPERLINK(0)"]
