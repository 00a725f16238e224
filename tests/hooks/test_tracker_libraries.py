"""One run that is killed and goes on, read back from each tracker by its own library."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import wandb
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from tracked import (
    CHANGES,
    HOSTILE,
    KILLED_AT,
    LAST,
    SAVED_AT,
    STEPS,
    rows_of,
    synced,
    tell_hostile_classes,
    wandb_server,
)

from classyseg.errors import ConfigError
from classyseg.hooks import MlflowHook, WandbHook
from classyseg.trainer import Trainer
from runs import Command, FakeTask, read_records, tiny_task

pytestmark = pytest.mark.slow

KILLED_RUN = """
import sys, time
from classyseg.hooks import ClassyHook
from classyseg.trainer import Trainer
from runs import tiny_task
from tracked import CHANGES, KILLED_AT

class Waits(ClassyHook):
    def on_step(self, task):
        if task.progress.step == KILLED_AT:
            time.sleep(1000)  # the test kills it

Trainer(sys.argv[1]).train(tiny_task(CHANGES, Waits()))
"""


def stored_steps(run: Path) -> int:
    """How many training steps the database of mlflow has, as nobody but SQLite reads it."""
    database = run / "mlflow/mlflow.db"
    if not (run / "mlflow/.run").exists():
        return 0
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return int(connection.execute("SELECT count(*) FROM metrics WHERE key = 'step/loss'").fetchone()[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed after step 7, when the trackers had it, and went on from step 4."""
    folder = tmp_path_factory.mktemp("tracked")
    script = folder / "killed.py"
    script.write_text(KILLED_RUN)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    address = f"http://127.0.0.1:{proxy.server_address[1]}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    command = Command([script, folder / "run"], folder / "log", dict.fromkeys(names, address))
    deadline = time.monotonic() + 100
    while stored_steps(folder / "run") < KILLED_AT:
        assert command.is_running, command.text
        assert time.monotonic() < deadline, command.text
        time.sleep(0.05)
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    with proxy:  # nobody has asked it for anything: offline, nothing goes to the network
        proxy.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            proxy.get_request()
    assert [r["step"] for r in read_records(folder / "run/steps.jsonl")][-1] == KILLED_AT
    assert [p.name for p in (folder / "run/checkpoints").glob("step-*")] == [f"step-{SAVED_AT}"]
    Trainer(folder / "run", resume=True).train(tiny_task(CHANGES))
    return folder / "run"


def expected(run: Path) -> dict[str, dict[int, float]]:
    """By the name of a number, its values by step, as the run's own records have them."""
    found: dict[str, dict[int, float]] = {}
    for record in read_records(run / "steps.jsonl"):
        found.setdefault("step/loss", {})[record["step"]] = record["loss"]
        found.setdefault("step/lr", {})[record["step"]] = record["lr"]
    for record in read_records(run / "metrics.jsonl"):
        if record["phase"] == "val":
            found.setdefault("val/mean_iou", {})[record["step"]] = record["mean_iou"]
            found.setdefault("val/iou/disc", {})[record["step"]] = record["iou"]["disc"]
    assert [*found["step/loss"]] == STEPS
    assert [*found["val/mean_iou"]] == [6, 12]
    return found


@pytest.mark.parametrize("purges", [True, False])
def test_tensorboard_reads_one_curve(purges: bool, run: Path) -> None:
    guidance = {"scalars": 0, "images": 0, "tensors": 0}
    events = EventAccumulator(str(run / "tensorboard"), guidance, purge_orphaned_data=purges).Reload()

    for name, values in expected(run).items():
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == [*values]
        assert [event.value for event in scalars] == pytest.approx([*values.values()], rel=1e-6)
    (tag,) = events.Tags()["images"]
    assert [event.step for event in events.Images(tag)] == [6, 12]
    (config,), (summary,) = events.Tensors("config"), events.Tensors("summary")
    assert "num_epochs: 2" in config.tensor_proto.string_val[0].decode()
    assert "finished: all 12 steps are done" in summary.tensor_proto.string_val[0].decode()


