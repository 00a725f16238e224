"""For the tests of trackers: a run with all of them, classes with hostile names, a stand-in of wandb's server."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from classyseg.hooks import ClassyHook
from runs import FakeTask

HOSTILE = (
    *("road/side", "road_side", "a\nb", "\U0001f600", "\U0001f601", "x" * 5000, "x" * 5000 + "y", "Road", "road"),
    *(
        "..",
        ".",
        "",
        " ",
        "=cmd|' /C calc'!A0",
        "a.b",
        "a:b",
        "a,b",
        'a"b',
        "\ud800",
        "\u202eabc",
        "'; DROP TABLE runs;--",
    ),
)
TRACKERS = ("tensorboard", "wandb", "mlflow", "csv")
CHANGES: dict[str, Any] = {
    "num_epochs": 2,
    "batch_size": 4,
    "dataset.train.num_samples": 24,
    "dataset.train.size": [16, 16],
    "dataset.val.num_samples": 4,
    "dataset.val.size": [16, 16],
    "hooks": [
        {"name": "checkpoint", "every_steps": 4, "every_epochs": None},
        {"name": "log", "every": 1},
        *(
            {"name": name, "every": 1, "finish_seconds": 100, **({} if name == "csv" else {"images": 1})}
            for name in TRACKERS
        ),
    ],
}
KILLED_AT, SAVED_AT, LAST = 7, 4, 12
STEPS = list(range(1, LAST + 1))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def tell_hostile_classes(hook: ClassyHook, folder: Path) -> dict[str, float]:
    """Tells a val phase whose classes have hostile names; returns their numbers."""
    task = FakeTask(folder)
    numbers = {name: (i + 1) / 64 for i, name in enumerate(HOSTILE)}
    hook.on_start(task)
    task.steps(hook, 1)
    task.progress.phase = "val"
    task.end_phase(hook, loss=0.5, iou=numbers)
    hook.on_end(task)
    hook.close()
    return numbers


class WandbServer(BaseHTTPRequestHandler):
    """As much of Weights & Biases' server as `wandb sync` asks for; it keeps what is uploaded."""

    protocol_version = "HTTP/1.1"
    history: list[dict[str, Any]]
    files: dict[str, bytes]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path.endswith("/graphql"):
            answer = {"data": self._data(json.loads(body))}
        elif self.path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.history.extend(map(json.loads, lines))
        elif self.command == "PUT":
            self.files[self.path] = body
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815 (as http.server has them)

    def _data(self, asked: dict[str, Any]) -> dict[str, Any]:
        query, values = asked["query"], asked.get("variables") or {}
        if "RunResumeStatus" in query and self.history:
            tail = json.dumps(self.history[-1])
            lines = {"logLineCount": 0, "eventsLineCount": 0, "historyLineCount": len(self.history)}
            told = {"summaryMetrics": tail, "historyTail": json.dumps([tail]), "eventsTail": "[]", "tags": []}
            bucket = {"id": "B", "name": values["name"], "displayName": "run", "config": "{}", **lines, **told}
            project = {"id": "P", "name": "classyseg", "entity": {"id": "E", "name": "me"}}
            return {"model": {**project, "bucket": {**bucket, "wandbConfig": '{"t": 1}'}}}
        if "UpsertBucket" in query:
            project = {"id": "P", "name": "classyseg", "entity": {"id": "E", "name": "me"}}
            bucket = {"id": "B", "name": values.get("name"), "displayName": "run", "config": "{}"}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0, "project": project}, "inserted": True}}
        if "CreateRunFiles" in query:
            address = f"http://127.0.0.1:{self.server.server_address[1]}/up"
            files = [{"name": name, "uploadUrl": f"{address}/{name}"} for name in values["files"]]
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
        viewer = {"id": "V", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": {"features": []}, "model": None}


@contextmanager
def wandb_server() -> Iterator[tuple[WandbServer, dict[str, str]]]:
    """A server that runs, and the environment variables with which wandb goes to it."""
    found: Any = type("Found", (WandbServer,), {"history": [], "files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), found)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield found, {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": address, "WANDB_ERROR_REPORTING": "false"}
    finally:
        server.shutdown()
        server.server_close()


def synced(folder: Path) -> WandbServer:
    """What `wandb sync` uploads of the offline runs in `folder`."""
    with wandb_server() as (found, variables):
        command = [sys.executable, "-m", "wandb", "sync", *map(str, sorted(folder.glob("offline-run-*")))]
        environment = {**os.environ, **variables}
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=100)
    return found
