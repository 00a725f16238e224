"""MLflow: a store in the run's folder, or a server."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from PIL import Image
from pydantic import Field

from classyseg.config import dump_yaml
from classyseg.console import printable
from classyseg.errors import ConfigError
from classyseg.hooks.trackers.entries import SAMPLES, Entry, Summary
from classyseg.hooks.trackers.names import Names, plain_part
from classyseg.hooks.trackers.summary_text import summary_table
from classyseg.hooks.trackers.tracker_hook import TrackerHook
from classyseg.io import write_atomically
from classyseg.registry import HOOKS
from classyseg.run_folder import read_plain, require

SQLITE, ARTIFACTS = "sqlite:///", "artifacts"
"""A database in a file, and the folder next to it that has pictures and texts."""
RUN_ID = ".run"
"""The file with the run's id, and a hash of the store's address, which may hold a password."""
MAX_ID = 1000
METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100
MAX_KEY, MAX_VALUE = 250, 6000
SWITCHES = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
"""Environment variables of MLflow, where the user has not set them: it counts its users over the network, and tells of
each table that it makes."""
PICTURE = re.compile(r"(?P<key>.*)[+%]step[+%](?P<step>[0-9]{1,18})[+%]timestamp")
"""How MLflow names the files of pictures, with ~ for each slash of their key."""
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")


@HOOKS.register("mlflow")
class MlflowHook(TrackerHook):
    """Tells MLflow the run: in `mlflow/mlflow.db` of the run's folder, or in the store that `tracking_uri` names.

    Look at it with `mlflow ui --backend-store-uri sqlite:///DIR/mlflow/mlflow.db`. MLflow's telemetry is switched off.
    It needs the package `mlflow` (`pip install 'classyseg[mlflow]'`). How each tracker works stands in trackers.md.

    Args:
        experiment: The experiment, which is made if there is none of this name.
        run_name: The name of the run; null: that of its folder.
        tags: Tags of the run, names to texts.
        tracking_uri: A server (`http://...`) or a database (`sqlite:///FILE`); `environment`: what
            `MLFLOW_TRACKING_URI` says. null: a database in the run's folder. Next to a database is `artifacts/`, with
            pictures. Users and passwords come from `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, never
            from a config.
        every: Training steps between two points of `step/loss`, `step/lr`, `step/samples_per_second` and
            `step/data_wait`. Reading the loss waits for the GPU.
        images: How many samples of each val phase are shown as pictures, always the same ones; 0: none.
        finish_seconds: At the end of the run, so long is waited for what is not written yet.
    """

    folder = "mlflow"
    package = "mlflow"
    is_final = True

    def __init__(
        self,
        *,
        experiment: Annotated[str, Field(min_length=1, max_length=500)] = "classyseg",
        run_name: Annotated[str, Field(min_length=1, max_length=250)] | None = None,
        tags: dict[str, str] | None = None,
        tracking_uri: Annotated[str, Field(min_length=1)] | None = None,
        every: Annotated[int, Field(ge=1)] = 50,
        images: Annotated[int, Field(ge=0, le=100)] = 4,
        finish_seconds: Annotated[float, Field(gt=0)] = 30.0,
    ) -> None:
        super().__init__(every=every, images=images, finish_seconds=finish_seconds)
        self.experiment, self.run_name, self.tags, self.tracking_uri = (
            experiment,
            run_name,
            dict(tags or {}),
            tracking_uri,
        )
        if tracking_uri is not None and tracking_uri != "environment":
            _check_uri(tracking_uri)
        self._client: Any = None
        self._run_id = ""
        self._is_new = True
        self._names = Names(plain_part, MAX_KEY)
        self._last: dict[str, int] = {}
        """The last step of each metric that the store has."""
        self._pictures: set[tuple[str, int]] = set()

    def _uri(self) -> str:
        if self.tracking_uri == "environment":
            return os.environ.get("MLFLOW_TRACKING_URI") or self._own_uri()
        return self.tracking_uri or self._own_uri()

    def _own_uri(self) -> str:
        return f"{SQLITE}{self.run_folder.absolute() / self.folder / 'mlflow.db'}"

    def open_tracker(self, history: Sequence[Entry]) -> None:
        self._names = Names(plain_part, MAX_KEY)
        if self._client is None:
            for name, value in SWITCHES.items():
                os.environ.setdefault(name, value)
            from mlflow.tracking import MlflowClient

            uri = self._uri()
            if uri == self._own_uri():
                self._remove_moved(uri)
            self._client = MlflowClient(tracking_uri=uri)
            self._find_run(uri)
        self.write(history)

    def _remove_moved(self, uri: str) -> None:
        """Removes an own database that was made in another place: it would put its files there. All is told anew."""
        folder = self.run_folder / self.folder
        if os.path.lexists(folder / RUN_ID) and _read_run(folder / RUN_ID)[1] != _hash_of(uri):
            for path in (folder / RUN_ID, *folder.glob("mlflow.db*")):
                path.unlink()
            if os.path.lexists(folder / ARTIFACTS):
                require(folder / ARTIFACTS, "a folder")
                shutil.rmtree(folder / ARTIFACTS)

    def _find_run(self, uri: str) -> None:
        """Goes on with the run that the folder names, if the store has it; else begins one."""
        path = self.run_folder / self.folder / RUN_ID
        known, params = self._known_run(path, uri), {}
        if known is None:
            tags = self.tags
            name = self.run_name or self.run_folder.absolute().name
            self._run_id = self._client.create_run(self._experiment(), run_name=name, tags=tags).info.run_id
            self._check_place(uri)
            write_atomically(path, f"{self._run_id}\n{_hash_of(uri)}\n")
        else:
            self._run_id, params = known.info.run_id, known.data.params
            self._check_place(uri)
            self._client.update_run(self._run_id, status="RUNNING")
            self._pictures = set(self._known_pictures())
        self._is_new = known is None
        # Also of a run that goes on: it may have ended before it came to this.
        self._client.log_text(self._run_id, dump_yaml(self.run_config), "config.yaml")
        self._add_params(params)

    def _check_place(self, uri: str) -> None:
        """Raises: `ConfigError` if an own database, which somebody else may have made, puts files elsewhere."""
        place = (self.run_folder.absolute() / self.folder / ARTIFACTS).as_uri()
        found = self._client.get_run(self._run_id).info.artifact_uri
        if uri == self._own_uri() and (not found.startswith(f"{place}/") or ".." in found.removeprefix(place)):
            raise ConfigError(f"{self.folder}/mlflow.db puts its files elsewhere; remove the folder '{self.folder}'")

    def _known_run(self, path: Path, uri: str) -> Any:
        from mlflow.exceptions import MlflowException

        if not os.path.lexists(path):
            return None
        run_id, store = _read_run(path)
        if store != _hash_of(uri):
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            # Else MLflow puts them into ./mlruns, wherever the run was started.
            file = self._uri().removeprefix(SQLITE) if self._uri().startswith(SQLITE) else None
            place = None if file is None else (Path(file).absolute().parent / ARTIFACTS).as_uri()
            try:
                return str(self._client.create_experiment(self.experiment, artifact_location=place))
            except MlflowException:  # another run has just made it
                found = self._client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _add_params(self, known: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        names = Names(plain_part, MAX_KEY)
        params = [
            Param(name, printable(str(value), MAX_VALUE - 3))
            for name, value in ((names.of(path), value) for path, value in _leaves(self.run_config, ()))
            if name not in known  # they cannot be changed
        ]
        for i in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(self._run_id, params=params[i : i + PARAMS_AT_ONCE], synchronous=True)

    def write(self, entries: Sequence[Entry]) -> None:
        from mlflow.entities import Metric

        metrics = []
        for entry in entries:
            for name, value in entry.numbers.items():
                key = self._names.of(name)
                if entry.step > self._last_step_of(key):
                    metrics.append(Metric(key, value, int(entry.time * 1000), entry.step))
                    self._last[key] = entry.step
        self._log(metrics)
        for entry in entries:
            for picture, path in entry.pictures.items():
                key = f"{entry.kind}/{SAMPLES}/{plain_part(picture, '[^A-Za-z0-9_.-]')}"
                self._show(key, path, entry.step)

    def _log(self, metrics: Sequence[Any]) -> None:
        for i in range(0, len(metrics), METRICS_AT_ONCE):
            self._client.log_batch(self._run_id, metrics=metrics[i : i + METRICS_AT_ONCE], synchronous=True)

    def _last_step_of(self, key: str) -> int:
        if key not in self._last:
            found = [] if self._is_new else self._client.get_metric_history(self._run_id, key)
            self._last[key] = max((metric.step for metric in found), default=-1)
        return self._last[key]

    def _show(self, key: str, path: Path, step: int) -> None:
        if (key, step) in self._pictures:
            return
        self._pictures.add((key, step))
        with Image.open(path) as image:
            image.load()
            self._client.log_image(self._run_id, image, key=key, step=step, synchronous=True)

    def _known_pictures(self) -> Iterator[tuple[str, int]]:
        """The pictures that the store has."""
        for artifact in self._client.list_artifacts(self._run_id, "images"):
            match = PICTURE.match(artifact.path.rpartition("/")[2])
            if match is not None:
                yield match["key"].replace("~", "/"), int(match["step"])

    def close_tracker(self, summary: Summary) -> None:
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        told = [(self._names.of(("best", *name)), *found) for name, found in summary.best.items()]
        best = [Metric(key, value, now, step) for key, value, step in told if step > self._last_step_of(key)]
        tags = [RunTag("outcome", summary.outcome), RunTag("reason", printable(summary.reason, 1000))]
        self._log(best)
        self._client.log_batch(self._run_id, tags=tags, synchronous=True)
        self._client.log_text(self._run_id, summary_table(summary, self._names), "summary.md")
        self._client.set_terminated(self._run_id, STATUS[summary.outcome])


def _read_run(path: Path) -> tuple[str, str]:
    """The run's id, and the hash of its store's address."""
    run_id, _, store = read_plain(path, MAX_ID).decode("utf-8", "replace").partition("\n")
    return run_id, store.strip()


def _hash_of(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()


def _check_uri(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.username or parts.password:
        raise ConfigError(
            "tracking_uri",
            "names a user or a password, and configs are written into the run's folder; set MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI and `tracking_uri: environment`",
        )
    if parts.scheme.partition("+")[0] not in STORES and uri != "databricks":
        raise ConfigError(
            "tracking_uri",
            f"found {printable(uri, 200)!r}; expected a server, http://..., or a database, sqlite:///FILE (MLflow "
            "does not write plain folders any more), or `environment`",
        )


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of a config that are no mappings or lists of mappings, with their paths."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        for i, inner in enumerate(value):
            yield from _leaves(inner, (*path, str(i)))
    else:
        yield path, value