def test_mlflow_reads_one_curve(run: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{run}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("classyseg")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])

    for name, values in expected(run).items():
        history = sorted(client.get_metric_history(found.info.run_id, name), key=lambda metric: metric.timestamp)
        assert {metric.step: metric.value for metric in history} == values
        assert [metric.step for metric in history] == [*values]
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert found.data.params["num_epochs"] == "2"
    assert found.data.params["hooks/0/name"] == "checkpoint"
    assert found.data.tags["reason"] == "all 12 steps are done"
    names = [artifact.path for artifact in client.list_artifacts(found.info.run_id, "images")]
    assert sorted(name.partition("+step+")[2].partition("+")[0] for name in names if name.endswith(".png")) == [
        "12",
        "6",
    ]
    assert {"config.yaml", "summary.md"} <= {artifact.path for artifact in client.list_artifacts(found.info.run_id)}


def test_pandas_reads_one_curve_from_csv(run: Path) -> None:
    import pandas

    steps, phases = (pandas.read_csv(run / "csv" / name) for name in ("steps.csv", "phases.csv"))
    values = expected(run)
    assert dict(zip(steps["step"], steps["loss"], strict=True)) == values["step/loss"]
    val = phases[phases["phase"] == "val"]
    assert dict(zip(val["step"], val["iou/disc"], strict=True)) == values["val/iou/disc"]
    assert rows_of(run / "csv/summary.csv")[-1] == {
        "number": "reason",
        "last": "all 12 steps are done",
        "best": "",
        "best_step": "",
    }


def test_wandb_sync_uploads_one_curve(run: Path) -> None:
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert not any(path.is_symlink() for path in offline.rglob("*"))
    found = synced(run / "wandb")

    assert [row["_step"] for row in found.history] == STEPS
    for name, values in expected(run).items():
        assert {row["_step"]: row[name] for row in found.history if name in row} == values
    pictures = [(row["_step"], row["val/samples"]["count"]) for row in found.history if "val/samples" in row]
    assert pictures == [(6, 1), (12, 1)]
    summary = next(json.loads(body) for path, body in found.files.items() if path.endswith("wandb-summary.json"))
    assert summary["outcome"] == "finished"
    best = max((value, -step) for step, value in expected(run)["val/mean_iou"].items())
    assert (summary["best/val/mean_iou"], -summary["best_step/val/mean_iou"]) == best
    assert any(path.endswith("config.yaml") and b"num_epochs" in body for path, body in found.files.items())


def test_what_the_service_of_a_killed_run_writes_late_is_gone_at_the_end(tmp_path: Path) -> None:
    hook, task = WandbHook(every=1, images=0, finish_seconds=60), FakeTask(tmp_path)
    task.steps(hook, 1)
    late = tmp_path / "wandb/offline-run-20260101_000000-abcd1234/files"
    late.mkdir(parents=True)
    (late / "config.yaml").touch()
    hook.close()

    (left,) = (tmp_path / "wandb").glob("offline-run-*")
    assert [*left.glob("*.wandb")]


