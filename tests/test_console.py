"""Text for a terminal: its width, what is escaped of it, printing where not all of it can be encoded."""

from __future__ import annotations

import io
import os
import random
import sys
import termios
import unicodedata

import pytest

from classyseg.console import columns_of, padded, printable, say, shortened, shown, terminal_width, wrapped


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
    ("text", "expected"),
    [
        ("Stra\u00dfe \u9053", "Stra\u00dfe \u9053"),
        ("a\nb\r\t\x1b[31mc\x07", "a\\nb\\r\\t\\x1b[31mc\\x07"),
        ("a\u2028b\x85c", "a\\u2028b\\x85c"),
        ("left\u202eright", "left\\u202eright"),
        ("bytes \udcff", "bytes \\udcff"),
        ("family \U0001f468\u200d\U0001f469", "family \U0001f468\u200d\U0001f469"),
    ],
)
def test_what_would_leave_its_line_or_turn_it_round_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_a_text_that_is_cut_says_so() -> None:
    assert printable("abc", 3) == "abc"
    assert printable("\nbcd", 3) == "\\nbc..."


DEEP: list[object] = []
for _ in range(5000):
    DEEP = [DEEP]


class Broken:
    """A plugin's object that cannot be written."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -1.5,
        "a b",
        "it's",
        [],
        (),
        {},
        (1,),
        [1, "b"],
        {"a": {"b": [1, (2, 3)]}, 3: None},
        b"bytes\n",
        {1},
    ],
)
def test_a_small_value_is_shown_as_python_writes_it(value: object) -> None:
    assert shown(value) == repr(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("fu\u0308r\xa0\n", r"'fu\u0308r\xa0\n'"),
        ("\u0939\u093f\u0902", "'\u0939\u093f\u0902'"),  # Hindi, whose signs have no other spelling
        ("\ud800\u202e", r"'\ud800\u202e'"),
        (DEEP, "[[[[[[...]]]]]]"),
        (10**5000, "a value of the type int (ValueError)"),
        (Broken(), "a value of the type Broken (RuntimeError)"),
        ("a" * 10**7, f"'{'a' * 76}..."),
        ([[0] * 10**6] * 10**6, f"[[{'0, ' * 25}..."),
    ],
    ids=["spelling", "hindi", "surrogate", "deep", "digits", "broken", "long", "large"],
)
def test_other_values_are_shown_short_and_exactly(value: object, expected: str) -> None:
    assert shown(value) == expected


def test_no_foreign_text_leaves_its_line_or_its_length() -> None:
    generator = random.Random(1)
    odd = "'\"\\\n\r\t\0\x1b\x07\x7f\x85\xa0\xad\u0308\u200b\u200e\u202e\u2028\u2066\ud800\udcff"
    letters = [
        *odd,
        *"\ue000\ufeff\ufffe\U000e0041",
        *"aB1 \u00e4\u9053",
        *map(chr, range(0x20)),
        *(chr(generator.randrange(0x110000)) for _ in range(300)),
    ]
    for _ in range(500):
        text = "".join(generator.choices(letters, k=generator.choice([1, 5, 60, 3000])))
        value = generator.choice([text, [text], {text: [text]}, (text, 1), text.encode("utf-8", "surrogatepass")])
        for told, limit in ((printable(text, 60), 60 * 10 + 3), (shown(value), 80), (shown(value, 30), 30)):
            assert len(told) <= limit
            told.encode("utf-8")
            kinds = {unicodedata.category(char) for char in told if char not in "\u200c\u200d"}
            assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


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


def test_an_exact_text_shows_what_looks_like_something_else() -> None:
    assert printable("a\xa0b \u3000fu\u0308r", exact=True) == r"a\xa0b \u3000fu\u0308r"
    assert printable("a\xa0b \u9053", exact=True) == "a\\xa0b \u9053"
    assert printable("a\xa0b fu\u0308r") == "a\xa0b fu\u0308r"
    assert printable("it's a\\b", exact=True) == "it's a\\b"
