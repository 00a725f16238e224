from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from classyseg.locks import alone


@pytest.mark.parametrize("keep", [False, True])
def test_one_at_a_time_is_inside(tmp_path: Path, keep: bool, caplog: pytest.LogCaptureFixture) -> None:
    counter, lock = tmp_path / "counter", tmp_path / "new" / "lock"
    counter.write_text("0")

    def count(_: int) -> None:
        with alone(lock, keep=keep):
            value = int(counter.read_text())
            counter.write_text("half")
            counter.write_text(str(value + 1))

    with caplog.at_level(logging.INFO), ThreadPoolExecutor(8) as pool:  # a lock is held against other threads, too
        list(pool.map(count, range(200)))
    assert counter.read_text() == "200"
    assert lock.exists() == keep
    assert not (keep and caplog.messages)


def test_a_kept_file_is_never_cut_and_an_error_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "bytes.txt"
    with alone(path, keep=True):
        assert path.read_text() == ""
        path.write_text("7")
    with pytest.raises(FileNotFoundError), alone(path, keep=True):
        Path("there is none").read_text()
    with alone(path):
        assert path.read_text() == "7"
    assert not path.exists()


def test_who_waits_is_told_for_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.lock"
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(1) as pool:

        def enter() -> None:
            with alone(path):
                pass

        with alone(path):
            waiting = pool.submit(enter)
            while not caplog.messages and not waiting.done():
                pass
            assert not waiting.done()
        waiting.result()
    assert caplog.messages == [f"another process is at work ({path}): waiting"]
