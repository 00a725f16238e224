"""Measures a config by a short training in a process of its own, so that memory that runs out ends nothing else.

`python -m classyseg.planning.probe` reads a request from standard input and prints a record. It writes no file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from classyseg.errors import ConfigError
from classyseg.hooks import ClassyHook
from classyseg.hooks.classy_hook import WatchedTask
from classyseg.hooks.memory_use import device_peak, host_bytes, host_peak
from classyseg.planning.facts import Measured, mean

WARM_UP = 3
"""Steps that are not counted: memory formats and caches settle."""
LEAST_STEPS = 7
MOST_STEPS = 60
END_BY_START = 0.5
"""What comes after the last step (weights, the report) takes about this part of the time to the first step."""


def measured(config: Mapping[str, Any], *, seconds: float, limit: float) -> Measured | None:
    """What training by `config` takes, from about so many seconds of it; None where memory or the time ran out.

    Raises: `ConfigError` for anything else that goes wrong.
    """
    request = json.dumps({"config": config, "seconds": seconds, "started": time.time()})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "classyseg.planning.probe"],
            input=request,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
            env=os.environ | {"CLASSYSEG_PROBE": "1"},
        )
    except subprocess.TimeoutExpired:
        return None
    lines = done.stdout.strip().splitlines()
    record = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if "error" in record:
        raise ConfigError(f"a short training by the planned config failed: {record['error']}")
    if done.returncode < 0 or "out of memory" in done.stderr:
        return None
    if "step" not in record:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"a short training by the planned config failed (exit code {done.returncode}): {last}")
    return Measured.of(record)


class Watch(ClassyHook):
    """Times the steps of a training, ends it after so many seconds, and times the validation that follows."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.first = 0.0
        self.memory = 0
        self.times: dict[str, list[float]] = {"train": [], "val": []}
        self._last = time.perf_counter()

    def on_phase_start(self, task: WatchedTask) -> None:
        self._last = time.perf_counter()

    def on_step(self, task: WatchedTask) -> None:
        phase = task.progress.phase
        if phase == "train":
            task.last_loss.item()  # waits for the device
        now = time.perf_counter()
        if phase in self.times:
            self.times[phase].append(now - self._last)
        if phase == "train" and len(self.times[phase]) % 2 == 0:
            self.memory = max(self.memory, host_bytes())  # with that of the workers
        self._last = time.perf_counter()
        steps = self.times["train"]
        if phase != "train":
            return
        self.first = self.first or time.time()
        enough = len(steps) >= LEAST_STEPS and sum(steps[1:]) >= self.seconds
        if enough or len(steps) >= MOST_STEPS:
            task.request_stop("measured")


def main() -> int:
    """Reads a request, trains, prints a record."""
    request = json.load(sys.stdin)
    config = request["config"]
    # The memory of a process before torch has done anything is part of what a training takes.
    from classyseg.errors import DataError
    from classyseg.tasks import build_task
    from classyseg.trainer import Trainer

    watch = Watch(request["seconds"])
    try:
        task = build_task({**config, "hooks": [watch]})
        Trainer().train(task)
    except (ConfigError, DataError) as error:
        print(json.dumps({"error": str(error)}))
        return 0
    steps, vals = watch.times["train"], watch.times["val"]
    counted = steps[WARM_UP:] or steps
    device = task.runtime.torch_device()
    record = {
        "batch_size": config["batch_size"],
        "start": watch.first - request["started"],
        "step": mean(sorted(counted)[: max(1, -(-4 * len(counted) // 5))]),  # a pause of the machine is no step
        "val": mean(vals[1:] or vals),
        "val_start": max(0.0, vals[0] - mean(vals[1:])) if len(vals) > 1 else 0.0,
        "memory": device_peak(device) or max(host_peak(), watch.memory),
        "end": END_BY_START * (watch.first - request["started"]),
    }
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
