"""Text for a terminal: its width, what is escaped of it, printing where not all of it can be encoded."""

from __future__ import annotations

import io
import os
import sys
import termios

import pytest

from classyseg.console import columns_of, padded, printable, say, shortened, terminal_width, wrapped


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("road", 4),
        ("Stra\u00dfe", 6),
        ("\u9053\u8def", 4),  # Chinese signs
        ("e\u0301te\u0301", 3),  # accents of their own
        ("\ud55c\uad6d", 4),  # Hangul
        ("\uff76\uff9e", 2),  # half-width kana
        ("\U0001f600", 2),  # an emoji
        ("\u0645\u0650\u0646", 2),  # Arabic with a vowel sign
        ("", 0),
    ],
)
def test_the_columns_of_a_text_are_those_of_a_terminal(text: str, columns: int) -> None:
    assert columns_of(text) == columns
    assert columns_of(padded(text, 9)) == columns_of(padded(text, 9, right=True)) == 9
    assert padded(text, 9, right=True).endswith(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Stra\u00dfe \u9053", "Stra\u00dfe \u9053"),
        ("a\nb\r\t\x1b[31mc\x07", "a\\nb\\r\\t\\x1b[31mc\\x07"),
        ("a\u2028b\x85c", "a\\u2028b\\x85c"),
        ("left\u202eright", "left\\u202eright"),
        ("bytes \udcff", "bytes \\udcff"),
        ("family \U0001f468\u200d\U0001f469", "family \U0001f468\u200d\U0001f469"),
    ],
)
def test_what_would_leave_its_line_or_turn_it_round_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("columns", range(13))
def test_a_shortened_text_fits(columns: int) -> None:
    for text in ("background", "\u9053\u8def\u3068\u6b69\u9053", "e\u0301" * 10):
        found = shortened(text, columns)
        assert columns_of(found) <= columns
        assert found == text or found.endswith("..."[:columns])


def test_words_are_wrapped_whole() -> None:
    lines = wrapped(["one", "two", "longer than the line", "\u9053\u8def", "x"], 12, first="zero:", indent="  ")
    assert lines == ["zero: one", "  two", "  longer than the line", "  \u9053\u8def x"]


@pytest.mark.parametrize(
    ("real", "variable", "columns"),
    [
        (100, None, 100),
        (100, "60", 60),
        (60, "100", 60),
        (0, "70", 70),
        (0, None, 80),
        (100, "wide", 100),
        (0, "0", 80),
    ],
)
def test_the_width_is_that_of_the_terminal_or_what_a_user_says(
    real: int, variable: str | None, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if variable is not None:
        monkeypatch.setenv("COLUMNS", variable)
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, real))
    with os.fdopen(master, "rb", 0), os.fdopen(slave, "w") as file:
        assert terminal_width(file) == columns


def test_what_is_no_terminal_has_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal_width(io.StringIO()) == 80


def test_what_standard_output_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    say("Stra\u00dfe \u9053")
    say("road")
    assert written.getvalue() == b"Stra\\xdfe \\u9053\nroad\n"
