"""Seeded mutations of the shipped configs through `config check`, in one process: refused in a message, or accepted.

A share runs with the other tests; all of them with `CLASSYSEG_FUZZ=1000`.
"""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from memory import memory_within

from classyseg.cli.main import main
from classyseg.config import Location, dump_yaml, load_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "task_configs").rglob("*.yaml"))
NUMBER = int(os.environ.get("CLASSYSEG_FUZZ", "300"))
SECONDS = 20
KILOBYTES = 2_000_000

NUMBERS = (-1, 0, 1, 2, 3, 7, 255, 2**31, 2**63, -(2**63), 10**400, 0.0, -0.5, 1e-300, 1e-9, 1.5, 1e30, 1e300, 1e308)
TEXTS = (
    "",
    " ",
    "a",
    "null",
    "name",
    "../..",
    "~",
    "/dev/null",
    "a\0b",
    "a" * 5000,
    "ü",
    "\u2028",
    "{}",
    "%s",
    "{0}",
    "*",
)
ODD = (None, True, False, [], {}, [[]], [None], {"": 1}, {"name": None}, {"name": "fcn"}, [1] * 3000, {"a": {"b": []}})
NAMES = ("resnet18", "unet", "fcn", "psp", "encnet", "point_rend", "swin_t", "vit_b_16", "mlp", "resnext3d_18", "dice")
NAMES += (
    "boundary",
    "adamw",
    "cosine",
    "folder",
    "synthetic_image",
    "concat",
    "log",
    "accuracy",
    "video_accuracy",
    "pad",
)


def walk(node: Any, location: Location = ()) -> Iterator[Location]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*location, key)
        yield from walk(value, (*location, key))


def mutated(tree: Any, draw: random.Random) -> Any:
    """`tree` with one to three values replaced, keys renamed, left out, doubled elsewhere, or exchanged."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(walk(tree))
        if not places:
            break
        *parents, key = draw.choice(places)
        node = tree
        for part in parents:
            node = node[part]
        value = draw.choice([*NUMBERS, *TEXTS, *ODD, *NAMES])
        how = draw.randrange(6)
        if how == 0 or (how == 1 and isinstance(node, list)):
            del node[key]
        elif how == 1:
            node[draw.choice([*TEXTS, *NAMES, "type", "lr"])] = node.pop(key)
        elif how == 2 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
            node[key] = node[key] * draw.choice((-1, 0, 10, 1000, 10**6, 10**12))
        elif how == 3:
            other = tree
            for part in draw.choice(places):
                if not isinstance(other, dict | list) or (isinstance(other, dict) and part not in other):
                    break
                if isinstance(other, list) and part >= len(other):  # type: ignore[operator]
                    break
                other = other[part]
            node[key] = copy.deepcopy(other) if other is not tree else value
        else:
            node[key] = copy.deepcopy(value)
    return tree


def mutations(number: int) -> Iterator[tuple[int, Any]]:
    """The first `number` of a fixed row, each drawn from its own seed."""
    trees = [load_config(path).values for path in CONFIGS]
    for i in range(number):
        draw = random.Random(i)
        yield i, mutated(draw.choice(trees), draw)


def test_no_mutation_of_a_shipped_config_is_a_traceback_or_takes_much(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "task.yaml"
    codes = []
    with memory_within(KILOBYTES):
        for i, tree in mutations(NUMBER):
            path.write_text(dump_yaml(tree), encoding="utf-8")
            start = time.process_time()
            codes.append(main(["config", "check", str(path)]))
            seconds = time.process_time() - start
            printed = capsys.readouterr()
            assert codes[-1] in (0, 2), i
            assert seconds < SECONDS, i
            if codes[-1] == 2:
                assert printed.err.startswith("error: "), i
                assert "Traceback" not in printed.err, i
                assert len(printed.err.splitlines()) < 60, i
                assert max(map(len, printed.err.splitlines())) < 3000, i
    assert 0 in codes  # what cannot be refused would be no check
    assert codes.count(2) > NUMBER // 2
