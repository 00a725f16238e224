"""`classyseg env`: what a bug report needs, and nothing that tells who or where somebody is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from classyseg.cli.output import emit, emit_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--private", action="store_true", help="also the names of host and user, folders, and values of variables"
    )


def run(arguments: argparse.Namespace) -> int:
    from classyseg.environment import environment

    facts = environment(private=arguments.private)
    if arguments.json:
        emit_json(facts)
    else:
        emit("\n".join(_lines(facts)))
    return 0


# -- for people -------------------------------------------------------------------------------------------------------


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    for key, value in facts.items():
        yield from _part(key, value, "")


def _part(key: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        yield f"{indent}{key}:"
        for name, item in value.items():
            yield from _part(name, item, f"{indent}  ")
    elif isinstance(value, list) and value:
        yield f"{indent}{key}:"
        yield from (f"{indent}  - {', '.join(_cells(item))}" for item in value)
    else:
        yield f"{indent}{key}: {_text(key, value)}"


def _cells(item: Mapping[str, Any]) -> Iterator[str]:
    for key, value in item.items():
        if value is not None:
            yield f"{key} {_text(key, value)}"


def _text(key: str, value: Any) -> str:
    from classyseg.console import printable

    if value is None or value == [] or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and key in ("memory", "total", "limit", "shared", "shared_free"):
        return f"{value / 1e9:.1f} GB"
    return printable(str(value))
