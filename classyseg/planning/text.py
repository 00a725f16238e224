"""Writes a config as YAML with a comment at each value that has a reason."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from classyseg.config import dump_yaml
from classyseg.console import printable

WIDTH = 118
Place = tuple[str, ...]


def commented(values: Mapping[str, Any], reasons: Mapping[Place, str]) -> str:
    """YAML that reads back to `values`. A reason stands behind its value, or above it where the line is full.

    The place of an element of a list is its component's name.
    """
    return "".join(f"{line}\n" for line in _mapping(values, reasons, (), 0))


def _mapping(values: Mapping[str, Any], reasons: Mapping[Place, str], place: Place, indent: int) -> Iterator[str]:
    for key, value in values.items():
        inner = (*place, str(key))
        yield from _entry(f"{_key(key)}:", value, reasons, inner, indent)


def _entry(start: str, value: Any, reasons: Mapping[Place, str], place: Place, indent: int) -> Iterator[str]:
    blank, reason = "  " * indent, reasons.get(place, "")
    line = f"{blank}{start} {flow(value)}"
    opens = isinstance(value, Mapping | list) and value
    deeper = any(len(other) > len(place) and other[: len(place)] == place for other in reasons)
    if not opens or not (deeper or len(line) > WIDTH):
        yield from _with_reason(line, reason, blank)
        return
    yield from _with_reason(f"{blank}{start}", reason, blank)
    if isinstance(value, Mapping):
        yield from _mapping(value, reasons, place, indent + 1)
        return
    if all(isinstance(each, str | int | float) for each in value):
        yield from _wrapped([flow(each) for each in value], blank)
        return
    for each in value:
        name = each.get("name", "") if isinstance(each, Mapping) else str(each)
        reason = reasons.get((*place, name), "")
        yield from _with_reason(f"{blank}  - {flow(each)}", reason, f"{blank}  ")


def _wrapped(words: Sequence[str], blank: str) -> Iterator[str]:
    """A list of plain values on as many lines as it needs."""
    line = f"{blank}  ["
    for i, word in enumerate(words):
        end = "]" if i == len(words) - 1 else ","
        if len(line) + len(word) + 2 > WIDTH:
            yield line
            line = f"{blank}   "
        line += ("" if line.endswith("[") or not line.strip() else " ") + word + end
    yield line


def _with_reason(line: str, reason: str, blank: str) -> Iterator[str]:
    reason = printable(reason)
    if not reason:
        yield line
    elif len(line) + len(reason) + 4 <= WIDTH:
        yield f"{line}  # {reason}"
    else:
        yield from textwrap.wrap(reason, WIDTH, initial_indent=f"{blank}# ", subsequent_indent=f"{blank}# ")
        yield line


def flow(value: Any) -> str:
    """A value on one line."""
    text = dump_yaml({"a": value}, on_one_line=True)
    return text.strip().removeprefix("{a: ").removesuffix("}")


def _key(key: object) -> str:
    return dump_yaml({key: 0}, on_one_line=True).strip().removeprefix("{").removesuffix(": 0}")  # type: ignore[dict-item]
