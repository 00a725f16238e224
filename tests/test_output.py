"""What commands print into pipes that close, onto full disks, and where not every character can be encoded."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from pathlib import Path

import pytest

from classyseg.cli.main import main
from classyseg.cli.output import PlainLines, complain, emit, emit_json, in_columns
from classyseg.cli.train import guarded
from classyseg.config import ConfigError, dump_yaml, parse_config
from classyseg.console import columns_of
from runs import tiny_config

NAMES = ["Stra\u00dfe", "\u9053\u8def", "sky"]


def plain(monkeypatch: pytest.MonkeyPatch, encoding: str = "ascii") -> io.BytesIO:
    """Makes standard output one that can encode little; gives what is written there."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    return written


def test_a_config_is_shown_in_a_plain_locale_so_that_it_is_read_back_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"name": "folder", "images": "\u00e4/images", "masks": "masks", "classes": NAMES}
    path = tmp_path / "a.yaml"
    path.write_text(dump_yaml(tiny_config({"dataset": {"train": data}})), encoding="utf-8")
    written = plain(monkeypatch)

    assert main(["config", "show", str(path)]) == 0

    shown = parse_config(written.getvalue().decode("ascii"), source="shown").values
    assert shown["dataset"]["train"]["classes"] == NAMES
    assert shown["dataset"]["train"]["images"] == "\u00e4/images"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_in_every_locale(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = plain(monkeypatch, encoding)
    emit_json({"classes": [*NAMES, "bytes \udcff"]})
    assert json.loads(written.getvalue().decode(encoding)) == {"classes": [*NAMES, "bytes \udcff"]}


def test_a_reader_that_has_left_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert not emit("a line")
        assert emit("another one, which goes nowhere")


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(ConfigError, match=r"^standard output.*No space left"):
            emit("a line")


def test_closed_streams_take_what_libraries_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert guarded(lambda: print(sys.stderr.write("a"), sys.stdout.write("b")) or 3) == 3


def test_what_would_move_the_cursor_is_escaped_in_errors(capsys: pytest.CaptureFixture[str]) -> None:
    complain("error: a\x1b[2Jb: found\nanother line")
    assert capsys.readouterr().err == "error: a\\x1b[2Jb: found\nanother line\n"


def test_columns_stand_under_each_other_whatever_the_names_and_fit_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["", "class", "pixels"], ["0", "\u9053\u8def", "12"], ["1", "a\nb", "3"], ["2", "x" * 90, "4567"]]
    whole = in_columns(rows, right=[0, 2], names=1)
    assert {columns_of(line) for line in whole} == {1 + 2 + 90 + 2 + 6}
    assert "a\\nb" in whole[2]

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    cut = in_columns(rows, right=[0, 2], names=1)
    assert {columns_of(line) for line in cut} == {57}
    assert cut[3].endswith("xxx...    4567")


def test_a_line_of_the_log_stays_on_its_line() -> None:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "bad sample: %s\nmend it", ("a\x1b[2J\u202e.png",), None)
    assert PlainLines().format(record) == "bad sample: a\\x1b[2J\\u202e.png\nmend it"
