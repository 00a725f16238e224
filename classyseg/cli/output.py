"""What commands print: for people, for pipes that close early, for consoles that cannot encode everything."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from classyseg.console import columns_of, is_terminal, padded, printable, say, shortened, terminal_width

MIN_NAME = 12
"""So many columns of a name are shown in any case."""
MARGIN = 3
"""Columns of a terminal that lines leave free: for their indentation, and at the end."""


def emit(text: str) -> bool:
    """Prints lines; False when nobody reads them any more (`| head`), which is no error.

    Raises: `ConfigError` where standard output cannot be written, as on a full disk.
    """
    from classyseg.config import ConfigError
    from classyseg.io import discard_output

    try:
        say(text)
    except BrokenPipeError:
        discard_output()
        return False
    except OSError as error:
        discard_output()
        raise ConfigError(f"standard output: cannot be written ({error.strerror})") from None
    return True


def complain(text: str) -> None:
    """Prints lines on standard error, also where that is closed; what would move the cursor is escaped."""
    with suppress(OSError, ValueError):
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr)


def emit_json(value: Any) -> None:
    """Prints JSON, in which characters that standard output cannot encode are escaped as JSON has it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    emit(text if can_be_printed(text) else json.dumps(value, indent=2))


def can_be_printed(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def in_columns(rows: Sequence[Sequence[str]], right: Collection[int] = (), *, names: int | None = None) -> list[str]:
    """`rows` with their cells under each other, those of the columns `right` at the right; the last one as it is.

    On a terminal, the column `names` is cut where lines would not fit; what goes into a file or a pipe is whole.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    if names is not None and is_terminal(sys.stdout):
        others = sum(widths) - widths[names] + 2 * last
        widths[names] = min(widths[names], max(MIN_NAME, terminal_width() - MARGIN - others))
        rows = [[shortened(cell, widths[i]) if i == names else cell for i, cell in enumerate(row)] for row in rows]
    return [
        "  ".join(
            cell if i == last and i not in right else padded(cell, widths[i], right=i in right)
            for i, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]
