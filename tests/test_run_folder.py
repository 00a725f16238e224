"""A run's folder from somebody else: nothing outside it is touched, and nothing in it is believed unseen."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from classyseg.config import ConfigError
from classyseg.io import FolderLock, append_json_line, read_json_lines, write_atomically
from classyseg.locks import alone
from classyseg.run_folder import check_run_folder, given_files, remove_leftovers, require_writable
from run_faults import picture, run_all

NAMES = [
    *(
        ".lock",
        "config.yaml",
        "metrics.jsonl",
        "steps.jsonl",
        "bad_samples.jsonl",
        "confusion_matrix.csv",
        "checkpoints",
    ),
    *("checkpoints/LATEST", "checkpoints/BEST", "checkpoints/step-4", "checkpoints/step-4.damaged", "checkpoints/new"),
    *("checkpoints/step-2/state.json", "checkpoints/step-2/model.safetensors", "checkpoints/step-2/more"),
    *("report.html", "report", "report/facts.json", "predictions", "predictions/step-4"),
    *(".before", ".before-moving/checkpoints", ".before/metrics.jsonl", ".before/checkpoints/step-2"),
]


def link_to_a_file(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "file")


def link_to_a_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside, target_is_directory=True)


def link_to_nothing(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "new")


def link_to_itself(path: Path, outside: Path) -> None:
    path.symlink_to(path.name)


def pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path, outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, chdir(path.parent):
        made.bind(path.name)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    (folder / "step-1").mkdir(parents=True)
    for name in ("file", "LATEST.tmp-1"):
        (folder / name).write_text("kept")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run, by its names alone."""
    folder = tmp_path / "run"
    (folder / "checkpoints/step-2").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "make",
    [link_to_a_file, link_to_a_folder, link_to_nothing, link_to_itself, pipe, unix_socket],
    ids=lambda f: f.__name__,
)
def test_what_is_no_file_and_no_folder_is_refused_by_name_before_anything_is_opened(
    make: Callable[[Path, Path], None], name: str, run: Path, outside: Path
) -> None:
    if name == "checkpoints":
        (run / "checkpoints/step-2").rmdir()
        (run / "checkpoints").rmdir()
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    make(run / name, outside)
    before = picture(outside)
    with pytest.raises(ConfigError) as refused:
        FolderLock(run)
    assert str(refused.value).startswith(f"{run / name}: found a ")
    assert picture(outside) == before


@pytest.mark.parametrize("name", [".lock", "config.yaml", "metrics.jsonl", "checkpoints/LATEST", "checkpoints/BEST"])
def test_a_folder_where_a_run_has_a_file_is_refused(name: str, run: Path) -> None:
    (run / name).mkdir()
    with pytest.raises(ConfigError, match=rf"{name}.*folder;.*file"):
        check_run_folder(run)


@pytest.mark.parametrize("name", ["checkpoints/step-4", "checkpoints"])
def test_a_file_where_a_run_has_a_folder_is_refused(name: str, run: Path) -> None:
    if name == "checkpoints":
        (run / "checkpoints/step-2").rmdir()
        (run / "checkpoints").rmdir()
    (run / name).touch()
    with pytest.raises(ConfigError, match=rf"{name}.*file;.*folder"):
        check_run_folder(run)


def test_the_folder_of_a_run_may_itself_be_a_link_and_hold_links_deeper_down(run: Path, tmp_path: Path) -> None:
    (run / "notes").mkdir()
    (run / "notes/latest").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(run, target_is_directory=True)
    FolderLock(tmp_path / "link").release()
    require_writable(tmp_path / "link")


def test_a_lock_that_is_a_file_elsewhere_too_is_not_written(run: Path, outside: Path) -> None:
    os.link(outside / "file", run / ".lock")
    with pytest.raises(ConfigError, match=r"\.lock: has another name elsewhere"):
        FolderLock(run)
    assert (outside / "file").read_text() == "kept"


