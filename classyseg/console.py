"""Text for a terminal and for messages: which characters can be shown, how wide they are, and printing."""

from __future__ import annotations

import io
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO

DEFAULT_WIDTH = 80
MAX_SHOWN, MAX_LEVELS = 80, 6
"""The most characters of a value in a message, and the levels of nested mappings and lists that it shows."""
MAX_NAME = 500
"""The most characters of a name in a message; most paths are shorter, and their end tells most."""
MAX_TEXT = 1000
"""The most characters of a text that are read; a message shows fewer."""
JOINERS = "\u200c\u200d"
"""Format characters that belong to words (in Persian, Hindi) and to emoji. They do not move other text on the line."""


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether `stream` is a terminal; False for a closed one, which is None or raises an error."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def terminal_width(stream: IO[str] | None = None) -> int:
    """How many columns `stream` (standard output) shows; $COLUMNS if that is less; 80 if unknown."""
    stream = sys.stdout if stream is None else stream
    widths = []
    with suppress(OSError, ValueError, AttributeError):  # no terminal, closed, or no file at all
        widths.append(os.get_terminal_size(stream.fileno()).columns)
    if (columns := os.environ.get("COLUMNS", "")).isdecimal():
        widths.append(int(columns))
    return min((width for width in widths if width > 0), default=DEFAULT_WIDTH)


def printable(text: str, limit: int | None = None, *, exact: bool = False) -> str:
    """A text that is to be read, on one line: line breaks, control characters and marks of direction are escaped.

    More than `limit` characters are cut off, which three dots tell. Of an `exact` one, what looks like something else
    is escaped, too: other blanks, and letters in another form, as macOS writes "\u00fc" as "u" and two dots.
    """
    kept = text if limit is None else text[:limit]
    if kept.isascii() and kept.isprintable():
        plain = kept
    elif exact and not unicodedata.is_normalized("NFC", kept):
        plain = ascii(kept)[1:-1]
    else:
        plain = "".join(
            char
            if (char.isprintable() if exact else _is_plain(char))
            else char.encode("unicode_escape").decode("ascii")
            for char in kept
        )
    return plain if len(kept) == len(text) else f"{plain}..."


def printable_lines(text: str, limit: int | None = None) -> str:
    """`printable` of each line of a text whose line breaks are ours."""
    return "\n".join(printable(line, limit) for line in text.split("\n"))


def shown(value: object, limit: int = MAX_SHOWN) -> str:
    """A value that is looked at, as Python writes it: text in quotes, on one line, short, however large or deep it is.

    Text is `exact`, as `printable` has it.
    """
    found = ""
    for piece in _written(value, MAX_LEVELS):
        found += printable(piece)
        if len(found) > limit:
            return f"{found[: limit - 3]}..."
    return found


def _written(value: object, levels: int) -> Iterator[str]:
    """What Python writes, piece by piece, so that whoever has enough of it may leave."""
    if isinstance(value, str):
        text = value[: MAX_TEXT + 1]
        yield repr(text) if unicodedata.is_normalized("NFC", text) else ascii(text)
    elif type(value) not in _BRACKETS:
        try:
            yield repr(value)
        except Exception as error:  # an integer of thousands of digits; a plugin's object
            yield f"a value of the type {type(value).__name__} ({type(error).__name__})"
    elif levels == 0:
        yield "..."
    else:
        brackets = _BRACKETS[type(value)]
        yield brackets[0]
        for i, item in enumerate(value):  # type: ignore[arg-type, var-annotated]
            yield ", " if i else ""
            yield from _written(item, levels - 1)
            if isinstance(value, dict):
                yield ": "
                yield from _written(value[item], levels - 1)
        yield ",)" if type(value) is tuple and len(value) == 1 else brackets[1]


def _is_plain(char: str) -> bool:
    return (char.isascii() and char.isprintable()) or char in JOINERS or unicodedata.category(char) not in _ESCAPED


_BRACKETS: dict[type, str] = {list: "[]", tuple: "()", dict: "{}"}
_ESCAPED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def columns_of(text: str) -> int:
    """How many columns a terminal gives to `text`: two for Chinese signs and most emoji, none for combining ones."""
    return sum(map(_columns, text))


def _columns(char: str) -> int:
    if char.isascii():
        return 1
    # The range has vowels and finals of Hangul, which combine with the letter before them.
    if unicodedata.category(char) in ("Mn", "Me", "Cf") or "\u1160" <= char <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def padded(text: str, columns: int, *, right: bool = False) -> str:
    """`text` with blanks up to so many columns; `right` puts them before it."""
    blanks = " " * max(0, columns - columns_of(text))
    return blanks + text if right else text + blanks


def shortened(text: str, columns: int) -> str:
    """`text`; if it does not fit into so many columns, its beginning and three dots."""
    if columns_of(text) <= columns:
        return text
    found, room = "", columns - 3
    for char in text:
        room -= _columns(char)
        if room < 0:
            break
        found += char
    return found + "..."[: max(0, columns)]


def wrapped(words: Iterable[str], columns: int, *, first: str, indent: str) -> list[str]:
    """`words` in lines of so many columns, none split. The first line begins with `first`, the others with `indent`."""
    lines = [first]
    for word in words:
        if columns_of(lines[-1]) + 1 + columns_of(word) > columns and lines[-1] not in (first, indent):
            lines.append(indent)
        lines[-1] += word if lines[-1] == indent else f" {word}"
    return lines


def say(text: str) -> None:
    """Prints a line. Characters that standard output cannot encode are escaped. Raises: `OSError`."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def discard_output() -> None:
    """Discards all further output. When the reader of a pipe has left, even the flush at exit would fail."""
    with suppress(io.UnsupportedOperation):  # a replaced sys.stdout may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def accept_any_text() -> None:
    """Lets standard output and error escape what they cannot encode (file names that are no text, a plain C locale).

    A closed one (`>&-`) is replaced by one that shows nothing: libraries write there without asking.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process lives)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
