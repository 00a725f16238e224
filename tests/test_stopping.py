"""Runs that are stopped, hang or are restarted: nothing that was learnt is lost."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from classyseg import stopping
from classyseg.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from classyseg.datasets import EvalOrder, SyntheticShapes, TrainOrder, make_loader
from classyseg.datasets.files.images import read_image
from classyseg.datasets.loading.workers import WorkerError
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.stopping import Stopped, StopRequests, WaitEnded
from classyseg.structures import Sample
from classyseg.tasks.sample_checks import check_samples
from classyseg.trainer import Trainer
from runs import LIMIT, Command, read_records, start_job, tiny_task, write_config

SAMPLES, BATCH = 32, 8
HANGING = list(TrainOrder(SAMPLES, BATCH, seed=0))[-1][0][1]
"""A sample of the last batch of the first epoch."""
PLUGIN = """
import ctypes, os, signal, sys, time
from classyseg.cli.train import main
from classyseg.registry import HOOKS, TRANSFORMS
from classyseg.hooks import ClassyHook
from classyseg.transforms import ClassyTransform

@TRANSFORMS.register("hangs")
class Hangs(ClassyTransform):
    def __init__(self, ignore_index: int = 255, *, at: int, hard: bool = False) -> None:
        self.at, self.hard = at, hard
    def __call__(self, sample, generator):
        if sample.name.endswith(f" {self.at}") and os.environ.get("RANK", "0") == "0":
            if self.hard:
                ctypes.PyDLL(None).sleep(1000)  # keeps the interpreter: no handler of a signal runs
            time.sleep(1000)
        return sample

@HOOKS.register("dies_once")
class DiesOnce(ClassyHook):
    def on_step(self, task):
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if first and task.progress.step == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

sys.exit(main())
"""
CHANGES: dict[str, Any] = {
    "num_epochs": 2,
    "batch_size": BATCH,
    "dataset.train.num_samples": SAMPLES,
    "dataset.val": None,
    "hooks": [{"name": "log", "every": 1}],
}


def hanging(hard: bool) -> dict[str, Any]:
    transforms = [{"name": "hangs", "at": HANGING, "hard": hard}]
    return {**CHANGES, "dataset.train.transforms": transforms, "runtime.workers": 2}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "signals", "hard"),
    [(1, [signal.SIGTERM], False), (1, [signal.SIGINT, signal.SIGTERM], True), (2, [signal.SIGTERM], True)],
    ids=["a signal", "two signals, and a worker that no signal reaches", "two processes"],
)
def test_a_worker_that_hangs_does_not_hold_up_a_signal(
    processes: int, signals: list[signal.Signals], hard: bool, script: Path, tmp_path: Path
) -> None:
    arguments = [script, write_config(tmp_path, hanging(hard)), "--output", tmp_path / "run"]
    log = tmp_path / "rank0.log"
    job = [Command(arguments, log)] if processes == 1 else start_job(arguments, tmp_path)
    steps = tmp_path / "run/steps.jsonl"
    done = 0
    while not done or len(read_records(steps)) > done:  # until the next batch does not come
        assert job[0].is_running, job[0].text
        done = len(read_records(steps)) if steps.exists() else 0
        time.sleep(1.5)

    for number in signals:
        for process in job:
            os.kill(process.pid, number)
        time.sleep(0.2)

    assert [process.wait() for process in job] == [128 + signals[0]] * processes, job[0].text
    assert newest_checkpoint(tmp_path / "run/checkpoints") == (tmp_path / f"run/checkpoints/step-{done}", [])
    assert done < 4
    assert "a checkpoint is saved" in job[0].text


class Hanging(SyntheticShapes):
    """Its last sample never comes."""

    def load(self, index: int) -> Sample:
        if index == len(self) - 1:
            time.sleep(1000)
        return super().load(index)


@pytest.fixture
def batches() -> TrainOrder:
    return TrainOrder(4, 2, seed=0)


def test_a_worker_that_hangs_ends_the_run_and_its_sample_is_named(batches: TrainOrder) -> None:
    dataset = Hanging(split="train", num_samples=4, size=(32, 32))
    loader = make_loader(dataset, batches, workers=1, worker_timeout=3)

    with pytest.raises(WorkerError, match=r"data worker 0 .*sample 3, epoch 0.*runtime\.worker_timeout"):
        list(loader)
    children = multiprocessing.active_children()
    loader.close()

    assert children
    assert not any(child.is_alive() for child in children)


def test_without_a_limit_a_worker_may_take_its_time_and_a_stop_ends_the_wait(batches: TrainOrder) -> None:
    asked: list[bool] = []

    def gives_up() -> bool:
        asked.append(True)
        return len(asked) == 3

    dataset = Hanging(split="train", num_samples=4, size=(32, 32))
    loader = make_loader(dataset, batches, workers=1, gives_up=gives_up)

    with pytest.raises(WaitEnded):
        list(loader)

    loader.close()
    assert len(asked) == 3


class HoldsTheInterpreter(SyntheticShapes):
    """At its last sample, the worker hangs in C code: none of its threads runs, so nobody gets a batch's memory."""

    def load(self, index: int) -> Sample:
        if index == len(self) - 1:
            time.sleep(0.5)  # the thread that sends the batch before does so
            ctypes.PyDLL(None).sleep(1000)
        return super().load(index)