def test_a_lock_that_says_odd_things_is_shown_in_one_short_line(run: Path) -> None:
    holder = FolderLock(run)
    (run / ".lock").write_bytes(b"\x1b[2J\xff\n" * 1000)
    with pytest.raises(ConfigError, match=r"in use by \\x1b\[2J") as refused:
        FolderLock(run)
    holder.release()
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300 + len(str(run))


def test_half_written_files_go_and_what_their_links_lead_to_stays(run: Path, outside: Path) -> None:
    root = run / "checkpoints"
    (root / "step-4.tmp-1").symlink_to(outside, target_is_directory=True)
    (root / "LATEST.tmp-1").symlink_to(outside / "file")
    (root / "step-6.tmp-1").mkdir()
    (root / "step-6.tmp-1/inner").symlink_to(outside, target_is_directory=True)
    before = picture(outside)
    remove_leftovers(root)
    assert [path.name for path in root.iterdir()] == ["step-2"]
    assert picture(outside) == before


def test_a_name_that_is_guessed_leads_nowhere(run: Path, outside: Path) -> None:
    (run / f"config.yaml.tmp-{os.getpid()}").symlink_to(outside / "file")
    write_atomically(run / "config.yaml", "new")
    assert (outside / "file").read_text() == "kept"
    assert (run / "config.yaml").read_text() == "new"
    assert not (run / "config.yaml").is_symlink()


@pytest.mark.parametrize("make", [link_to_a_file, link_to_nothing, pipe], ids=lambda f: f.__name__)
def test_records_and_locks_are_not_written_through_what_came_later(
    make: Callable[[Path, Path], None], run: Path, outside: Path
) -> None:
    make(run / "steps.jsonl", outside)
    before = picture(outside)
    with pytest.raises(ConfigError, match=r"steps\.jsonl.*(link|pipe)"):
        append_json_line(run / "steps.jsonl", {"step": 1})
    with pytest.raises(ConfigError, match=r"steps\.jsonl.*(link|pipe)"):
        read_json_lines(run / "steps.jsonl")
    with pytest.raises(ConfigError, match=r"steps\.jsonl: found a"), alone(run / "steps.jsonl"):
        pass
    assert picture(outside) == before


@pytest.mark.parametrize(
    "line",
    [
        *("null", "[1]", "{", "\x00\x00", "\udcff", "[" * 5000, "7" * 6000, "{}"),
        *('{"step": "1"}', '{"step": 1.0}', '{"step": true}', '{"step": 1' + "0" * 400 + "}"),
    ],
    ids=lambda line: repr(line[:12]),
)
def test_a_line_that_is_no_record_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_bytes(f'{{"step": 1}}\n\n{line}\n'.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as refused:
        read_json_lines(path, {"step": int})
    assert str(refused.value).startswith(f"{path}, line 3: ")
    assert len(str(refused.value)) < 200 + len(str(path))


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "steps.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n{"st\xff')
    assert read_json_lines(tmp_path / "steps.jsonl", {"step": int}) == [{"step": 1}, {"step": 2}]


@pytest.mark.slow
def test_damaged_and_hostile_folders_end_in_one_sentence_or_in_the_same_run(tmp_path: Path) -> None:
    """`CLASSYSEG_RUN_FAULTS=300` makes so many; `python tests/run_faults.py 300` says what came of them."""
    count = int(os.environ.get("CLASSYSEG_RUN_FAULTS", "24"))
    assert run_all(count, tmp_path, told=lambda line: None) == []


def test_a_folder_where_a_meter_has_its_file_is_named_at_the_start(run: Path) -> None:
    (run / ".files").write_text("confusion_matrix.csv\n.lock\n")
    assert given_files(run) == ["confusion_matrix.csv"]
    (run / "confusion_matrix.csv").mkdir()
    with pytest.raises(ConfigError, match=r"confusion_matrix\.csv.*folder"):
        check_run_folder(run)