def test_wandb_online_goes_on_with_its_run_and_sends_no_step_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wandb_server() as (found, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        wandb.teardown()  # it reads the variables once in a process
        points = tmp_path / "wandb/.points.jsonl"
        for begin, end in ((0, 7), (4, 12)):
            hook, task = WandbHook(mode="online", every=1, images=0, finish_seconds=60), FakeTask(tmp_path)
            if begin:  # what the checkpoint does not have is cut off when a run is resumed
                points.write_text("".join(points.read_text().splitlines(keepends=True)[:begin]))
            task.progress.step = begin
            task.steps(hook, end - begin)
            if end == LAST:
                hook.on_end(task)
            hook.close()
        wandb.teardown()

    assert [row["_step"] for row in found.history] == STEPS


@pytest.mark.parametrize("ends", ["train", "val"])
def test_wandb_online_gets_the_phase_in_which_a_run_was_stopped_when_it_goes_on(
    ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of wandb is final once it is sent, and val and test phases have the step of the train phase before."""
    with wandb_server() as (found, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        wandb.teardown()
        for begin in (0, 3):
            hook, task = WandbHook(mode="online", every=1, images=0, finish_seconds=60), FakeTask(tmp_path)
            task.config = {**task.config, "dataset": {"test": {"name": "of this test"}}}
            task.progress.step = begin
            if begin == 0:
                task.steps(hook, 3)
                task.end_phase(hook, loss=0.5)
                if ends == "val":
                    task.end_phase(hook, mean_iou=0.25)
            else:
                task.progress.phase = "val" if ends == "train" else "test"
                task.end_phase(hook, mean_iou=0.75)
                task.progress.phase = "train"
                task.steps(hook, 2)
            hook.close()  # the first one is stopped
        wandb.teardown()

    name = {"train": "val/mean_iou", "val": "test/mean_iou"}[ends]
    assert [(row["_step"], row[name]) for row in found.history if name in row] == [(3, 0.75)]
    assert [row["_step"] for row in found.history][:4] == [1, 2, 3, 4]


def test_wandb_online_without_a_key_is_refused_and_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", "/dev/null")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        WandbHook(mode="online").check(nn.Identity())


def test_hostile_names_of_classes_have_a_number_each_in_wandb(tmp_path: Path) -> None:
    numbers = tell_hostile_classes(WandbHook(every=1, images=0), tmp_path)

    (row,) = (row for row in synced(tmp_path / "wandb").history if "val/loss" in row)
    assert sorted(value for name, value in row.items() if name.startswith("val/iou/")) == sorted(numbers.values())


def test_hostile_names_of_classes_have_a_metric_each_in_mlflow(tmp_path: Path, run: Path) -> None:
    uri = f"sqlite:///{run}/mlflow/mlflow.db"  # making another one takes seconds
    numbers = tell_hostile_classes(MlflowHook(every=1, images=0, tracking_uri=uri, experiment="names"), tmp_path)

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("names")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert uri not in (tmp_path / "mlflow/.run").read_text()  # it may hold a password
    metrics = {name: value for name, value in found.data.metrics.items() if name.startswith("val/iou/")}
    assert len(metrics) == len(HOSTILE)
    assert sorted(metrics.values()) == sorted(numbers.values())


def test_mlflow_gets_the_config_of_a_run_that_ended_before_it_was_told(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{run}/mlflow/mlflow.db"
    for step in (0, 1):
        hook, task = (
            MlflowHook(every=1, images=0, tracking_uri=uri, experiment="ended", finish_seconds=100),
            FakeTask(tmp_path),
        )
        task.progress.step = step
        with monkeypatch.context() as context:
            if step == 0:
                context.setattr(MlflowClient, "log_text", lambda *_: exit("killed"))
            task.steps(hook, 1)
            hook.close()

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("ended")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert "config.yaml" in {artifact.path for artifact in client.list_artifacts(found.info.run_id)}
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "step/loss")] == [1, 2]


def test_a_run_s_folder_that_was_moved_has_its_database_and_files_where_it_is_now(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run / "mlflow", tmp_path / "mlflow")
    shutil.copy(run / "metrics.jsonl", tmp_path / "metrics.jsonl")
    hook, task = MlflowHook(every=1, images=1, finish_seconds=100), FakeTask(tmp_path)
    task.progress.step = LAST
    task.steps(hook, 1)
    hook.close()

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("classyseg")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert [m.step for m in client.get_metric_history(found.info.run_id, "step/loss")] == [*STEPS, LAST + 1]
    assert found.info.artifact_uri.startswith((tmp_path / "mlflow/artifacts").as_uri())
    assert len([*tmp_path.glob("mlflow/artifacts/*/artifacts/images/*.png")]) == 2


def test_a_server_that_is_gone_ends_no_run_and_holds_none_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # it accepts, and never answers
    tracker = {"name": "mlflow", "tracking_uri": f"http://127.0.0.1:{server.server_address[1]}", "finish_seconds": 1}
    started = time.monotonic()
    Trainer(tmp_path).train(tiny_task({**CHANGES, "num_epochs": 1, "hooks": [tracker]}))

    assert time.monotonic() - started < 30
    assert [record["phase"] for record in read_records(tmp_path / "metrics.jsonl")] == ["train", "val"]
    assert sum("finish_seconds" in record.getMessage() for record in caplog.records) == 1
    server.server_close()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tracker would send goes to a port of this machine where nobody listens."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