@pytest.mark.parametrize(("limit", "again"), [(None, False), (3.0, False), (None, True)])
def test_a_batch_whose_worker_answers_no_more_does_not_hold_up_the_end(limit: float | None, again: bool) -> None:
    """torch asks a worker for the memory of a batch that it sent, and waits for the answer however long that takes."""
    dataset = HoldsTheInterpreter(split="train", num_samples=3, size=(32, 32))
    order = EvalOrder(3, 1)
    loader = make_loader(dataset, order, workers=1, worker_timeout=limit, gives_up=lambda: limit is None)
    found: list[BaseException] = []

    def take() -> None:
        batches = iter(loader)
        next(batches)
        time.sleep(1.5)  # a long step, at which the batch that is next is sent and its worker hangs
        try:
            next(iter(loader) if again else batches)  # as after a roll-back
        except (WaitEnded, WorkerError) as error:
            found.append(error)
        loader.close()

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    taking.join(LIMIT / 4)

    assert not taking.is_alive()
    assert not multiprocessing.active_children()
    (error,) = found
    assert isinstance(error, WaitEnded if limit is None else WorkerError)
    assert limit is None or "sample 2, epoch 0" in str(error)


class TakesTheLock(SyntheticShapes):
    """At its last sample, the worker takes the lock by which torch tells workers to leave, and hangs."""

    def load(self, index: int) -> Sample:
        if index == len(self) - 1:
            frame = sys._getframe()
            while "done_event" not in frame.f_locals:
                assert frame.f_back is not None
                frame = frame.f_back
            frame.f_locals["done_event"]._cond.acquire()
            time.sleep(1000)
        return super().load(index)


def test_a_worker_that_is_killed_with_the_lock_of_all_workers_does_not_hold_up_the_end(batches: TrainOrder) -> None:
    """A worker has the lock for microseconds only, but a machine that is busy may stop it just there."""
    dataset = TakesTheLock(split="train", num_samples=4, size=(32, 32))
    loader = make_loader(dataset, batches, workers=2, gives_up=lambda: True)
    with pytest.raises(WaitEnded):
        list(loader)

    closing = threading.Thread(target=loader.close, daemon=True)
    closing.start()
    closing.join(LIMIT / 4)

    assert not closing.is_alive()
    assert not multiprocessing.active_children()


class Slow(SyntheticShapes):
    """Every sample takes longer than a look at the workers."""

    def load(self, index: int) -> Sample:
        time.sleep(1.2)
        return super().load(index)


def test_workers_that_are_slow_but_move_on_are_waited_for() -> None:
    """A batch takes longer than a sample may."""
    batches = TrainOrder(4, 4, seed=0)
    slow = make_loader(Slow(split="train", num_samples=4, size=(32, 32)), batches, workers=1, worker_timeout=4.0)
    fast = make_loader(SyntheticShapes(split="train", num_samples=4, size=(32, 32)), batches, workers=0)

    found, expected = list(slow), list(fast)
    slow.close()

    assert [batch.name for batch in found] == [batch.name for batch in expected]


