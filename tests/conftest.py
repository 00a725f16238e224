"""Puts this folder on the path, for the helpers that several test files share; `--every-variant`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a core of its own
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-variant",
        action="store_true",
        help="hold the contract tests for every registered model, not one of each family (hours)",
    )


@pytest.fixture(autouse=True)
def own_data_root() -> Iterator[None]:
    """`--data-root` sets a variable of the process, which must not move the data of the tests that follow."""
    name = "CLASSYSEG_DATA"
    before = os.environ.get(name)
    yield
    if before is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = before
