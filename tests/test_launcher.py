"""What the environment says of the job: one process, several that find each other, or one clear error."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from classyseg import launcher
from classyseg.cli.train import main
from classyseg.config import ConfigError
from runs import Command, write_config

SMALL = {"num_epochs": 1, "dataset.train.num_samples": 8, "dataset.val": None}
VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def say(monkeypatch: pytest.MonkeyPatch, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {**WHOLE, "WORLD_SIZE": "1", "MASTER_ADDR": "node1.invalid"},
        {"RANK": "1", "MASTER_ADDR": "node1"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
    ],
    ids=str,
)
def test_what_a_scheduler_leaves_behind_is_one_process(
    values: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, values)

    assert main([str(write_config(tmp_path, SMALL)), "--output", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/metrics.jsonl").is_file()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"WORLD_SIZE": "2"}, ("WORLD_SIZE is 2", "RANK, MASTER_ADDR, MASTER_PORT, LOCAL_RANK", "torchrun")),
        ({**WHOLE, "MASTER_PORT": ""}, ("WORLD_SIZE is 2", "MASTER_PORT is not set")),
        ({**WHOLE, "RANK": " "}, ("RANK is not set",)),
        ({"WORLD_SIZE": "two"}, ("WORLD_SIZE: found 'two'", "from 1")),
        ({"WORLD_SIZE": "-1"}, ("WORLD_SIZE: found '-1'",)),
        ({"WORLD_SIZE": "0"}, ("WORLD_SIZE: found '0'",)),
        ({"WORLD_SIZE": "1.5"}, ("WORLD_SIZE: found '1.5'",)),
        ({"WORLD_SIZE": "9" * 30}, ("WORLD_SIZE: found '999",)),
        ({**WHOLE, "RANK": "2"}, ("RANK: found '2'", "0 to 1")),
        ({"WORLD_SIZE": "1", "RANK": "1"}, ("RANK: found '1'", "0 to 0")),
        ({**WHOLE, "RANK": "first"}, ("RANK: found 'first'",)),
        ({**WHOLE, "LOCAL_RANK": "-1"}, ("LOCAL_RANK: found '-1'",)),
        ({**WHOLE, "MASTER_PORT": "http"}, ("MASTER_PORT: found 'http'", "1 to 65535")),
        ({**WHOLE, "MASTER_PORT": "70000"}, ("MASTER_PORT: found '70000'",)),
    ],
    ids=lambda value: str(value),
)
def test_half_a_description_or_nonsense_is_one_error_that_names_the_variables(
    values: dict[str, str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    say(monkeypatch, values)

    assert main([str(write_config(tmp_path, SMALL)), "--output", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: environment: ")
    assert message.count("\n") == 1
    assert all(word in message for word in words)
    assert not (tmp_path / "run").exists()


def test_on_gpus_each_process_needs_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, WHOLE)
    monkeypatch.delenv("LOCAL_RANK")

    assert launcher.described_job("cpu") == launcher.Job(2, 0, "127.0.0.1", 29500)
    with pytest.raises(ConfigError, match="LOCAL_RANK is not set"):
        launcher.described_job("cuda")


@pytest.mark.parametrize(("rank", "missing"), [(0, "processes 1, 2 of 3"), (1, "process 0 of 3")])
def test_a_process_says_for_whom_it_waits_and_at_last_gives_up(
    rank: int, missing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launcher, "SAY_SECONDS", 0.1)
    port = free_port()

    with pytest.raises(ConfigError, match=rf"{missing} .*127\.0\.0\.1:{port}.*2 s"):
        launcher.meet(launcher.Job(3, rank, "127.0.0.1", port), timedelta(seconds=2.2))

    assert f"waiting for {missing} at 127.0.0.1:{port}" in caplog.text
    assert len(caplog.records) < 8  # ever more rarely


@pytest.mark.parametrize("host", ["node1.invalid", "a..b"])
def test_a_machine_that_has_no_address_is_named(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "NAME_SECONDS", 0.0)
    monkeypatch.setattr(launcher, "SAY_SECONDS", 0.1)

    with pytest.raises(ConfigError, match=rf"MASTER_ADDR.*'{host}'"):
        launcher.meet(launcher.Job(2, 0, host, 29500), timedelta(seconds=5))
    with pytest.raises(ConfigError, match=rf"process 0 of 2 .*{host}:29500"):
        launcher.meet(launcher.Job(2, 1, host, 29500), timedelta(seconds=0.2))


def test_a_port_that_is_in_use_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"MASTER_PORT.*127.0.0.1:{port}"):
            launcher.meet(launcher.Job(2, 0, "127.0.0.1", port), timedelta(seconds=5))


def test_two_processes_of_one_rank_are_an_error() -> None:
    port = free_port()
    store = launcher.dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    store.add("/worker/attempt_0/classyseg/came/1", 1)

    with pytest.raises(ConfigError, match="RANK: found 1 in two processes"):
        launcher.meet(launcher.Job(3, 1, "127.0.0.1", port), timedelta(seconds=5))


@pytest.mark.slow
def test_the_command_line_says_on_stderr_who_is_missing(tmp_path: Path) -> None:
    environment = {**WHOLE, "MASTER_PORT": free_port()}
    arguments = [write_config(tmp_path, SMALL), "--output", tmp_path / "run"]
    command = Command(arguments, tmp_path / "log", environment)
    command.signal_when(signal.SIGTERM, lambda: "waiting for process 1 of 2" in command.text)

    assert command.wait() == -signal.SIGTERM
    assert not (tmp_path / "run").exists()


@pytest.fixture(autouse=True)
def loud(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