@pytest.fixture
def handlers() -> Iterator[list[int]]:
    """The signals that reach whoever handled them before."""
    reached: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: reached.append(number))
    yield reached
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of requests to stop: a test moves its `now`."""
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def test_in_a_step_the_second_request_acts_at_once_and_in_a_wait_or_a_save_the_third(
    handlers: list[int], clock: SimpleNamespace
) -> None:
    def request() -> None:
        clock.now += 1.1
        signal.raise_signal(signal.SIGTERM)

    with StopRequests(at_once=False) as requests:
        request()
        assert requests.received == signal.SIGTERM
        assert handlers == []
        request()
        assert len(handlers) == 1
    handlers.clear()
    with StopRequests(at_once=False) as requests, requests.holding():
        request()
        assert not requests.gives_up()
        request()
        assert requests.gives_up()
        assert handlers == []
        request()
        assert len(handlers) == 1
    handlers.clear()
    with StopRequests(at_once=False) as requests:
        request()
        with requests.holding():  # the checkpoint
            request()
        assert handlers == []
        request()
        assert len(handlers) == 1


@pytest.mark.parametrize("at_once", [False, True])
def test_signals_that_follow_each_other_at_once_are_one_request(
    at_once: bool, handlers: list[int], clock: SimpleNamespace
) -> None:
    """As torchrun sends SIGTERM after a Ctrl-C that reached the process, too."""
    with StopRequests(at_once=at_once) as requests:
        with suppress(Stopped):
            signal.raise_signal(signal.SIGINT)
        for seconds in (0.0, 0.5, 0.4):
            clock.now += seconds
            signal.raise_signal(signal.SIGTERM)
            with requests.holding():
                signal.raise_signal(signal.SIGTERM)
        assert requests.received == signal.SIGINT
        assert not requests.gives_up()
        with requests.holding():
            clock.now += 0.2
            signal.raise_signal(signal.SIGTERM)  # the second request
            signal.raise_signal(signal.SIGINT)  # and its copy
            assert requests.gives_up()
        assert handlers == []


@pytest.mark.usefixtures("handlers")
def test_a_step_that_gets_the_signal_twice_is_saved() -> None:
    class SignalsTwice(ClassyHook):
        def on_step(self, task: WatchedTask) -> None:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped) as stopped:
        Trainer().train(tiny_task({"num_epochs": 1, "dataset.val": None}, SignalsTwice()))
    assert (stopped.value.exit_code, stopped.value.saved) == (143, True)


@pytest.mark.usefixtures("handlers")
def test_a_handler_that_is_not_pythons_is_replaced_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a program that has Python in it. Python tells such a handler as None, and cannot give it back."""
    real = signal.signal

    def tells_none(number: int, handler: Any) -> None:
        real(number, handler)

    monkeypatch.setattr(signal, "signal", tells_none)
    interrupt = signal.getsignal(signal.SIGINT)
    with StopRequests(at_once=False) as requests:
        signal.raise_signal(signal.SIGTERM)
    assert requests.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    real(signal.SIGINT, interrupt)


def test_before_the_first_step_a_signal_ends_the_run_at_once(handlers: list[int]) -> None:
    with pytest.raises(Stopped) as stopped, StopRequests(at_once=True):
        signal.raise_signal(signal.SIGTERM)
    assert (stopped.value.exit_code, stopped.value.saved) == (143, False)
    assert "nothing was saved" in str(stopped.value)


def look_at_samples(folder: Path, stop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SyntheticShapes, "load", stop)
    check_samples({"train": SyntheticShapes(split="train", num_samples=2, size=(32, 32))})


def read_an_image(folder: Path, stop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    monkeypatch.setattr(Image, "open", stop)
    read_image(folder / "a.png")


def read_a_checkpoint(folder: Path, stop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save_checkpoint(folder, 1, {"model": {"x": torch.ones(1)}}, {})
    monkeypatch.setattr("classyseg.checkpoint.load_file", stop)
    load_checkpoint(saved)


@pytest.mark.parametrize("read", [look_at_samples, read_an_image, read_a_checkpoint], ids=lambda f: f.__name__)
@pytest.mark.usefixtures("handlers")
def test_what_is_being_read_when_a_signal_ends_the_run_is_not_called_broken(
    read: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers take whatever is raised for what a broken file leads to. A run may skip such a file, and go on."""

    def stop(*args: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped), StopRequests(at_once=True):
        read(tmp_path, stop, monkeypatch)


def launch(script: Path, config: Path, run: Path, log: Path, *, processes: int = 2) -> int:
    """A real torchrun, which may start the processes once more."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "--max-restarts=1"]
    with log.open("wb") as file:
        command = [sys.executable, *torchrun, str(script), str(config), "--output", str(run)]
        return subprocess.run(command, stdout=file, stderr=file, timeout=2 * LIMIT, check=False).returncode


@pytest.mark.slow
def test_a_run_that_torchrun_restarts_continues_and_one_that_it_refused_is_not_taken_for_it(
    script: Path, tmp_path: Path
) -> None:
    hooks = [{"name": "checkpoint", "every_steps": 2}, {"name": "log", "every": 1}]
    (tmp_path / "whole").mkdir()
    whole = write_config(tmp_path / "whole", {**CHANGES, "hooks": hooks})
    job = start_job([whole, "--output", tmp_path / "whole/run"], tmp_path / "whole")
    assert [command.wait() for command in job] == [0, 0]
    config = write_config(tmp_path, {**CHANGES, "hooks": [*hooks, "dies_once"]})
    run = tmp_path / "run"

    assert launch(script, config, run, tmp_path / "log") == 0, (tmp_path / "log").read_text()

    assert f"resumed {run / 'checkpoints/step-4'}" in (tmp_path / "log").read_text()
    assert read_records(run / "metrics.jsonl") == read_records(tmp_path / "whole/run/metrics.jsonl")
    name = "checkpoints/step-8/model.safetensors"
    assert (run / name).read_bytes() == (tmp_path / "whole/run" / name).read_bytes()

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert launch(script, config, run, tmp_path / "log", processes=1) != 0
    assert (tmp_path / "log").read_text().count("holds a run already") == 2  # of the first start, and of its restart
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
